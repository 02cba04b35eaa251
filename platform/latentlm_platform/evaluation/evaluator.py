"""Generated images against held-out ones: accuracy, Fréchet distance, Inception-style score.

Every score carries its feature extractor in its name, its 95 % interval in `_low` and `_high`, and
stands beside the real-against-real floor and the reconstruction ceiling. All CFG scales are scored
in one pass: a batch holds every scale of its images, with the same noise.
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentlm.media import encode_png, tile_images
from latentlm.metrics import Interval
from latentlm.metrics.classifier import accuracy_interval
from latentlm.metrics.frechet import frechet_distance, frechet_interval
from latentlm.metrics.inception_style import inception_style_score
from latentlm.settings import SamplerSettings
from latentlm_platform.artifacts import key_of
from latentlm_platform.corpora.splits import Splits, corpus_digests, preprocessing
from latentlm_platform.evaluation.actor import Described, Judge, read_judge, shared_judge
from latentlm_platform.evaluation.actor_pool import EvaluatorPool
from latentlm_platform.evaluation.codec_scores import read_held_out
from latentlm_platform.evaluation.exposure import score_exposure
from latentlm_platform.experiment.sections import Evaluate, Experiment
from latentlm_platform.home import artifacts_folder
from latentlm_platform.runs import exclusive

JUDGED_SETTINGS = {"held_out_fraction", "layout", "max_pixels", "image_column", "label_column"}
GRID_ROWS = 8
GRID_COLUMNS = 10
TRACED_IMAGES = 4
TRACED_STATES = 8
Progress = Callable[[int, int], None]


@dataclass
class ScaleScores:
    """What was generated at one CFG scale: scores, and exposure bias a line a position."""

    cfg_scale: float
    metrics: dict[str, float] = field(default_factory=dict)
    exposure_rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Evaluation:
    """All scores of a model: what the scales share, then each scale's own."""

    shared: dict[str, float]
    scales: list[ScaleScores]

    def metrics_at(self, cfg_scale: float) -> dict[str, float]:
        """The flat metrics at one scale, shared ones included."""
        (scores,) = (scale for scale in self.scales if scale.cfg_scale == cfg_scale)
        return self.shared | scores.metrics


def cfg_scales(experiment: Experiment) -> tuple[float, ...]:
    """sample.cfg_scale and evaluate.cfg_scales, sorted, each once."""
    scales = {float(experiment.sample.cfg_scale), *map(float, experiment.evaluate.cfg_scales)}
    return tuple(sorted(scales))


def streams(cfg_scale: float) -> int:
    """How many rows a generated image takes: a guided one has a twin without condition."""
    return 1 if cfg_scale == 1 else 2


class Evaluator:
    """Evaluates one exported model of an experiment on Ray actors."""

    def __init__(
        self, experiment: Experiment, *, export: Path, codec: str, splits: Splits, folder: Path
    ) -> None:
        self.experiment, self.splits, self.folder = experiment, splits, folder
        self.settings: Evaluate = experiment.evaluate
        self.export = export
        self.codec = codec  # its key
        self.prefix = f"frechet_{self.settings.feature_extractor}"

    def run(self, pool: EvaluatorPool, *, on_progress: Progress) -> Evaluation:
        """Score everything; writes `samples.csv` and one grid for each scale."""
        import ray

        self.folder.mkdir(parents=True, exist_ok=True)
        actors = pool.actors(self.experiment)
        ray.get([actor.use_export.remote(self.export) for actor in actors])
        judge_ref = self._judge(ray)
        references = self._reference(ray, actors)
        judge = ray.get(judge_ref)
        ray.get([actor.use_judge.remote(judge) for actor in actors])
        shared = self._shared(judge, references)
        scales = self._generate(ray, actors, references, on_progress)
        self._write_trajectories(ray, actors)
        exposures = score_exposure(
            self.experiment,
            actors=actors,
            held_out=self.splits.held_out,
            cfg_scales=cfg_scales(self.experiment),
        )
        for scores in scales:
            above = scores.metrics[self.prefix] - shared[f"{self.prefix}_reconstruction"]
            scores.metrics[f"{self.prefix}_above_reconstruction"] = above
            if scores.cfg_scale in exposures:
                scores.metrics |= exposures[scores.cfg_scale].metrics()
                scores.exposure_rows = exposures[scores.cfg_scale].rows()
        return Evaluation(shared, scales)

    def _judge(self, ray: Any) -> Any:
        """A reference to the judge of this corpus, trained once for all evaluations of it."""
        corpus = self.experiment.corpus
        about = (corpus.image_size, corpus.channels, corpus.classes, self.experiment.seed)
        items, epochs = self.settings.classifier_items, self.settings.classifier_epochs
        digests = corpus_digests(self.splits)
        order = (corpus.chunk_records, corpus.shuffle_window_chunks)
        parts = corpus.model_dump(mode="json", include=JUDGED_SETTINGS)
        key = key_of("judge", digests, about, items, epochs, order, parts)
        folder = artifacts_folder("judge") / key
        if (judge := read_judge(folder)) is not None:
            return ray.put(judge)
        arguments = {"epochs": epochs, "items": items, "seed": self.experiment.seed}
        task = ray.remote(shared_judge).options(num_cpus=1, scheduling_strategy="DEFAULT")
        return task.remote(folder, self.splits, **arguments)

    def _reference(self, ray: Any, actors: list[Any]) -> dict[str, np.ndarray]:
        """What every model on this codec is compared with, computed once for all of them."""
        corpus, settings = self.experiment.corpus, self.settings
        digests, seed = corpus_digests(self.splits), self.splits.held_out.seed
        features = (settings.feature_extractor, settings.feature_size, settings.images)
        key = key_of("reference", digests, preprocessing(corpus), seed, self.codec, features)
        folder = artifacts_folder("reference") / key
        with exclusive(folder):
            path = folder / "features.npz"
            if path.exists():
                with np.load(path) as kept:
                    return dict(kept)
            references = self._describe_held_out(ray, actors)
            with path.with_suffix(".partial").open("wb") as file:
                np.savez(file, allow_pickle=False, **references)
            path.with_suffix(".partial").rename(path)
            return references

    def _describe_held_out(self, ray: Any, actors: list[Any]) -> dict[str, np.ndarray]:
        """Two disjoint sets of held-out images: the reference, and one scored like a model."""
        held_out = self.splits.held_out
        wanted = min(2 * self.settings.images, sum(held_out.chunk_sizes))
        pixels = read_held_out(held_out, wanted)
        half = len(pixels) // 2
        first, second = pixels[:half], pixels[half : 2 * half]
        parts = [part for part in np.array_split(first, len(actors)) if len(part)]
        reference = [a.describe.remote(p) for a, p in zip(actors, parts, strict=False)]
        others = [part for part in np.array_split(second, len(actors)) if len(part)]
        rebuilt = [a.reconstruct.remote(p) for a, p in zip(actors, others, strict=False)]
        merged = _merged(ray.get(rebuilt))
        features = np.concatenate([described.features for described in ray.get(reference)])
        return merged | {"reference": features}

    def _shared(self, judge: Judge, references: dict[str, np.ndarray]) -> dict[str, float]:
        """What stands beside every scale's scores: the judge's accuracy, floor and ceiling."""
        reference = torch.from_numpy(references["reference"])
        floor = frechet_distance(reference, torch.from_numpy(references["real"]))
        ceiling = frechet_distance(reference, torch.from_numpy(references["rebuilt"]))
        accuracy = accuracy_interval(judge.correct, judge.judged)
        return _named("real_accuracy", accuracy) | {
            f"{self.prefix}_floor": floor,
            f"{self.prefix}_reconstruction": ceiling,
            "reconstruction_psnr": float(references["psnr"].mean()),
            "reconstruction_ssim": float(references["ssim"].mean()),
            "reference_images": float(len(references["reference"])),
            "real_accuracy_images": float(judge.judged),
            "generated_images": float(self.settings.images),
        }

    def _generate(
        self, ray: Any, actors: list[Any], references: dict[str, np.ndarray], on_progress: Progress
    ) -> list[ScaleScores]:
        from ray.util import ActorPool

        collected: dict[float, list[tuple[np.ndarray, Described]]] = {}
        pictures: dict[float, list[np.ndarray]] = {}
        seconds, done = 0.0, 0
        batches = list(self._batches())
        total = sum(len(batch["labels"]) for batch in batches)
        results = ActorPool(actors).map(
            lambda actor, batch: actor.generate.remote(**batch), batches
        )
        for batch, (pixels, described, spent) in zip(batches, results, strict=True):
            for scale in np.unique(batch["cfg_scales"]).tolist():
                mine = batch["cfg_scales"] == scale
                part = Described(*(column[mine] for column in described))
                collected.setdefault(scale, []).append((batch["labels"][mine], part))
                if sum(map(len, pictures.setdefault(scale, []))) < GRID_ROWS * GRID_COLUMNS:
                    pictures[scale].append(pixels[mine])
            seconds += spent
            done += len(batch["labels"])
            on_progress(done, total)
        self._write_samples(collected)
        reference = torch.from_numpy(references["reference"])
        scores = []
        for scale in sorted(collected):
            labels = np.concatenate([labels for labels, _ in collected[scale]])
            columns = zip(*(part for _, part in collected[scale]), strict=True)
            described = Described(*(np.concatenate(column) for column in columns))
            metrics = self._score(labels, described, reference)
            share = streams(scale) / sum(map(streams, collected))
            metrics["sampling_cpu_seconds_per_image"] = seconds * share / self.settings.images
            self._write_grid(scale, np.concatenate(pictures[scale]))
            scores.append(ScaleScores(scale, metrics))
        return scores

    def _batches(self) -> Iterator[dict[str, Any]]:
        """Batches of images × scales: the same ids, hence the same noise, at every scale."""
        scales = np.array(cfg_scales(self.experiment))
        images_a_batch = max(1, self.settings.batch_size // len(scales))
        sampler: SamplerSettings = self.experiment.sample
        for start in range(0, self.settings.images, images_a_batch):
            ids = np.arange(start, min(start + images_a_batch, self.settings.images))
            yield {
                "ids": np.tile(ids, len(scales)),
                "labels": np.tile(ids % self.experiment.corpus.classes, len(scales)),
                "cfg_scales": np.repeat(scales, len(ids)),
                "sampler": sampler,
                "seed": self.experiment.seed,
            }

    def _score(
        self, labels: np.ndarray, described: Described, reference: torch.Tensor
    ) -> dict[str, float]:
        correct = int((described.predicted == labels).sum())
        generated = torch.from_numpy(described.features)
        name = self.settings.feature_extractor
        style = inception_style_score(
            torch.from_numpy(described.logits), splits=min(10, len(labels))
        )
        distance = frechet_interval(reference, generated, seed=self.experiment.seed, replicates=5)
        return (
            _named("generated_accuracy", accuracy_interval(correct, len(labels)))
            | _named(self.prefix, distance)
            | _named(f"inception_style_{name}", style)
        )

    def _write_samples(self, collected: dict[float, list[tuple[np.ndarray, Described]]]) -> None:
        sampler = self.experiment.sample
        with (self.folder / "samples.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            header = (
                "id",
                "seed",
                "class",
                "cfg_scale",
                "solver",
                "solver_steps",
                "predicted_class",
            )
            writer.writerow(header)
            for scale, parts in sorted(collected.items()):
                labels = np.concatenate([labels for labels, _ in parts])
                predicted = np.concatenate([part.predicted for _, part in parts])
                for i, (label, said) in enumerate(
                    zip(labels.tolist(), predicted.tolist(), strict=True)
                ):
                    fixed = (scale, sampler.solver, sampler.steps)
                    writer.writerow((i, self.experiment.seed, label, *fixed, said))

    def _write_trajectories(self, ray: Any, actors: list[Any]) -> None:
        """A picture for each scale: an image a row, its solver's states from noise to sample."""
        if self.experiment.model.kind == "code_lm":
            return  # words are drawn, not denoised
        labels = np.arange(TRACED_IMAGES) % self.experiment.corpus.classes
        scales = cfg_scales(self.experiment)
        settings = {"sampler": self.experiment.sample, "seed": self.experiment.seed}
        traced = [
            actors[i % len(actors)].trace.remote(
                labels=labels, cfg_scale=scale, states=TRACED_STATES, **settings
            )
            for i, scale in enumerate(scales)
        ]
        for scale, states in zip(scales, ray.get(traced), strict=True):
            picture = tile_images(states.reshape(-1, *states.shape[2:]), columns=states.shape[1])
            trajectory_file(self.folder, scale).write_bytes(encode_png(picture))

    def _write_grid(self, scale: float, pixels: np.ndarray) -> None:
        columns = min(GRID_COLUMNS, self.experiment.corpus.classes)
        picture = tile_images(pixels[: GRID_ROWS * columns], columns=columns)
        grid_file(self.folder, scale).write_bytes(encode_png(picture))


def grid_file(folder: Path, cfg_scale: float) -> Path:
    """The picture of what an evaluation in this folder generated at a scale."""
    return folder / f"samples-cfg-{cfg_scale:g}.png"


def trajectory_file(folder: Path, cfg_scale: float) -> Path:
    """The picture of how some of these images came out of noise; of codes there is none."""
    return folder / f"trajectory-cfg-{cfg_scale:g}.png"


def _named(name: str, interval: Interval) -> dict[str, float]:
    value, low, high = interval
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _merged(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
