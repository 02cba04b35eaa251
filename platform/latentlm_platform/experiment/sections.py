"""The Experiment: what a checked YAML says. Frozen; imports neither torch nor ray.

Sections in the order of a run: corpus → codec → latents → model → train → sample → evaluate,
then where it runs (cluster, tracking). Every field has its unit in its name or description.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

from pydantic import Field, Tag

from latentlm.settings import (
    CodecSettings,
    FixedVariance,
    HalfNormalVariance,
    ImageCodecSettings,
    ModelSettings,
    SamplerSettings,
    SpeechCodecSettings,
    TextSamplerSettings,
    TransformerSettings,
    VarianceSettings,
    VectorQuantizedSettings,
)
from latentlm.settings.rules import Problem
from latentlm_platform.experiment.corpora import (
    AnyCorpus,
    Corpus,
    CorpusKind,
    MultimodalMixture,
    TranscribedSpeech,
)
from latentlm_platform.experiment.fields import (
    Fraction,
    Positive,
    Rate,
    Section,
    Weight,
    by_kind,
)
from latentlm_platform.experiment.models import AnyModel, CodeModel, DiTModel, ModelKind
from latentlm_platform.experiment.search import Sweep

Betas = tuple[Fraction, Fraction]


class CodecObjective(Section):
    """Reconstruction and regularisation (Eq. 6); reductions are in latentlm/codec/objectives.py."""

    pixel: Literal["l2", "l1"] = "l2"
    beta: Weight = Field(
        1e-2,
        description="Of ‖μ‖² (σ-VAE) or of the KL (diagonal Gaussian); a codebook's terms have 1.",
    )
    perceptual_weight: Weight = 0.0
    perceptual_features: Literal["efficientnet_lite0", "vgg16_lpips"] = "efficientnet_lite0"
    perceptual_weights: str | None = Field(
        None, description="File of the weights of vgg16_lpips; latentlm/features.py says its keys."
    )
    adversarial_weight: Weight = 0.0
    adversarial_start_step: Annotated[int, Field(ge=0)] = 0

    def problems(self) -> Iterator[Problem]:
        if self.perceptual_features == "vgg16_lpips" and self.perceptual_weights is None:
            yield (
                "perceptual_weights",
                "vgg16_lpips has no packaged weights; give the path of a file of them,"
                " or set perceptual_features to efficientnet_lite0",
            )
        if self.perceptual_features != "vgg16_lpips" and self.perceptual_weights is not None:
            yield (
                "perceptual_weights",
                f"{self.perceptual_features} brings its own weights; remove the path,"
                " or set perceptual_features to vgg16_lpips",
            )


class Optimizer(Section):
    """AdamW with warm-up and a cosine schedule, which may reach beyond the last step."""

    learning_rate: Rate
    betas: Betas = (0.9, 0.98)
    weight_decay: Weight = 0.1
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    schedule_steps: Positive | None = Field(
        None, description="Steps that the cosine spans, if training ends before it does (§3.2.1)."
    )
    final_learning_rate_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    clip_norm: Rate | None = 1.0


class CodecTraining(Section):
    """How the codec is trained, before anything else."""

    steps: Positive
    batch_size: Positive = Field(description="Images a step over all workers.")
    optimizer: Optimizer
    objective: CodecObjective = CodecObjective()
    encoder_weights: str | None = Field(
        None, description="Codec folder or .safetensors/.pt file that the encoder starts from."
    )
    encoder_layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Learning rate of encoder block l of L: times this to the L + 1 - l."
    )
    workers: Positive = 1
    checkpoint_every_steps: Positive = 500


class ImageCodec(Section):
    """The σ-VAE of images, or the diagonal-Gaussian VAE it is compared with."""

    kind: Literal["image_vit"] = "image_vit"
    patch_size: int
    latent_width: int
    encoder: TransformerSettings
    decoder: TransformerSettings
    variance: Annotated[VarianceSettings, Field(discriminator="kind")]
    training: CodecTraining

    def settings(self, corpus: Corpus | MultimodalMixture) -> ImageCodecSettings:
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


class SpeechCodec(Section):
    """The σ-VAE of speech (§3.3); the decoder mirrors the encoder."""

    kind: Literal["speech_conv"]
    channels: int = 32
    strides: tuple[int, ...] = (2, 4, 5, 5, 8)
    depths: tuple[int, ...] = (3, 3, 3, 3, 3, 12)
    kernel: int = 7
    latent_width: int
    variance: Annotated[VarianceSettings, Field(discriminator="kind")]
    training: CodecTraining
    training_source: str | None = Field(
        None, description="Recordings the codec is trained on; default: the corpus."
    )
    segment_seconds: Rate = Field(1.0, description="Cut from every recording for training.")

    def settings(self, corpus: TranscribedSpeech) -> SpeechCodecSettings:
        """The codec for recordings of this corpus."""
        own = {"variance", "training", "training_source", "segment_seconds"}
        return SpeechCodecSettings(
            **self.model_dump(exclude=own),
            variance=self.variance,
            sample_rate_hz=corpus.sample_rate_hz,
        )


class VectorQuantizedCodec(Section):
    """The VQ codec of VQ-MLLM (§3.2); its codes are words of the model."""

    kind: Literal["vector_quantized"]
    codebook_size: int = 16_384
    code_width: int = 8
    latent_width: int = 256
    width: int = 128
    width_factors: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    training: CodecTraining

    def settings(self, corpus: Corpus | MultimodalMixture) -> VectorQuantizedSettings:
        """The codec for images of this corpus."""
        return VectorQuantizedSettings(
            **self.model_dump(exclude={"training"}),
            image_size=corpus.image_size,
            channels=corpus.channels,
        )


CodecKind = ImageCodec | SpeechCodec | VectorQuantizedCodec
AnyCodec = Annotated[
    Annotated[ImageCodec, Tag("image_vit")]
    | Annotated[SpeechCodec, Tag("speech_conv")]
    | Annotated[VectorQuantizedCodec, Tag("vector_quantized")],
    by_kind("codec"),
]


class Latents(Section):
    """Encoding with the frozen codec: an actor pool, and the cache of posteriors on disk."""

    mode: Literal["cached", "streamed", "write_through"] = Field(
        "cached",
        description="cached: encode once, then train from the latent cache; streamed: encode in"
        " every epoch; write_through: the first epoch encodes while it trains and fills the cache.",
    )
    statistics_records: Positive = Field(
        8192, description="Records that scale latents, where not all are encoded beforehand."
    )
    actors: Positive = Field(1, description="Encoder actors; unless cached, for each Train worker.")
    cpus_per_actor: Rate = 1.0
    gpus_per_actor: Weight = 0.0
    batch_size: Positive = Field(256, description="Images encoded at once.")
    variance: Annotated[FixedVariance | HalfNormalVariance, Field(discriminator="kind")] | None = (
        Field(None, description="Draws latents by this law; default: the one of the codec.")
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
    batch_size: Positive = Field(
        description="Images, or packed rows of corpus.sequence_tokens, a step over all workers."
    )
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
    activation_checkpointing: bool = Field(
        False, description="Recompute a layer's activations in the backward pass: less memory."
    )
    optimizer: Optimizer
    ema_decay: Fraction = 0.9999
    label_dropout: Fraction = Field(
        0.1, description="Share of rows trained without their condition."
    )
    seed: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Of the model's weights, order and noise; default: the experiment's seed.",
    )
    alpha: Weight = Field(1.0, description="Weight of the diffusion loss beside that of words.")
    stop_weight: Weight = Field(
        1.0, description="Weight of EOD and CONTINUE, the words that end latents, if model.stop."
    )
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


TaskName = Literal["generation", "reconstruction", "exposure"]


class Evaluate(Section):
    """What is measured of a trained model, on held-out items."""

    tasks: tuple[TaskName, ...] = Field(
        get_args(TaskName), description="What is measured; each name once, in any order."
    )
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
    exposure_bias_images: Annotated[int, Field(ge=0)] = Field(
        256, description="Held-out images that exposure bias is measured on; 0 leaves it out."
    )

    def problems(self) -> Iterator[Problem]:
        if not self.tasks:
            yield "tasks", f"the list is empty; give one or more of {', '.join(get_args(TaskName))}"
        for place, name in enumerate(self.tasks):
            if name in self.tasks[:place]:
                yield f"tasks.{place}", f"{name} is already listed; remove one of the two"
        if 0 < self.exposure_bias_images < 16:
            yield (
                "exposure_bias_images",
                f"{self.exposure_bias_images} is too few for eight groups with a deviation each;"
                " give 16 or more, or 0 to leave it out",
            )


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


@dataclass(frozen=True, kw_only=True)
class Sample(SamplerSettings):
    """How latents are drawn and, by a model with text, words."""

    text: TextSamplerSettings = field(default_factory=TextSamplerSettings)

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        for path, sentence in self.text.problems():
            yield f"text.{path}", sentence


if TYPE_CHECKING:
    # Stages read these kinds: pipeline.py ends every other before it starts (plan.untrainable).
    OneCorpus = Corpus
    OneCodec = ImageCodec | VectorQuantizedCodec
    OneModel = ModelKind
    OneCodecSettings = ImageCodecSettings | VectorQuantizedSettings
else:
    OneCorpus, OneCodec, OneModel = AnyCorpus, AnyCodec, AnyModel


class Experiment(Section):
    """A whole experiment. Its key is the hash of its resolved form."""

    name: Annotated[str, Field(pattern=r"^[\w.\- ]{1,100}$")]
    question: str = Field("", description="What the experiment answers, one sentence.")
    reproduces: str | None = Field(None, description='"Table 1", "Figure 10a" of the paper.')
    seed: Annotated[int, Field(ge=0)] = 0
    corpus: OneCorpus
    codec: OneCodec
    latents: Latents = Latents()
    model: OneModel
    train: Train
    sample: Sample = Sample()
    evaluate: Evaluate = Evaluate()
    tracking: Tracking = Tracking()
    cluster: Cluster = Cluster()
    sweep: Sweep | None = None

    @property
    def model_seed(self) -> int:
        """What the model's training draws with; codec, latents and evaluation keep `seed`."""
        return self.seed if self.train.seed is None else self.train.seed

    def codec_settings(self) -> "OneCodecSettings":
        """The codec for signals of the corpus; ValueError where their kinds do not go together."""
        return cast("OneCodecSettings", codec_settings(self.codec, corpus=self.corpus))

    def model_settings(self) -> ModelSettings:
        """The model for latents of the codec and classes or words of the corpus; ValueError too."""
        codec = codec_settings(self.codec, corpus=self.corpus)
        return model_settings(self.model, corpus=self.corpus, codec=codec)


def codec_settings(codec: CodecKind, *, corpus: CorpusKind) -> CodecSettings:
    """The codec for signals of the corpus."""
    if isinstance(codec, SpeechCodec):
        if isinstance(corpus, TranscribedSpeech):
            return codec.settings(corpus)
    elif not isinstance(corpus, TranscribedSpeech):
        return codec.settings(corpus)
    raise ValueError(f"codec.kind {codec.kind} does not fit corpus.kind {corpus.kind}")


def model_settings(model: ModelKind, *, corpus: CorpusKind, codec: CodecSettings) -> ModelSettings:
    """The model for latents of the codec and classes or words of the corpus."""
    count = None if isinstance(codec, SpeechCodecSettings) else codec.latent_count
    classes = corpus.classes if isinstance(corpus, Corpus) else None
    width = codec.latent_width
    if isinstance(model, DiTModel):
        if classes is None or count is None:
            raise ValueError(f"model.kind {model.kind} does not fit corpus.kind {corpus.kind}")
        return model.settings(classes=classes, latent_count=count, latent_width=width)
    codes = codec.codebook_size if isinstance(codec, VectorQuantizedSettings) else 0
    if isinstance(model, CodeModel):
        if classes is None or count is None or not codes:
            raise ValueError(f"model.kind {model.kind} does not fit codec.kind {codec.kind}")
        return model.settings(classes=classes, latent_count=count, codes=codes)
    return model.settings(classes=classes, latent_count=count, latent_width=width, codes=codes)
