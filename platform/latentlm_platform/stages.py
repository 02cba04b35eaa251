"""The stages of a run, each from its inputs to an artifact: codec, latents, model, evaluation.

A stage hashes what it depends on; a finished artifact of that key is reused, an unfinished one is
resumed. Each stage that works has an MLflow run of its own below the parent.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentlm.catalogue import build_model
from latentlm.codec.image_vit import encoder_parameters_digest
from latentlm.load import load_codec, load_weights, save_codec, save_export
from latentlm.media import read_png
from latentlm_platform.artifacts import Artifact, building, key_of
from latentlm_platform.codec_scores import latent_health
from latentlm_platform.codec_training import CodecTraining, train_codec
from latentlm_platform.encoding import SPLITS, EncodingPass, moments_from
from latentlm_platform.errors import UserError
from latentlm_platform.evaluation import Evaluator, cfg_scales
from latentlm_platform.experiment import Corpus, Experiment
from latentlm_platform.experiment_file import resolved_yaml
from latentlm_platform.journal import Journal
from latentlm_platform.latent_cache import LatentCache
from latentlm_platform.model_card import render_model_card
from latentlm_platform.progress import Bar
from latentlm_platform.splits import Splits
from latentlm_platform.tracking import TrackedRun, Tracker
from latentlm_platform.training import ModelTraining, train_model
from latentlm_platform.uploading import JournalUploader
from latentlm_platform.worker_group import WorkerGroup


class Stopped(Exception):
    """A stop was asked for and a checkpoint is saved."""


@dataclass(frozen=True)
class StageContext:
    """What every stage of one run needs."""

    experiment: Experiment
    run_key: str
    attempt: int
    splits: Splits
    tracker: Tracker
    parent: TrackedRun
    say: Callable[[str], None]

    def key(self, *parts: Any) -> str:
        """A stage's key: what it depends on, the seed, and which repetition this is."""
        repetition = self.run_key if self.attempt > 1 else ""
        return key_of(*parts, self.experiment.seed, repetition)

    @contextlib.contextmanager
    def child(self, kind: str, title: str) -> Iterator[TrackedRun]:
        """The stage's MLflow run: it ends as the stage ends."""
        names = {"latentlm.kind": kind, "latentlm.experiment": self.experiment.name}
        title = f"{self.experiment.name} {title}"
        run = self.tracker.start_run(title, parent=self.parent, tags=names)
        run.log_parameters(self.experiment.model_dump(mode="json", exclude={"sweep"}))
        try:
            yield run
        except (Stopped, KeyboardInterrupt):
            run.finish("KILLED")
            raise
        except BaseException:
            run.finish("FAILED")
            raise
        run.finish("FINISHED")


def preprocessing(corpus: Corpus) -> dict[str, Any]:
    """The settings of a corpus that change its signals or which of them are held out."""
    names = {"layout", "held_out_fraction", "classes", "image_size", "channels", "max_pixels"}
    return corpus.model_dump(mode="json", include=names | {"image_column", "label_column"})


def make_codec(context: StageContext) -> Artifact:
    """Train the codec on the corpus's images, or reuse the one that was."""
    experiment, splits = context.experiment, context.splits
    corpus, settings = experiment.corpus, experiment.codec.training
    order = (corpus.flip, corpus.chunk_records, corpus.shuffle_window_chunks)
    codec = experiment.codec.model_dump(mode="json")
    key = context.key("codec", corpus_digests(splits), preprocessing(corpus), order, codec)
    with building("codec", key) as finished:
        if finished:
            return _reused(context, finished)
        artifact = Artifact("codec", key)
        training = CodecTraining(key, experiment, artifact.folder, splits)
        started = time.monotonic()
        with context.child("codec", "codec") as run:
            group = replace(_worker_group(experiment, artifact.folder), workers=settings.workers)
            _train(context, run, group, train_codec, training, total=settings.steps, title="codec")
            metrics = json.loads((artifact.folder / "scores.json").read_text(encoding="utf-8"))
            run.log_metrics(metrics, step=settings.steps)
            channels = json.loads((artifact.folder / "variance.json").read_text(encoding="utf-8"))
            run.log_table(channels, "variance.json")
            rebuilt = read_png((artifact.folder / "reconstructions.png").read_bytes())
            run.log_picture(rebuilt, "reconstructions", settings.steps)
            artifact = replace(
                artifact, metrics=metrics, run_id=run.run_id, seconds=time.monotonic() - started
            )
            artifact.save()
        return artifact


def make_latents(context: StageContext, codec: Artifact) -> Artifact:
    """Encode the corpus into the latent cache; the codec gets the statistics of its latents."""
    experiment, corpus = context.experiment, context.experiment.corpus
    kept = SPLITS if experiment.latents.mode == "cached" else ("held_out",)
    orientations = 2 if corpus.flip else 1
    net = load_codec(codec.folder / "codec")
    digests, chunks = corpus_digests(context.splits), corpus.chunk_records
    parts = (preprocessing(corpus), chunks, encoder_parameters_digest(net), orientations, kept)
    held_out_seed = experiment.seed if corpus.held_out_source is None else None
    key = key_of("latents", digests, *parts, held_out_seed)
    artifact = Artifact("latents", key, lineage={"codec": codec.key, "corpus": digests[0]})
    cache = latent_cache(experiment, artifact)
    total = sum(sum(split.chunk_sizes) for split in context.splits)
    with building("latents", key) as finished:
        summary = cache.summary()
        if finished is None or summary is None:
            started = time.monotonic()
            encoding = EncodingPass(
                context.splits, codec.folder / "codec", cache, experiment.latents, kept
            )
            with Bar("encoding", total=total, unit="image") as bar:
                summary = encoding.run(on_progress=lambda done, _: bar.reach(done))
            cache.commit(summary)
            seconds = time.monotonic() - started
            moments = moments_from(summary["moments"])
            metrics = latent_health(net, moments) | _counts(summary)
            artifact = replace(artifact, metrics=metrics, seconds=seconds)
            artifact.save()
        else:
            artifact = _reused(context, finished)
            moments = moments_from(summary["moments"])
    _refuse_bad_corpus(corpus, summary, total)
    mean, std = moments.latent_mean(), moments.latent_std(experiment.codec.variance)
    if (float(net.latent_mean), float(net.latent_std)) != tuple(torch.tensor([mean, std]).tolist()):
        net.set_statistics(mean=mean, std=std)
        with building("codec", codec.key):
            save_codec(codec.folder / "codec", codec=net)
    _log_bad_records(context, summary["bad_records"])
    return artifact


def latent_cache(experiment: Experiment, latents: Artifact) -> LatentCache:
    """The cache in a latents artifact's folder."""
    settings = experiment.codec_settings()
    return LatentCache(
        latents.folder,
        latent_count=settings.latent_count,
        latent_width=settings.latent_width,
        orientations=2 if experiment.corpus.flip else 1,
        with_std=settings.variance.kind == "diagonal_gaussian",
    )


def make_model(context: StageContext, codec: Artifact, latents: Artifact) -> Artifact:
    """Train the model on the latents, and export it with its codec and its experiment."""
    experiment = context.experiment
    train = experiment.train.model_dump(mode="json", exclude={"max_failures"})
    flip = experiment.corpus.flip
    sections = (experiment.model.model_dump(mode="json"), train, experiment.latents.mode)
    key = context.key("model", codec.key, latents.key, sections, flip)
    with building("model", key) as finished:
        if finished:
            return _reused(context, finished)
        lineage = {"codec": codec.key, "latents": latents.key, **latents.lineage}
        artifact = Artifact("model", key, lineage=lineage)
        cache = latent_cache(experiment, latents)
        summary = cache.summary() or {}
        sizes = {split: tuple(rows) for split, rows in summary["rows"].items()}
        training = ModelTraining(
            key, experiment, artifact.folder, codec.folder / "codec", cache, context.splits, sizes
        )
        started = time.monotonic()
        with context.child("model", "model") as run:
            run.set_tags(lineage_tags(artifact))
            group = _worker_group(experiment, artifact.folder)
            total = experiment.train.steps
            _train(context, run, group, train_model, training, total=total, title="model")
            metrics = _last_metrics(training.folder / "journal.jsonl")
            artifact = replace(
                artifact, metrics=metrics, run_id=run.run_id, seconds=time.monotonic() - started
            )
            export_model(context, training, artifact)
            artifact.save()
        return artifact


def export_model(context: StageContext, training: ModelTraining, artifact: Artifact) -> None:
    """Weights, codec, experiment and a card in one folder that `latentlm.load` reads."""
    model = build_model(context.experiment.model_settings())
    model.load_state_dict(torch.load(training.export, weights_only=True))
    export = artifact.folder / "export"
    text = resolved_yaml(context.experiment)
    metadata = {"experiment": text, "key": artifact.key, **artifact.lineage}
    save_export(export, model=model, codec=load_codec(training.codec_folder), metadata=metadata)
    (export / "experiment.yaml").write_text(text, encoding="utf-8")
    card = render_model_card(context.experiment, artifact)
    (export / "MODEL_CARD.md").write_text(card, encoding="utf-8")


def evaluate_model(context: StageContext, model: Artifact) -> Artifact:
    """Generate at every CFG scale and score; an MLflow run for each scale."""
    experiment = context.experiment
    sections = [experiment.sample.__dict__, experiment.evaluate.model_dump(mode="json")]
    sections[1].pop("actors")
    key = key_of("evaluation", model.key, sections)
    with building("evaluation", key) as finished:
        if finished:
            return _reused(context, finished)
        artifact = Artifact("evaluation", key, lineage={"model": model.key, **model.lineage})
        started = time.monotonic()
        with contextlib.ExitStack() as runs:
            children = {
                scale: runs.enter_context(context.child("evaluation", f"cfg {scale:g}"))
                for scale in cfg_scales(experiment)
            }
            evaluator = Evaluator(
                experiment,
                export=model.folder / "export",
                splits=context.splits,
                folder=artifact.folder,
            )
            total = experiment.evaluate.images * len(children)
            with Bar("evaluation", total=total, unit="image") as bar:
                result = evaluator.run(on_progress=lambda done, _: bar.reach(done))
            for run in children.values():
                run.set_tags(lineage_tags(artifact))
            for scores in result.scales:
                _log_scale(context, children[scores.cfg_scale], scores, result.shared)
            by_scale = {f"{s.cfg_scale:g}": s.metrics for s in result.scales}
            artifact = replace(
                artifact,
                metrics=result.metrics_at(float(experiment.sample.cfg_scale)),
                facts={"by_cfg_scale": by_scale},
                run_id=children[float(experiment.sample.cfg_scale)].run_id,
                seconds=time.monotonic() - started,
            )
            artifact.save()
        return artifact


def check_initial_weights(experiment: Experiment) -> None:
    """The export that training starts from fits the model; UserError where it does not."""
    folder = experiment.model.initial_weights
    if folder is None:
        return
    try:
        load_weights(build_model(experiment.model_settings()), Path(folder))
    except ValueError as error:
        raise UserError(f"model.initial_weights = {folder} cannot be used: {error}") from error


def lineage_tags(artifact: Artifact) -> dict[str, str]:
    """What an artifact was made from: corpus → latents → codec → model, as tags."""
    return {f"latentlm.lineage.{stage}": key for stage, key in artifact.lineage.items()}


def corpus_digests(splits: Splits) -> list[str]:
    """The manifests of what is trained on and what is held out."""
    return [splits.train.index.digest, splits.held_out.index.digest]


def _train(
    context: StageContext,
    run: TrackedRun,
    group: WorkerGroup,
    function: Callable[[dict[str, Any]], None],
    training: CodecTraining | ModelTraining,
    *,
    total: int,
    title: str,
) -> None:
    """Run a group of workers with a bar, the journal's upload and the sample pictures."""
    group.folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(group.folder / "journal.jsonl")
    uploader = JournalUploader(journal, run)
    uploader.start()
    follower = _Follower(journal, group.folder / "pictures", run)
    try:
        with Bar(title, total=total, unit="step") as bar:
            job = {"training": training, "folder": str(group.folder)}
            how = group.run(function, job, on_poll=lambda: follower.follow(bar))
            follower.follow(bar)
    finally:
        uploader.close()
    if how == "stopped":
        raise Stopped(f"{title} stopped at step {follower.step} of {total}, with a checkpoint")


class _Follower:
    """Reads a training's journal and pictures for the bar and for MLflow."""

    def __init__(self, journal: Journal, pictures: Path, run: TrackedRun) -> None:
        self.journal, self.pictures, self.run = journal, pictures, run
        self.offset = self.step = 0
        self.notes: dict[str, float] = {}
        self.shown: set[str] = set()  # a resumed stage shows them again, in its own MLflow run

    def follow(self, bar: Bar) -> None:
        entries, self.offset = self.journal.read_from(self.offset)
        for entry in entries:
            self.step = entry.step
            self.notes |= entry.metrics
        if self.notes:
            rate = f"{self.notes.get('images_per_s', 0):.0f} images/s"
            bar.reach(self.step, note=f"loss {self.notes.get('loss', 0):.4f}, {rate}")
        for path in sorted(self.pictures.glob("*.png")):
            if path.name not in self.shown:
                self.shown.add(path.name)
                step = int(path.stem.removeprefix("step-"))
                self.run.log_picture(read_png(path.read_bytes()), "samples", step)


def _worker_group(experiment: Experiment, folder: Path) -> WorkerGroup:
    train = experiment.train
    return WorkerGroup(
        folder=folder,
        workers=train.workers,
        cpus_per_worker=train.cpus_per_worker,
        gpus_per_worker=train.gpus_per_worker,
        threads_per_worker=train.threads_per_worker,
        max_failures=train.max_failures,
    )


def _reused(context: StageContext, artifact: Artifact) -> Artifact:
    context.say(f"  {artifact.stage} {artifact.key[:8]} is already there; reused")
    tags = {f"latentlm.reused.{artifact.stage}": f"{artifact.key} {artifact.run_id}".strip()}
    context.parent.set_tags(tags)
    return artifact


def _refuse_bad_corpus(corpus: Corpus, summary: dict[str, Any], total: int) -> None:
    bad = len(summary["bad_records"])
    if bad > corpus.max_bad_fraction * total:
        kinds = ", ".join(f"{count:g} {name}" for name, count in _counts(summary).items())
        raise UserError(
            f"{bad} of {total} records of {corpus.source} cannot be used ({kinds}), more than"
            f" corpus.max_bad_fraction = {corpus.max_bad_fraction:g}: repair it or raise that",
            exit_code=1,
        )


def _counts(summary: dict[str, Any]) -> dict[str, float]:
    counts: dict[str, float] = {"bad_records": float(len(summary["bad_records"]))}
    for record in summary["bad_records"]:
        name = f"bad_records_{record['kind']}"
        counts[name] = counts.get(name, 0.0) + 1
    return counts


def _log_bad_records(context: StageContext, bad: list[dict[str, str]]) -> None:
    if bad:
        context.say(f"  {len(bad)} unreadable records were skipped; see bad_records.json in MLflow")
        context.parent.log_table(bad, "bad_records.json")


def _last_metrics(journal: Path) -> dict[str, float]:
    """The last value of everything the training measured."""
    entries, _ = Journal(journal).read_from(0)
    metrics: dict[str, float] = {}
    for entry in entries:
        metrics |= entry.metrics
    speeds = [e.metrics["images_per_s"] for e in entries if "images_per_s" in e.metrics]
    if speeds:
        metrics["images_per_s_median"] = float(np.median(speeds))
    return metrics


def _log_scale(
    context: StageContext, run: TrackedRun, scores: Any, shared: dict[str, float]
) -> None:
    sampler = context.experiment.sample
    run.log_parameters(
        {
            "cfg_scale": scores.cfg_scale,
            "solver": sampler.solver,
            "solver_steps": sampler.steps,
            "images": context.experiment.evaluate.images,
        }
    )
    run.log_metrics(shared | scores.metrics)
    if scores.exposure_rows:
        run.log_table(scores.exposure_rows, "exposure_bias.json")
    run.log_picture(read_png(scores.grid.read_bytes()), "samples", 0)
    run.log_file(scores.grid.parent / "samples.csv")
