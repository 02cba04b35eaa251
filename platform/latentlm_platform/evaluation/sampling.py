"""Pictures from one exported model, in this process."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from latentlm.generate import sample_latents
from latentlm.load import load
from latentlm.media import encode_png, tile_images
from latentlm.models import CodeLM
from latentlm.randomness import RowNoise
from latentlm.signals import signal_to_pixels
from latentlm_platform.errors import UserError
from latentlm_platform.experiment.files import load_experiment
from latentlm_platform.hardware import pick_device
from latentlm_platform.home import artifacts_folder
from latentlm_platform.runs import find_run


@dataclass(frozen=True)
class SampleRequest:
    """Which model, which classes, and how; None is what the experiment says."""

    run: str
    classes: str | None
    count: int
    cfg_scale: float | None
    steps: int | None
    seed: int


def sample_images(request: SampleRequest) -> tuple[bytes, dict[str, Any]]:
    """A PNG with one row a class, and what it shows."""
    export = _find_export(request.run)
    try:
        loaded = load(export)
    except ValueError as error:
        raise UserError(str(error)) from error
    classes = _parse_classes(request.classes, loaded.model.settings.classes or 0)
    if request.count < 1:
        raise UserError(f"--count is {request.count}; give 1 or more images a class")
    sampler = load_experiment(export / "experiment.yaml").sample
    sampler = replace(
        sampler,
        steps=sampler.steps if request.steps is None else request.steps,
        cfg_scale=sampler.cfg_scale if request.cfg_scale is None else request.cfg_scale,
    )
    broken = list(sampler.problems())
    if not isinstance(loaded.model, CodeLM):
        broken += sampler.problems_with(loaded.model.settings.diffusion)
    for path, sentence in broken:
        raise UserError(f"--{path.replace('_', '-')}: {sentence}")
    device = pick_device()
    model, codec = loaded.model.to(device), loaded.codec.to(device)
    labels_B = torch.tensor(classes, device=device).repeat_interleave(request.count)
    ids_B = torch.arange(request.count, device=device).repeat(len(classes))
    with torch.inference_mode():
        latents_BNZ = sample_latents(
            model,
            labels_B,
            cfg_scales_B=torch.full(labels_B.shape, sampler.cfg_scale, device=device),
            sampler=sampler,
            noise=RowNoise(seed=request.seed, ids_B=ids_B),
            text=sampler.text,
        )
        pixels = signal_to_pixels(codec.decode(codec.denormalise(latents_BNZ))).cpu().numpy()
    report = {
        "images": len(pixels),
        "classes": classes,
        "cfg_scale": sampler.cfg_scale,
        "solver": sampler.solver,
        "solver_steps": sampler.steps,
        "seed": request.seed,
        "export": str(export),
    }
    return encode_png(tile_images(pixels, columns=request.count)), report


def _find_export(given: str) -> Path:
    """The export folder that was named, or that of a run's model."""
    if (Path(given) / "model.json").is_file():
        return Path(given)
    record = find_run(given, having="model")
    key = record.artifacts.get("model")
    if key is None:
        raise UserError(
            f"run {record.key} has no trained model yet; `latentlm resume {record.key}`"
        )
    return artifacts_folder("model") / key / "export"


def _parse_classes(text: str | None, classes: int) -> list[int]:
    if text is None:
        return list(range(classes))
    try:
        chosen = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--classes {text!r} is not a list of numbers such as 0,3,7") from error
    outside = [c for c in chosen if not 0 <= c < classes]
    if outside:
        raise UserError(
            f"--classes {outside[0]} is not a class; this model knows 0 … {classes - 1}"
        )
    return chosen
