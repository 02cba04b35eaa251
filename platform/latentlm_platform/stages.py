"""The stages of a run, each from its inputs to an artifact: codec, latents, model, evaluation.

A stage hashes what it depends on; a finished artifact of that key is reused, an unfinished one is
resumed. Each stage that works has an MLflow run of its own below the parent.
"""

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from latentlm.catalogue import parameter_count
from latentlm.codec.image_vit import ImageViTCodec, encoder_parameters_digest
from latentlm.codec.vector_quantized import VectorQuantizedCodec, codes_digest
from latentlm.load import load_codec, save_codec
from latentlm.media import read_png
from latentlm_platform.artifacts import Artifact, building, key_of
from latentlm_platform.corpora.bad_records import BadRecords
from latentlm_platform.corpora.splits import Splits, corpus_digests, preprocessing
from latentlm_platform.evaluation.actor_pool import EvaluatorPool
from latentlm_platform.evaluation.codec_scores import latent_health
from latentlm_platform.evaluation.evaluator import Evaluator
from latentlm_platform.experiment.sections import Experiment, ImageCodec
from latentlm_platform.latents.cache import LatentCache
from latentlm_platform.latents.drawing import redrawn_codec
from latentlm_platform.latents.encoding import SPLITS, EncodingPass, moments_from
from latentlm_platform.progress import Bar
from latentlm_platform.tracking.client import TrackedRun
from latentlm_platform.tracking.journal import Entry
from latentlm_platform.tracking.stage_runs import stage_run
from latentlm_platform.training.codec_training import CodecTraining, train_codec
from latentlm_platform.training.export import export_model
from latentlm_platform.training.following import last_metrics, train_followed
from latentlm_platform.training.model_training import ModelTraining, train_model
from latentlm_platform.training.worker_group import WorkerGroup


@dataclass(frozen=True)
class StageContext:
    """What every stage of one run, or of one trial of a sweep, needs.

    tags are given to every MLflow run that a stage opens, and the values, dotted path → value, that
    a sweep chose as far as the stage depends on them; on_entry is called with what a step of
    the model's training has measured.
    """

    experiment: Experiment
    run_key: str
    attempt: int
    splits: Splits
    parent: TrackedRun
    say: Callable[[str], None]
    evaluators: EvaluatorPool
    tags: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    on_entry: Callable[[Entry], None] | None = None

    def key(self, *parts: Any) -> str:
        """A stage's key: what it depends on, the seed, and which repetition this is."""
        repetition = self.run_key if self.attempt > 1 else ""
        return key_of(*parts, self.experiment.seed, repetition)

    def child(
        self, stage: str, title: str, *, key: str
    ) -> contextlib.AbstractContextManager[TrackedRun]:
        """The MLflow run of a stage's artifact: it ends as the stage ends."""
        return stage_run(
            self.parent,
            self.experiment,
            stage,
            title,
            key=key,
            tags=self.tags,
            values=self.values,
        )


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
        with context.child("codec", "codec", key=key) as run:
            group = WorkerGroup.of(experiment.train, artifact.folder, workers=settings.workers)
            train_followed(group, train_codec, training, run, total=settings.steps, title="codec")
            metrics = json.loads((artifact.folder / "scores.json").read_text(encoding="utf-8"))
            run.log_metrics(metrics, step=settings.steps)
            if (channels := artifact.folder / "variance.json").exists():
                run.log_table(json.loads(channels.read_text(encoding="utf-8")), channels.name)
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
    parts = (preprocessing(corpus), chunks, _encoder_digest(net), orientations, kept)
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
            metrics = latent_health(net, moments) | BadRecords.of(summary).counts()
            artifact = replace(artifact, metrics=metrics, seconds=seconds)
            artifact.save()
        else:
            artifact = _reused(context, finished)
            moments = moments_from(summary["moments"])
    bad = BadRecords.of(summary)
    if bad.rows:
        context.say(f"  {len(bad.rows)} records cannot be used; see bad_records.json in MLflow")
    if "latentlm.sweep" not in context.tags:  # trials share a parent: the sweep tells of all
        bad.log(context.parent)
    bad.refuse_too_many(corpus, total)
    if not isinstance(experiment.codec, ImageCodec):  # codes have no scale
        return artifact
    mean, std = moments.latent_mean(), moments.latent_std(experiment.codec.variance)
    if (float(net.latent_mean), float(net.latent_std)) != tuple(torch.tensor([mean, std]).tolist()):
        net.set_statistics(mean=mean, std=std)
        with building("codec", codec.key):
            save_codec(codec.folder / "codec", codec=net)
    return artifact


def _encoder_digest(codec: ImageViTCodec | VectorQuantizedCodec) -> str:
    if isinstance(codec, VectorQuantizedCodec):
        return codes_digest(codec)
    return encoder_parameters_digest(codec)


def latent_cache(experiment: Experiment, latents: Artifact) -> LatentCache:
    """The cache in a latents artifact's folder."""
    settings = experiment.codec_settings()
    return LatentCache(
        latents.folder,
        latent_count=settings.latent_count,
        latent_width=settings.posterior_width,
        orientations=2 if experiment.corpus.flip else 1,
        with_std=settings.predicts_std,
    )


def make_model(context: StageContext, codec: Artifact, latents: Artifact) -> Artifact:
    """Train the model on the latents, and export it with its codec and its experiment."""
    experiment = context.experiment
    train = experiment.train.model_dump(mode="json", exclude={"max_failures"})
    flip = experiment.corpus.flip
    law = experiment.latents.model_dump(mode="json")["variance"]
    sections = (experiment.model.model_dump(mode="json"), train, experiment.latents.mode)
    key = context.key("model", codec.key, latents.key, sections, flip, *([law] if law else []))
    with building("model", key) as finished:
        if finished:
            return _reused(context, finished)
        lineage = {"codec": codec.key, "latents": latents.key, **latents.lineage}
        artifact = Artifact("model", key, lineage=lineage)
        cache = latent_cache(experiment, latents)
        summary = cache.summary() or {}
        sizes = {split: tuple(rows) for split, rows in summary["rows"].items()}
        drawing = codec.folder / "codec"
        if (variance := experiment.latents.variance) is not None:
            moments, source = moments_from(summary["moments"]), drawing
            drawing = artifact.folder / "codec"
            redrawn_codec(source, variance=variance, moments=moments, target=drawing)
        training = ModelTraining(
            key, experiment, artifact.folder, drawing, cache, context.splits, sizes
        )
        started = time.monotonic()
        with context.child("model", "model", key=key) as run:
            run.set_tags(lineage_tags(artifact))
            group = WorkerGroup.of(experiment.train, artifact.folder)
            how: dict[str, Any] = {"total": experiment.train.steps, "on_entry": context.on_entry}
            train_followed(group, train_model, training, run, title="model", **how)
            metrics = last_metrics(training.folder / "journal.jsonl")
            run.log_metrics(_size(experiment))
            artifact = replace(
                artifact, metrics=metrics, run_id=run.run_id, seconds=time.monotonic() - started
            )
            names = context.splits.train.index.class_names
            export_model(training, artifact, class_names=names)
            artifact.save()
        return artifact


def evaluate_model(context: StageContext, model: Artifact) -> Artifact:
    """Do the tasks of the evaluation, at every CFG scale."""
    experiment = context.experiment
    sections = [experiment.sample.__dict__, experiment.evaluate.model_dump(mode="json")]
    sections[1].pop("actors")
    key = key_of("evaluation", model.key, sections)
    with building("evaluation", key) as finished:
        if finished:
            return _reused(context, finished)
        artifact = Artifact("evaluation", key, lineage={"model": model.key, **model.lineage})
        started = time.monotonic()
        evaluator = Evaluator(
            experiment,
            export=model.folder / "export",
            codec=model.lineage["codec"],
            splits=context.splits,
            folder=artifact.folder,
        )
        with Bar("evaluation", total=evaluator.items, unit="image") as bar:
            result = evaluator.run(context.evaluators, on_progress=bar.reach)
        artifact = replace(
            artifact,
            metrics=result.metrics_at(float(experiment.sample.cfg_scale)),
            facts=result.facts(),
            seconds=time.monotonic() - started,
        )
        artifact.save()
        return artifact


def log_evaluation(context: StageContext, artifact: Artifact, *, key: str = "") -> str:
    """An MLflow run for the evaluation at the experiment's CFG scale, with its pictures; its id.

    `key` tells it apart from the other scales of the evaluation.
    """
    sampler = context.experiment.sample
    scale = f"{sampler.cfg_scale:g}"
    with context.child("evaluation", f"cfg {scale}", key=key or artifact.key) as run:
        run.set_tags(lineage_tags(artifact))
        run.log_parameters(
            {
                "cfg_scale": sampler.cfg_scale,
                "solver": sampler.solver,
                "solver_steps": sampler.steps,
                "images": context.experiment.evaluate.images,
            }
        )
        run.log_metrics(artifact.facts["by_cfg_scale"][scale] | _size(context.experiment))
        shown = artifact.facts["shown"][scale]
        for name, rows in shown["tables"].items():
            run.log_table(rows, name)
        for name, file in shown["pictures"].items():
            run.log_picture(read_png((artifact.folder / file).read_bytes()), name, 0)
        for file in artifact.facts["files"]:
            run.log_file(artifact.folder / file)
        return run.run_id


def _size(experiment: Experiment) -> dict[str, float]:
    """How large the model is, beside its scores: Figure 4's axis."""
    return {"model_parameters": float(parameter_count(experiment.model_settings()))}


def lineage_tags(artifact: Artifact) -> dict[str, str]:
    """What an artifact was made from: corpus → latents → codec → model, as tags."""
    return {f"latentlm.lineage.{stage}": key for stage, key in artifact.lineage.items()}


def _reused(context: StageContext, artifact: Artifact) -> Artifact:
    context.say(f"  {artifact.stage} {artifact.key[:8]} is already there; reused")
    tags = {f"latentlm.reused.{artifact.stage}": f"{artifact.key} {artifact.run_id}".strip()}
    context.parent.set_tags(tags)
    return artifact
