"""Generated images against held-out ones: accuracy, Fréchet distance, Inception-style score.

Every score carries its feature extractor in its name and stands beside the real-against-real floor.
All CFG scales are drawn in one pass: a batch holds every scale of its images, with the same noise.
The driver gets 9 KB of descriptions an image and scale, and of pixels only what it shows.
"""

import csv
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from latentlm.generate import sample_latents, solver_states
from latentlm.media import encode_png, tile_images
from latentlm.metrics.classifier import accuracy_interval
from latentlm.metrics.frechet import frechet_distance, frechet_interval
from latentlm.metrics.inception_style import inception_style_score
from latentlm.models import CodeLM
from latentlm.randomness import RowNoise
from latentlm.signals import signal_to_pixels
from latentlm_platform.evaluation.actor import Described, EvaluatorActor
from latentlm_platform.evaluation.actor_pool import on_actors
from latentlm_platform.evaluation.task import (
    EVALUATION_EPOCH,
    Needs,
    Progress,
    Scores,
    Shown,
    Subject,
    Task,
    with_interval,
)
from latentlm_platform.experiment.sections import Experiment, Sample

GRID_ROWS = 8
GRID_COLUMNS = 10
TRACED_IMAGES = 4
TRACED_STATES = 8
SAMPLES = "samples.csv"
SAMPLE_COLUMNS = ("id", "seed", "class", "cfg_scale", "solver", "solver_steps", "predicted_class")


class ScaleImages(NamedTuple):
    """What was generated at one scale, in order of id: labels [n], descriptions, and the pixels
    of the first images, uint8 [m, Y, X, C]."""

    labels: np.ndarray
    described: Described
    pixels: np.ndarray


class GeneratedImages(NamedTuple):
    """By scale, the images and how some came out of noise (uint8 [B, S, Y, X, C], of codes
    nothing); CPU seconds of drawing them all."""

    scales: dict[float, ScaleImages]
    traces: dict[float, np.ndarray]
    seconds: float


class Generation(Task[GeneratedImages]):
    """What the model generates for each class."""

    needs = Needs(judge=True, references=True)

    def items(self, subject: Subject) -> int:
        return subject.experiment.evaluate.images * len(subject.cfg_scales)

    def generate(self, subject: Subject, *, on_progress: Progress) -> GeneratedImages:
        experiment = subject.experiment
        batches = list(image_batches(experiment, cfg_scales=subject.cfg_scales))
        results = on_actors(subject.actors, draw_images, batches)
        parts: dict[float, list[ScaleImages]] = {scale: [] for scale in subject.cfg_scales}
        seconds, done = 0.0, 0
        for batch, (by_scale, spent) in zip(batches, results, strict=True):
            for scale, images in by_scale.items():
                parts[scale].append(images)
            seconds += spent
            done += len(batch["labels"])
            on_progress(done)
        return GeneratedImages(
            {scale: _concatenated(found) for scale, found in parts.items()},
            _traced(subject),
            seconds,
        )

    def score(
        self, subject: Subject, generated: GeneratedImages, *, shared: Mapping[str, float]
    ) -> Scores:
        assert subject.judge is not None  # it needs both
        assert subject.references is not None
        reference = torch.from_numpy(subject.references.reference)
        real = torch.from_numpy(subject.references.real)
        ceiling = shared.get(f"{subject.frechet}_reconstruction")
        images = subject.experiment.evaluate.images
        by_scale = {}
        for scale, found in generated.scales.items():
            metrics = scale_metrics(subject, found, reference=reference)
            if ceiling is not None:
                above = metrics[subject.frechet] - ceiling
                metrics[f"{subject.frechet}_above_reconstruction"] = above
            share = streams(scale) / sum(map(streams, generated.scales))
            metrics["sampling_cpu_seconds_per_image"] = generated.seconds * share / images
            by_scale[scale] = metrics
        judge = subject.judge
        together = with_interval("real_accuracy", accuracy_interval(judge.correct, judge.judged))
        return Scores(
            together
            | {
                f"{subject.frechet}_floor": frechet_distance(reference, real),
                "reference_images": float(len(reference)),
                "real_accuracy_images": float(judge.judged),
                "generated_images": float(images),
            },
            by_scale,
        )

    def show(self, subject: Subject, generated: GeneratedImages) -> Shown:
        write_samples(subject, generated)
        columns = min(GRID_COLUMNS, subject.experiment.corpus.classes)
        pictures: dict[float, dict[str, str]] = {}
        for scale, found in generated.scales.items():
            grid = tile_images(found.pixels[: GRID_ROWS * columns], columns=columns)
            pictures[scale] = {"samples": _written(subject.folder, "samples", scale, grid)}
        for scale, states in generated.traces.items():
            sheet = tile_images(states.reshape(-1, *states.shape[2:]), columns=states.shape[1])
            pictures[scale]["trajectory"] = _written(subject.folder, "trajectory", scale, sheet)
        return Shown(pictures=pictures, files=(SAMPLES,))


def streams(cfg_scale: float) -> int:
    """How many rows a generated image takes: a guided one has a twin without condition."""
    return 1 if cfg_scale == 1 else 2


def image_batches(
    experiment: Experiment, *, cfg_scales: Sequence[float]
) -> Iterator[dict[str, Any]]:
    """Batches of images × scales: the same ids, hence the same noise, at every scale."""
    settings, scales = experiment.evaluate, np.array(cfg_scales)
    images_a_batch = max(1, settings.batch_size // len(scales))
    for start in range(0, settings.images, images_a_batch):
        ids = np.arange(start, min(start + images_a_batch, settings.images))
        yield {
            "ids": np.tile(ids, len(scales)),
            "labels": np.tile(ids % experiment.corpus.classes, len(scales)),
            "cfg_scales": np.repeat(scales, len(ids)),
            "sampler": experiment.sample,
            "seed": experiment.seed,
        }


@torch.inference_mode()
def draw_images(
    actor: EvaluatorActor,
    *,
    labels: np.ndarray,
    ids: np.ndarray,
    cfg_scales: np.ndarray,
    sampler: Sample,
    seed: int,
) -> tuple[dict[float, ScaleImages], float]:
    """On an actor: one batch by scale, and its CPU seconds. Row noise is keyed by id; pixels come
    back of the ids that a grid shows."""
    started = time.process_time()
    ids_B = torch.from_numpy(ids.copy()).to(actor.device)
    latents_BNZ = sample_latents(
        actor.model,
        torch.from_numpy(labels.copy()).to(actor.device),
        cfg_scales_B=torch.from_numpy(cfg_scales.copy()).float().to(actor.device),
        sampler=sampler,
        noise=RowNoise(seed=seed, ids_B=ids_B, epochs_B=EVALUATION_EPOCH),
        text=sampler.text,
    )
    decoded = actor.codec.decode(actor.codec.denormalise(latents_BNZ))
    pixels_BYXC = signal_to_pixels(decoded).cpu()
    seconds = time.process_time() - started
    described, pixels = actor.describe(pixels_BYXC), pixels_BYXC.numpy()
    shown = ids < GRID_ROWS * GRID_COLUMNS
    by_scale = {}
    for scale in np.unique(cfg_scales).tolist():
        mine = cfg_scales == scale
        part = Described(*(column[mine] for column in described))
        by_scale[scale] = ScaleImages(labels[mine], part, pixels[mine & shown])
    return by_scale, seconds


@torch.inference_mode()
def trace_images(
    actor: EvaluatorActor,
    *,
    labels: np.ndarray,
    cfg_scale: float,
    sampler: Sample,
    seed: int,
    states: int,
) -> np.ndarray:
    """On an actor: uint8 (B, S, Y, X, C), the first images of these labels at that scale, from
    noise to sample, S of their solver's states spread evenly, both ends among them."""
    assert not isinstance(actor.model, CodeLM)  # its words are drawn, not denoised
    device = actor.device
    ids_B = torch.arange(len(labels), device=device)
    found_SBNZ = solver_states(
        actor.model,
        torch.from_numpy(labels.copy()).to(device),
        cfg_scales_B=torch.full((len(labels),), cfg_scale, device=device),
        sampler=sampler,
        noise=RowNoise(seed=seed, ids_B=ids_B, epochs_B=EVALUATION_EPOCH),
    )
    last = len(found_SBNZ) - 1
    chosen = torch.linspace(0, last, min(states, last + 1)).round().long()
    latents_BSNZ = found_SBNZ[chosen].transpose(0, 1)
    decoded = actor.codec.decode(actor.codec.denormalise(latents_BSNZ.flatten(0, 1)))
    pixels: np.ndarray = signal_to_pixels(decoded).cpu().numpy()
    return pixels.reshape(len(labels), len(chosen), *pixels.shape[1:])


def scale_metrics(
    subject: Subject, images: ScaleImages, *, reference: torch.Tensor
) -> dict[str, float]:
    """Accuracy, Fréchet distance and Inception-style score of one scale, with intervals."""
    labels, described, _ = images
    name, seed = subject.experiment.evaluate.feature_extractor, subject.experiment.seed
    correct = int((described.predicted == labels).sum())
    logits = torch.from_numpy(described.logits)
    style = inception_style_score(logits, splits=min(10, len(labels)))
    features = torch.from_numpy(described.features)
    distance = frechet_interval(reference, features, seed=seed, replicates=5)
    return (
        with_interval("generated_accuracy", accuracy_interval(correct, len(labels)))
        | with_interval(subject.frechet, distance)
        | with_interval(f"inception_style_{name}", style)
    )


def write_samples(subject: Subject, generated: GeneratedImages) -> None:
    """`samples.csv`: an image a line, what it was asked to show and what the judge sees."""
    seed, sampler = subject.experiment.seed, subject.experiment.sample
    with (subject.folder / SAMPLES).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(SAMPLE_COLUMNS)
        for scale, found in sorted(generated.scales.items()):
            fixed = (scale, sampler.solver, sampler.steps)
            said = found.described.predicted.tolist()
            pairs = zip(found.labels.tolist(), said, strict=True)
            writer.writerows(
                (i, seed, label, *fixed, seen) for i, (label, seen) in enumerate(pairs)
            )


def _traced(subject: Subject) -> dict[float, np.ndarray]:
    """The first images' ways from noise to sample, at each scale."""
    experiment = subject.experiment
    if experiment.model.kind == "code_lm":
        return {}
    labels = np.arange(TRACED_IMAGES) % experiment.corpus.classes
    how = {"sampler": experiment.sample, "seed": experiment.seed, "states": TRACED_STATES}
    jobs = [{"labels": labels, "cfg_scale": scale, **how} for scale in subject.cfg_scales]
    traced = on_actors(subject.actors, trace_images, jobs)
    return dict(zip(subject.cfg_scales, traced, strict=True))


def _concatenated(parts: list[ScaleImages]) -> ScaleImages:
    described = zip(*(part.described for part in parts), strict=True)
    return ScaleImages(
        np.concatenate([part.labels for part in parts]),
        Described(*(np.concatenate(column) for column in described)),
        np.concatenate([part.pixels for part in parts]),
    )


def _written(folder: Path, name: str, scale: float, pixels: np.ndarray) -> str:
    """Write a picture of a scale; its file's name."""
    file = f"{name}-cfg-{scale:g}.png"
    (folder / file).write_bytes(encode_png(pixels))
    return file
