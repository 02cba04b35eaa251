"""What a run will take, estimated from its settings alone: operations, memory, disk, seconds.

Counts are exact where they say parameters or FLOPs; memory of activations, disk and wall-clock
are estimates with the conventions written here. Neither corpus nor weights are read.
"""

from dataclasses import dataclass

import torch
from torch import nn

from latentlm.catalogue import build_codec, build_model
from latentlm.models import flops_per_item
from latentlm_platform.arithmetic import cores
from latentlm_platform.experiment import Experiment
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


@dataclass(frozen=True)
class Counts:
    """Parameters, and FLOPs of a step (forward and backward) or of an image."""

    parameters: int
    head_parameters: int
    codec_parameters: int
    tokens_per_step: int
    flops_per_step: int
    codec_flops_per_step: int
    encode_flops_per_image: int
    generate_flops_per_image: int


def counts(experiment: Experiment) -> Counts:
    """Exact parameters, from the meta device, and the FLOPs that follow from them.

    A product by a matrix is 2 FLOPs a weight and row forward, 4 backward. Generating runs the
    backbone once and the head `sample.steps` times for each latent, twice over with guidance.
    """
    model_settings, codec_settings = experiment.model_settings(), experiment.codec_settings()
    with torch.device("meta"):
        model, codec = build_model(model_settings), build_codec(codec_settings)
    parameters, codec_parameters = _count(model), _count(codec)
    head = sum(p.numel() for name, p in model.named_parameters() if name.startswith("head."))
    train, latents = experiment.train, model_settings.latent_count
    item = flops_per_item(model_settings, timesteps_per_token=train.timesteps_per_token)
    rows = 1 if experiment.sample.cfg_scale == 1 else 2
    per_latent = 2 * (parameters - head) + 2 * head * experiment.sample.steps
    return Counts(
        parameters=parameters,
        head_parameters=head,
        codec_parameters=codec_parameters,
        tokens_per_step=train.batch_size * latents,
        flops_per_step=train.batch_size * item,
        codec_flops_per_step=6 * codec_parameters * latents * experiment.codec.training.batch_size,
        encode_flops_per_image=codec_parameters * latents,
        generate_flops_per_image=rows * latents * per_latent + codec_parameters * latents,
    )


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

    The head's blocks do so for every timestep of every latent. bf16 autocast halves it.
    """
    train, model = experiment.train, experiment.model_settings()
    items = train.batch_size // (train.workers * train.accumulation)
    rows = items * model.latent_count
    backbone = model.depth * (
        rows * (8 * model.width + 3 * model.ffn_width) + rows * model.heads * model.latent_count
    )
    head_width = 8 * model.width + 3 * model.head.ffn_width
    head = model.head.depth * rows * train.timesteps_per_token * head_width
    halved = autocast_dtype(train.precision, torch.device("cpu")) is not None
    return (backbone + head) * (FLOAT // 2 if halved else FLOAT)


def disk_bytes(experiment: Experiment, counted: Counts) -> dict[str, int]:
    """Bytes that a run leaves, by part.

    A checkpoint holds the weights, their average (on every rank, unless ZeRO 3 shards it), the
    optimizer's two states and, from ZeRO 1 on, its own copy of the weights. The latent cache is
    bounded by what training can see: no more images, flipped or not, than steps × batch.
    """
    train, codec = experiment.train, experiment.codec
    kept = train.checkpoint.latest + train.checkpoint.best
    model = experiment.model_settings()
    per_image = FLOAT * model.latent_count * model.latent_width
    if codec.variance.kind == "diagonal_gaussian":
        per_image *= 2
    seen = train.steps * train.batch_size if experiment.latents.mode == "cached" else 0
    averages = 1 if train.zero.stage == 3 else train.workers
    numbers = 1 + averages + 2 + (1 if train.zero.stage else 0)
    parts = {
        "checkpoints": kept * numbers * FLOAT * counted.parameters,
        "export": 2 * FLOAT * counted.parameters,
        "codec": 2 * 4 * FLOAT * counted.codec_parameters,
        "latent_cache_at_most": seen * per_image,
    }
    return {**parts, "total": sum(parts.values())}


def wall_clock(experiment: Experiment, counted: Counts) -> dict[str, float]:
    """Seconds by stage on a machine like this one, from a matmul measured now.

    seconds = FLOPs / (measured fp32 peak × UTILISATION × processes that really run at once) +
    STAGE_START_S. A stage whose work is already there by its key takes none of them.
    """
    train, codec, latents = experiment.train, experiment.codec.training, experiment.latents
    device = pick_device()
    speed = UTILISATION * _peak_of_one_process(device, threads=train.threads_per_worker)
    encode = train.steps * train.batch_size * counted.encode_flops_per_image
    cached = latents.mode == "cached"

    def seconds(flops: float, processes: int) -> float:
        room = max(1, cores() // train.threads_per_worker)
        at_once = min(processes, room) if device.type == "cpu" else processes
        return STAGE_START_S + flops / (speed * at_once)

    generate = _generated_images(experiment) * counted.generate_flops_per_image
    parts = {
        "codec_training": seconds(codec.steps * counted.codec_flops_per_step, codec.workers),
        "encoding": seconds(encode if cached else 0, latents.actors),
        "model_training": seconds(
            train.steps * counted.flops_per_step + (0 if cached else encode), train.workers
        ),
        "evaluation": seconds(generate, experiment.evaluate.actors) + _scoring_s(experiment),
    }
    return {**parts, "total": sum(parts.values())}


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
