"""The Experiment: what a checked YAML says. Frozen; imports neither torch nor ray.

Sections in the order of a run: corpus → codec → latents → model → train → sample → evaluate,
then where it runs (cluster, tracking). Every field has its unit in its name or description.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from latentlm.settings import (
    DiffusionSettings,
    HeadSettings,
    ImageCodecSettings,
    LatentLMSettings,
    SamplerSettings,
    TransformerSettings,
    VarianceSettings,
)
from latentlm.settings.rules import Problem

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Betas = tuple[Fraction, Fraction]


class Section(BaseModel):
    """A part of an experiment: unknown keys and wrong types are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def problems(self) -> Iterator[Problem]:
        """Rules between fields of this section that are broken."""
        return iter(())


class Corpus(Section):
    """Raw images with a class each, and how a record becomes a signal."""

    source: str = Field(
        description="A name from `latentlm corpora list` (with /SPLIT), a folder, or a URI."
    )
    layout: Literal["auto", "folder", "parquet", "webdataset"] = "auto"
    held_out_source: str | None = Field(
        None, description="Images never trained on; without it `held_out_fraction` is set aside."
    )
    held_out_fraction: Fraction = 0.05
    classes: Positive
    image_size: Positive = Field(description="Pixels a side after resizing and centre-cropping.")
    channels: Literal[1, 3] = 3
    flip: bool = Field(True, description="Mirror half of the images while training.")
    image_column: str = Field("image", description="Parquet column of image bytes.")
    label_column: str = Field("label", description="Parquet column or tar extension of the class.")
    chunk_records: Positive = Field(512, description="Records read, cached and shuffled together.")
    shuffle_window_chunks: Positive = Field(16, description="Chunks mixed with each other.")
    readers: Positive = Field(1, description="Tasks that read ahead for each Train worker.")
    max_bad_fraction: Fraction = Field(0.1, description="More unreadable records end the run.")
    max_pixels: Positive = Field(50_000_000, description="Larger images are refused as bombs.")

    def problems(self) -> Iterator[Problem]:
        if self.held_out_source is None and self.held_out_fraction == 0:
            yield (
                "held_out_fraction",
                "0 leaves nothing to validate on; give a fraction such as 0.05"
                " or name corpus.held_out_source",
            )


class CodecObjective(Section):
    """Reconstruction and regularisation (Eq. 6); reductions are in latentlm/codec/objectives.py."""

    pixel: Literal["l2", "l1"] = "l2"
    beta: Weight = Field(1e-2, description="Of ‖μ‖² (σ-VAE) or of the KL (diagonal Gaussian).")
    perceptual_weight: Weight = 0.0
    perceptual_features: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    adversarial_weight: Weight = 0.0
    adversarial_start_step: Annotated[int, Field(ge=0)] = 0


class Optimizer(Section):
    """AdamW with warm-up and a cosine schedule."""

    learning_rate: Rate
    betas: Betas = (0.9, 0.98)
    weight_decay: Weight = 0.1
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    final_learning_rate_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    clip_norm: Rate | None = 1.0


class CodecTraining(Section):
    """How the codec is trained, before anything else."""

    steps: Positive
    batch_size: Positive = Field(description="Images a step over all workers.")
    optimizer: Optimizer
    objective: CodecObjective = CodecObjective()
    workers: Positive = 1
    checkpoint_every_steps: Positive = 500


class Codec(Section):
    """The σ-VAE, or the diagonal-Gaussian VAE it is compared with."""

    kind: Literal["image_vit"] = "image_vit"
    patch_size: int
    latent_width: int
    encoder: TransformerSettings
    decoder: TransformerSettings
    variance: Annotated[VarianceSettings, Field(discriminator="kind")]
    training: CodecTraining

    def settings(self, corpus: Corpus) -> ImageCodecSettings:
        """The codec for images of this corpus."""
        return ImageCodecSettings(
            image_size=corpus.image_size,
            channels=corpus.channels,
            patch_size=self.patch_size,
            latent_width=self.latent_width,
            encoder=self.encoder,
            decoder=self.decoder,
            variance=self.variance,
        )


class Latents(Section):
    """Encoding with the frozen codec: an actor pool, and the cache of posteriors on disk."""

    mode: Literal["cached", "streamed"] = Field(
        "cached",
        description="cached: encode once into the latent cache; streamed: encode in every epoch.",
    )
    actors: Positive = Field(1, description="Encoder actors; when streamed, for each Train worker.")
    cpus_per_actor: Rate = 1.0
    gpus_per_actor: Weight = 0.0
    batch_size: Positive = Field(256, description="Images encoded at once.")


class Model(Section):
    """LatentLM; what the codec and the corpus already say is not repeated here."""

    kind: Literal["latent_lm"] = "latent_lm"
    width: int
    depth: int
    heads: int
    kv_heads: int | None = None
    ffn_width: int
    rope_base: float = 10000.0
    norm_eps: float = 1e-6
    head: HeadSettings
    diffusion: DiffusionSettings = DiffusionSettings()
    initial_weights: str | None = Field(
        None, description="Folder of an exported model to start from; default: from scratch."
    )

    def settings(self, corpus: Corpus, codec: Codec) -> LatentLMSettings:
        """The model for latents of this codec and classes of this corpus."""
        fields = self.model_dump(exclude={"initial_weights", "head", "diffusion"})
        return LatentLMSettings(
            **fields,
            head=self.head,
            diffusion=self.diffusion,
            classes=corpus.classes,
            latent_count=(corpus.image_size // codec.patch_size) ** 2,
            latent_width=codec.latent_width,
        )


class Zero(Section):
    """DeepSpeed ZeRO: 0 replicates; 1, 2, 3 shard optimizer state, gradients, parameters."""

    stage: Literal[0, 1, 2, 3] = 1


class Retention(Section):
    """Which checkpoints are kept: the newest `latest` and the best by validation loss."""

    every_steps: Positive = 500
    latest: Annotated[int, Field(ge=2)] = 2
    best: Annotated[int, Field(ge=0)] = 1


class Train(Section):
    """Training of the model under Ray Train and DeepSpeed."""

    steps: Positive
    batch_size: Positive = Field(description="Images a step over all workers and accumulation.")
    accumulation: Positive = Field(1, description="Micro-batches a worker adds up in a step.")
    workers: Positive = 1
    cpus_per_worker: Rate = 1.0
    threads_per_worker: Positive = Field(1, description="Torch threads; workers × threads ≤ cores.")
    gpus_per_worker: Weight = Field(0.0, description="1 on a GPU cluster; the device follows.")
    max_failures: Annotated[int, Field(ge=0)] = Field(3, description="Restarts of lost workers.")
    zero: Zero = Zero()
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 autocast where the processor computes in it, else fp32."
    )
    optimizer: Optimizer
    ema_decay: Fraction = 0.9999
    label_dropout: Fraction = Field(0.1, description="Share of rows trained without their class.")
    timesteps_per_token: Positive = 4
    validate_every_steps: Positive = 250
    validation_items: Positive = 512
    checkpoint: Retention = Retention()

    def problems(self) -> Iterator[Problem]:
        if self.validation_items < self.workers:
            yield (
                "validation_items",
                f"{self.validation_items} is fewer than train.workers = {self.workers};"
                f" give {self.workers} or more",
            )
        parts = self.workers * self.accumulation
        if self.batch_size % parts:
            down, up = self.batch_size // parts * parts, (self.batch_size // parts + 1) * parts
            choice = f"{down} or {up}" if down else f"{up}"
            yield (
                "batch_size",
                f"{self.batch_size} is not divisible by workers × accumulation = {parts};"
                f" choose {choice}",
            )


class Evaluate(Section):
    """Generated images against held-out ones."""

    images: Annotated[int, Field(ge=2)] = Field(
        1000, description="Images generated for each CFG scale."
    )
    cfg_scales: tuple[Weight, ...] = Field(
        (), description="Scored in one pass beside sample.cfg_scale."
    )
    feature_extractor: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    feature_size: Positive = Field(128, description="Pixels a side that features are read at.")
    classifier_epochs: Positive = 2
    classifier_items: Positive = Field(60_000, description="Real images the judge learns from.")
    actors: Positive = Field(1, description="Actors that generate and score.")
    batch_size: Positive = Field(250, description="Rows generated at once, guidance not counted.")


class Tracking(Section):
    """Where results go. Without `uri`: $LATENTLM_HOME/mlflow.db."""

    uri: str | None = None
    experiment: str = "latentlm"
    system_metrics: bool = True


class Cluster(Section):
    """Which Ray: `local` starts one on this machine, `auto` or an address joins one."""

    address: str = "local"
    cpus: Positive | None = Field(
        None, description="Logical CPUs of a local Ray; default: two for each core."
    )


class Sweep(Section):
    """Grid over dotted paths: every combination of the listed values is a point."""

    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)

    def problems(self) -> Iterator[Problem]:
        for path, values in self.grid.items():
            if not values:
                yield f"grid.{path}", "the list is empty; give at least one value"


class Experiment(Section):
    """A whole experiment. Its key is the hash of its resolved form."""

    name: Annotated[str, Field(pattern=r"^[\w.\- ]{1,100}$")]
    question: str = Field("", description="What the experiment answers, one sentence.")
    reproduces: str | None = Field(None, description='"Table 1", "Figure 10a" of the paper.')
    seed: Annotated[int, Field(ge=0)] = 0
    corpus: Corpus
    codec: Codec
    latents: Latents = Latents()
    model: Model
    train: Train
    sample: SamplerSettings = SamplerSettings()
    evaluate: Evaluate = Evaluate()
    tracking: Tracking = Tracking()
    cluster: Cluster = Cluster()
    sweep: Sweep | None = None

    def codec_settings(self) -> ImageCodecSettings:
        return self.codec.settings(self.corpus)

    def model_settings(self) -> LatentLMSettings:
        return self.model.settings(self.corpus, self.codec)
