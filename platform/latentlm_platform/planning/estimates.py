"""What a run will take, estimated from its settings alone: operations, memory, disk, seconds.

Counts are exact where they say parameters, and FLOPs are where every item has as many latents; of
text with latents the share of latents is assumed. Memory of activations, disk and wall-clock are
estimates with the conventions written here. Neither corpus nor weights are read.
"""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import nn

from latentlm.catalogue import build_codec, build_model
from latentlm.models import flops_per_item, flops_per_sequence
from latentlm.settings import (
    CodecSettings,
    DiTSettings,
    LatentLMSettings,
    ModelSettings,
    SpeechCodecSettings,
    VectorQuantizedSettings,
)
from latentlm_platform.cluster import cores
from latentlm_platform.experiment.corpora import Corpus, CorpusKind, MultimodalMixture
from latentlm_platform.experiment.sections import Experiment, codec_settings, model_settings
from latentlm_platform.hardware import autocast_dtype, matmul_peak_flops, pick_device

FLOAT = 4  # bytes
PROCESS_BYTES = 2**30  # resident size measured of a worker with torch, Ray Data and DeepSpeed
UTILISATION = (
    0.22  # of the fp32 matmul peak of its threads; measured 0.16 to 0.25 at 1.4M parameters
)
STAGE_START_S = 30.0  # until a stage answers; measured 25 to 35 on two cores
FEATURES_PER_CORE_S = 61.0  # images a second through EfficientNet-Lite0 at 128 pixels
FEATURE_PIXELS = 128
CLASSIFIER_PER_CORE_S = 2000.0  # images a second through its training at 32 pixels
CLASSIFIER_PIXELS = 32
LATENT_SHARES = {"text": 0.0, "pairs": 0.8, "interleaved": 0.5}  # of positions; our assumption
TEXT_TOKENS_PER_S = 4.0  # that speech says; our assumption: 2.7 English words
UNUSED_BY_CODES = ("head.", "latent_projection.")  # of a model whose latents are words


@dataclass(frozen=True)
class Counts:
    """Parameters, and the tokens and FLOPs of a training step (forward and backward)."""

    parameters: int
    head_parameters: int
    codec_parameters: int
    tokens_per_step: int
    flops_per_step: int


class Row(NamedTuple):
    """What one row of a training batch holds: positions; latents and words that are predicted."""

    positions: int
    latents: int
    words: int


def counts(experiment: Experiment) -> Counts:
    """Parameters from the meta device, and the FLOPs that follow from them."""
    codec, model = _settings(experiment)
    with torch.device("meta"):
        model_net, codec_net = build_model(model), build_codec(codec)
    used = {n: p.numel() for n, p in model_net.named_parameters() if _is_used(n, codec)}
    row, train = row_of(experiment), experiment.train
    return Counts(
        parameters=sum(used.values()),
        head_parameters=sum(count for n, count in used.items() if n.startswith("head.")),
        codec_parameters=_count(codec_net),
        tokens_per_step=train.batch_size * row.positions,
        flops_per_step=train.batch_size
        * _flops_per_row(model, row, timesteps_per_token=train.timesteps_per_token),
    )


def row_of(experiment: Experiment) -> Row:
    """One image with its class, or one packed row of text and latents."""
    codec, _ = _settings(experiment)
    corpus: CorpusKind = experiment.corpus
    if isinstance(codec, SpeechCodecSettings):
        rate = codec.sample_rate_hz / codec.hop
        share = rate / (rate + TEXT_TOKENS_PER_S)
    elif isinstance(corpus, MultimodalMixture):
        parts = {name: getattr(corpus, name).proportion for name in LATENT_SHARES}
        share = sum(LATENT_SHARES[n] * part for n, part in parts.items()) / sum(parts.values())
    else:
        return Row(codec.latent_count, codec.latent_count, 0)
    positions = _row_positions(corpus)
    latents = 0 if isinstance(codec, VectorQuantizedSettings) else round(share * positions)
    return Row(positions, latents, positions - latents)


def _row_positions(corpus: CorpusKind) -> int:
    return 0 if isinstance(corpus, Corpus) else corpus.sequence_tokens


def _settings(experiment: Experiment) -> tuple[CodecSettings, ModelSettings]:
    """Codec and model, of whatever kind."""
    codec = codec_settings(experiment.codec, corpus=experiment.corpus)
    return codec, model_settings(experiment.model, corpus=experiment.corpus, codec=codec)


def _flops_per_row(model: ModelSettings, row: Row, *, timesteps_per_token: int) -> int:
    if not isinstance(model, LatentLMSettings):
        return flops_per_item(model, timesteps_per_token)
    return flops_per_sequence(model, **row._asdict(), timesteps_per_token=timesteps_per_token)


def _is_used(name: str, codec: CodecSettings) -> bool:
    return not (isinstance(codec, VectorQuantizedSettings) and name.startswith(UNUSED_BY_CODES))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def memory_per_rank(experiment: Experiment, *, parameters: int) -> dict[str, int]:
    """Bytes of one training rank by part; weights are fp32, also under bf16 autocast.

    ZeRO 1 shards the optimizer's states, 2 the gradients too, 3 the parameters and their average
    too; from stage 1 on DeepSpeed keeps a second, sharded copy of the weights. `activations` is
    an estimate: what a micro-batch keeps for its backward pass.
    """
    stage, ranks = experiment.train.zero.stage, experiment.train.workers
    whole = FLOAT * parameters

    def sharded(parts: int, *, since: int) -> int:
        return -(-parts * whole // ranks) if stage >= since else parts * whole

    parts = {
        "parameters": sharded(1, since=3),
        "gradients": sharded(1, since=2),
        "optimizer_states": sharded(2, since=1),
        "optimizer_weights": sharded(1, since=1) if stage else 0,
        "average": sharded(1, since=3),
        "activations": _activation_bytes(experiment),
        "process": PROCESS_BYTES,
    }
    return {**parts, "total": sum(parts.values())}


def _activation_bytes(experiment: Experiment) -> int:
    """Each block keeps about 8 vectors of its width, 3 of its feed-forward width, its attention.

    AdaLN keeps 4 vectors more. The head's blocks do so for every timestep of every latent, and so
    do a DiT's, which has no other.
    Recomputed layers keep their input, and one of them all of it. On a GPU no kernel keeps the
    attention; bf16 autocast halves everything.
    """
    train, (_, model), row = experiment.train, _settings(experiment), row_of(experiment)
    on_gpu = train.gpus_per_worker > 0
    items = train.batch_size // (train.workers * train.accumulation)
    items *= train.timesteps_per_token if isinstance(model, DiTSettings) else 1
    vectors = 12 if isinstance(model, DiTSettings) else 8
    layer = items * row.positions * (vectors * model.width + 3 * model.ffn_width)
    layer += 0 if on_gpu else items * row.positions**2 * model.heads
    if train.activation_checkpointing:
        backbone = model.depth * items * row.positions * model.width + layer
    else:
        backbone = model.depth * layer
    halved = train.precision != "fp32" if on_gpu else _cpu_has_bf16(experiment)
    head = _head_numbers(model, rows=items * row.latents * train.timesteps_per_token)
    return (backbone + head) * (FLOAT // 2 if halved else FLOAT)


def _cpu_has_bf16(experiment: Experiment) -> bool:
    return autocast_dtype(experiment.train.precision, torch.device("cpu")) is not None


def _head_numbers(model: ModelSettings, *, rows: int) -> int:
    if not isinstance(model, LatentLMSettings):
        return 0
    return model.head.depth * rows * (8 * model.width + 3 * model.head.ffn_width)


def disk_bytes(experiment: Experiment, counted: Counts) -> dict[str, int]:
    """Bytes that a run leaves, by part.

    A checkpoint holds the weights, their average (on every rank, unless ZeRO 3 shards it), the
    optimizer's two states and, from ZeRO 1 on, its own copy of the weights. The latent cache is
    bounded by what training can see: no more items, flipped or not, than steps × batch, or than
    the corpus has where `corpus.records` says it.
    """
    train = experiment.train
    kept = train.checkpoint.latest + train.checkpoint.best
    averages = 1 if train.zero.stage == 3 else train.workers
    numbers = 1 + averages + 2 + (1 if train.zero.stage else 0)
    parts = {
        "checkpoints": kept * numbers * FLOAT * counted.parameters,
        "export": 2 * FLOAT * counted.parameters,
        "codec": 2 * 4 * FLOAT * counted.codec_parameters,
        "latent_cache_at_most": _latent_cache_bytes(experiment),
    }
    return {**parts, "total": sum(parts.values())}


def _latent_cache_bytes(experiment: Experiment) -> int:
    train, corpus, codec = experiment.train, experiment.corpus, _settings(experiment)[0]
    if experiment.latents.mode == "streamed":
        return 0
    row, seen = row_of(experiment), train.steps * train.batch_size
    if isinstance(codec, VectorQuantizedSettings):
        return FLOAT * seen * row.positions
    if isinstance(corpus, Corpus) and corpus.records is not None:
        seen = min(seen, corpus.records * (2 if corpus.flip else 1))
    numbers = 2 if codec.variance.kind == "diagonal_gaussian" else 1
    return FLOAT * numbers * seen * row.latents * codec.latent_width


def unknown_pace(experiment: Experiment) -> str | None:
    """Why wall-clock cannot be told; None where it can: of class-conditional image models alone."""
    kinds = (experiment.corpus.kind, experiment.codec.kind, experiment.model.kind)
    if kinds[:2] == ("class_images", "image_vit"):
        return None
    return f"nothing like {', '.join(kinds)} was measured yet"


def wall_clock(experiment: Experiment, counted: Counts) -> dict[str, float]:
    """Seconds by stage on a machine like this one, from a matmul measured now.

    seconds = FLOPs / (measured fp32 peak × UTILISATION × processes that really run at once) +
    STAGE_START_S. A stage whose work is already there by its key takes none of them. Of
    class-conditional image models alone: `unknown_pace` says why not of others.
    """
    train, codec, latents = experiment.train, experiment.codec.training, experiment.latents
    device = pick_device()
    speed = UTILISATION * _peak_of_one_process(device, threads=train.threads_per_worker)
    per_image = counted.codec_parameters * row_of(experiment).latents  # 2 a weight, half of them
    encode = train.steps * train.batch_size * per_image
    cached = latents.mode == "cached"

    def seconds(flops: float, processes: int) -> float:
        room = max(1, cores() // train.threads_per_worker)
        at_once = min(processes, room) if device.type == "cpu" else processes
        return STAGE_START_S + flops / (speed * at_once)

    generate = _generated_images(experiment) * generate_flops(experiment, counted)
    parts = {
        "codec_training": seconds(codec.steps * codec.batch_size * 6 * per_image, codec.workers),
        "encoding": seconds(encode if cached else 0, latents.actors),
        "model_training": seconds(
            train.steps * counted.flops_per_step + (0 if cached else encode), train.workers
        ),
        "evaluation": seconds(generate, experiment.evaluate.actors) + _scoring_s(experiment),
    }
    return {**parts, "total": sum(parts.values())}


def generate_flops(experiment: Experiment, counted: Counts) -> int:
    """Of one image: the backbone once and the head `sample.steps` times for each latent.

    A DiT runs whole `sample.steps` times. Twice over with guidance, and the decoder once.
    """
    sample, latents = experiment.sample, row_of(experiment).latents
    rows = 1 if sample.cfg_scale == 1 else 2
    _, model = _settings(experiment)
    if isinstance(model, DiTSettings):
        forward = flops_per_item(model, 1) // 3  # backward is twice a forward pass
        return rows * sample.steps * forward + latents * counted.codec_parameters
    body = counted.parameters - counted.head_parameters
    per_latent = 2 * body + 2 * counted.head_parameters * sample.steps
    return latents * (rows * per_latent + counted.codec_parameters)


@cache
def _peak_of_one_process(device: torch.device, *, threads: int) -> float:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return matmul_peak_flops(device, torch.float32)
    finally:
        torch.set_num_threads(before)


def _generated_images(experiment: Experiment) -> int:
    scales = {experiment.sample.cfg_scale, *experiment.evaluate.cfg_scales}
    return experiment.evaluate.images * len(scales)


def _scoring_s(experiment: Experiment) -> float:
    """Features of generated, reconstructed and two sets of real images; training the judge."""
    evaluate = experiment.evaluate
    scored = _generated_images(experiment) + 3 * evaluate.images
    features = scored * (evaluate.feature_size / FEATURE_PIXELS) ** 2 / FEATURES_PER_CORE_S
    learned = evaluate.classifier_epochs * evaluate.classifier_items
    area = (experiment.corpus.image_size / CLASSIFIER_PIXELS) ** 2
    return features / min(evaluate.actors, cores()) + learned * area / CLASSIFIER_PER_CORE_S
