"""What one exported model makes of a prompt, or of its classes, in this process."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentlm.generate import sample_latents
from latentlm.load import Loaded, load
from latentlm.media import encode_png, encode_wav, tile_images
from latentlm.models import CodeLM
from latentlm.randomness import RowNoise
from latentlm.settings import SpeechCodecSettings
from latentlm.signals import signal_to_pixels
from latentlm_platform.errors import UserError
from latentlm_platform.evaluation.prompts import GivenPart, asked_classes, prompt_parts
from latentlm_platform.experiment.files import load_experiment
from latentlm_platform.experiment.sections import Sample
from latentlm_platform.hardware import pick_device
from latentlm_platform.home import artifacts_folder
from latentlm_platform.runs import find_run

IMAGES_A_CLASS = 8
COLUMNS = 8  # of the pictures in answers to a prompt


@dataclass(frozen=True)
class SampleRequest:
    """Which model, which parts in which order, and how; None is what the experiment says.

    count: images a class (default 8), or answers to the prompt (1). length: words and latents of
    an answer at most.
    """

    run: str
    parts: tuple[GivenPart, ...] = ()
    count: int | None = None
    cfg_scale: float | None = None
    steps: int | None = None
    length: int = 1024
    seed: int = 0


@dataclass(frozen=True)
class Sampled:
    """A PNG of all pictures, WAV files, the texts of each answer, and what they are."""

    report: dict[str, Any]
    picture: bytes | None = None
    sounds: tuple[bytes, ...] = ()
    texts: list[list[str]] = field(default_factory=list)


def sample_parts(request: SampleRequest) -> Sampled:
    """Answers to the prompt by a model with text; by one of classes, pictures, a row a class."""
    export = _find_export(request.run)
    try:
        loaded = load(export)
    except ValueError as error:
        raise UserError(str(error)) from error
    for name, given in (("count", request.count), ("length", request.length)):
        if given is not None and given < 1:
            raise UserError(f"--{name} is {given}; give 1 or more")
    sampler = _sampler(request, export, loaded)
    device = pick_device()
    loaded.model.to(device)
    loaded.codec.to(device)
    how = {
        "cfg_scale": sampler.cfg_scale,
        "solver": sampler.solver,
        "solver_steps": sampler.steps,
        "seed": request.seed,
        "export": str(export),
    }
    draw = _draw_classes if loaded.vocabulary is None else _answer
    sampled = draw(request, loaded, sampler)
    return replace(sampled, report=sampled.report | how)


@torch.inference_mode()
def _draw_classes(request: SampleRequest, loaded: Loaded, sampler: Sample) -> Sampled:
    """A picture with one row a class: image i of every row has the noise of id i."""
    device, count = loaded.model.device, request.count or IMAGES_A_CLASS
    ids_B = torch.arange(count, device=device)
    noise = RowNoise(seed=request.seed, ids_B=ids_B)
    classes = asked_classes(request.parts, loaded, noise=noise.rows(slice(0, 1)))
    labels_B = torch.tensor(classes, device=device).repeat_interleave(count)
    latents_BNZ = sample_latents(
        loaded.model,
        labels_B,
        cfg_scales_B=torch.full(labels_B.shape, sampler.cfg_scale, device=device),
        sampler=sampler,
        noise=RowNoise(seed=request.seed, ids_B=ids_B.repeat(len(classes))),
        text=sampler.text,
    )
    decoded = loaded.codec.decode(loaded.codec.denormalise(latents_BNZ))
    pixels = signal_to_pixels(decoded).cpu().numpy()
    names = [loaded.class_names[number] for number in classes] if loaded.class_names else []
    report = {"images": len(pixels), "classes": classes, "class_names": names}
    return Sampled(report, encode_png(tile_images(pixels, columns=count)))


def _answer(request: SampleRequest, loaded: Loaded, sampler: Sample) -> Sampled:
    """What follows the prompt, `count` times."""
    if not request.parts:
        raise UserError(
            "this model answers a prompt; give --prompt TEXT, --image PATH or --sound PATH"
        )
    prompt = prompt_parts(request.parts, loaded)
    try:
        answers = loaded.generate(
            [prompt] * (request.count or 1),
            seed=request.seed,
            sampler=sampler,
            text=sampler.text,
            capacity=request.length,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    signals = [p for parts in answers for p in parts if isinstance(p, np.ndarray)]
    pictures = [signal for signal in signals if signal.ndim == 3]
    codec = loaded.codec.settings
    rate_hz = codec.sample_rate_hz if isinstance(codec, SpeechCodecSettings) else 0
    sounds = [
        encode_wav(signal.astype(np.float32), rate_hz=rate_hz)
        for signal in signals
        if signal.ndim == 1
    ]
    texts = [[part for part in parts if isinstance(part, str)] for parts in answers]
    report = {"texts": texts, "images": len(pictures), "sounds": len(sounds)}
    return Sampled(report, _sheet(pictures), tuple(sounds), texts)


def _sheet(pictures: Sequence[np.ndarray]) -> bytes | None:
    if not pictures:
        return None
    return encode_png(tile_images(np.stack(pictures), columns=min(COLUMNS, len(pictures))))


def _sampler(request: SampleRequest, export: Path, loaded: Loaded) -> Sample:
    """The export's own sampler as far as the request does not say otherwise."""
    experiment = export / "experiment.yaml"
    sampler = load_experiment(experiment).sample if experiment.exists() else Sample()
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
    return sampler


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
