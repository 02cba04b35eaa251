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

import numpy as np

from latentlm.catalogue import parameter_count
from latentlm.codec.image_vit import ImageViTCodec, encoder_parameters_digest
from latentlm.codec.vector_quantized import VectorQuantizedCodec, codes_digest
from latentlm.load import load_codec
from latentlm.media import read_png
from latentlm_platform.artifacts import Artifact, building, key_of
from latentlm_platform.corpora.bad_records import BadRecords, BadTally
from latentlm_platform.corpora.splits import Splits, corpus_digests, preprocessing
from latentlm_platform.corpora.spreading import RETRIES
from latentlm_platform.evaluation.actor_pool import EvaluatorPool
from latentlm_platform.evaluation.codec_scores import latent_health, score_codec
from latentlm_platform.evaluation.evaluator import Evaluator
from latentlm_platform.experiment.sections import Experiment, ImageCodec, Train
from latentlm_platform.home import artifacts_folder
from latentlm_platform.latents.cache import LatentCache, old_caches
from latentlm_platform.latents.decoding import ChunkDecoder
from latentlm_platform.latents.drawing import drawing_codec
from latentlm_platform.latents.encoding import (
    SPLITS,
    EncodingPass,
    error_of,
    moments_from,
    sampled_chunks,
)
from latentlm_platform.progress import Bar
from latentlm_platform.tracking.client import TrackedRun
from latentlm_platform.tracking.journal import Entry
from latentlm_platform.tracking.stage_runs import stage_run
from latentlm_platform.training.codec_training import CodecTraining, train_codec
from latentlm_platform.training.export import export_model
from latentlm_platform.training.following import last_metrics, train_followed
from latentlm_platform.training.inputs import ModelInputs, held_out_chunks
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
    order = (corpus.flip, corpus.chunk_records, corpus.shuffle_window_chunks, corpus.lanes)
    codec = experiment.codec.model_dump(mode="json")
    if settings.objective.adversarial_weight == 0:  # its adaptive weight is each worker's own
        codec["training"].pop("workers")  # otherwise any number of them trains the same codec
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
            _score_codec(artifact, splits, gpus=experiment.train.gpus_per_worker)
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


def _score_codec(codec: Artifact, splits: Splits, *, gpus: float) -> None:
    """What the codec is worth on held-out records, on a machine of the cluster."""
    import ray

    task = ray.remote(score_codec).options(
        num_cpus=1, num_gpus=gpus or None, scheduling_strategy="DEFAULT", max_retries=RETRIES
    )
    ray.get(task.remote(codec.folder / "codec", splits.held_out, folder=codec.folder))


def make_latents(context: StageContext, codec: Artifact) -> Artifact:
    """Encode the corpus, or in other modes than `cached` a sample of it; the latents' moments."""
    experiment, corpus = context.experiment, context.experiment.corpus
    net = load_codec(codec.folder / "codec")
    orientations = 2 if corpus.flip else 1
    digests, chunks = corpus_digests(context.splits), _encoded_chunks(context)
    sampled = None if experiment.latents.mode == "cached" else (experiment.latents.mode, chunks)
    parts = (preprocessing(corpus), corpus.chunk_records, _encoder_digest(net), orientations)
    held_out_seed = experiment.seed if corpus.held_out_source is None else None
    key = key_of("latents", digests, *parts, sampled, held_out_seed)
    artifact = Artifact("latents", key, lineage={"codec": codec.key, "corpus": digests[0]})
    cache = latent_cache(experiment, artifact)
    with building("latents", key) as finished:
        summary = cache.summary()
        if finished is None or summary is None:
            _tell_of_old_caches(context)
            started = time.monotonic()
            encoding = EncodingPass(
                {s: ChunkDecoder(getattr(context.splits, s), s) for s in SPLITS},
                chunks,
                codec_folder=codec.folder / "codec",
                cache=cache,
                latents=experiment.latents,
                orientations=orientations,
            )
            with Bar("encoding", total=encoding.records, unit="record") as bar:
                summary = encoding.run(on_progress=bar.reach)
            cache.commit(summary)
            seconds = time.monotonic() - started
            metrics = latent_health(net, moments_from(summary["moments"]))
            metrics |= _statistics_error(experiment, encoding) if sampled else {}
            metrics |= BadRecords.of(summary).counts()
            artifact = replace(artifact, metrics=metrics, seconds=seconds)
            artifact.save()
        else:
            artifact = _reused(context, finished)
    _tell_of_bad_records(context, summary)
    return artifact


def _encoded_chunks(context: StageContext) -> dict[str, tuple[int, ...]]:
    """The chunks of each split that are encoded before the model is trained."""
    experiment, splits = context.experiment, context.splits
    if experiment.latents.mode == "cached":
        return {s: tuple(np.flatnonzero(getattr(splits, s).chunk_sizes).tolist()) for s in SPLITS}
    records, sizes = experiment.latents.statistics_records, splits.train.chunk_sizes
    sample = sampled_chunks(sizes, records=records, seed=experiment.seed)
    return {"train": sample, "held_out": held_out_chunks(experiment, splits)}


def _statistics_error(experiment: Experiment, encoding: EncodingPass) -> dict[str, float]:
    """How far the statistics of a sample may be from those of the corpus: standard errors."""
    if not isinstance(experiment.codec, ImageCodec):  # codes have no scale
        return {}
    parts, law = list(encoding.chunk_moments()), experiment.codec.variance
    return {
        "latent_mean_error": error_of(parts, lambda m: m.latent_mean()),
        "latent_std_error": error_of(parts, lambda m: m.latent_std(law)),
    }


def _tell_of_old_caches(context: StageContext) -> None:
    count = old_caches(artifacts_folder("latents"))
    if count:
        context.say(
            f"  {count} latent caches in {artifacts_folder('latents')} are of an earlier version,"
            " which cannot be read any more: this corpus is encoded anew; remove them at will"
        )


def _tell_of_bad_records(context: StageContext, summary: dict[str, Any]) -> None:
    bad = BadRecords.of(summary)
    if bad.total:
        context.say(f"  {bad.sentence()}")
    if "latentlm.sweep" not in context.tags:  # trials share a parent: the sweep tells of all
        bad.log(context.parent)
    if context.experiment.latents.mode == "cached":  # a sample may be worse than the whole
        bad.refuse_too_many(context.experiment.corpus, summary["records"])


def _encoder_digest(codec: ImageViTCodec | VectorQuantizedCodec) -> str:
    if isinstance(codec, VectorQuantizedCodec):
        return codes_digest(codec)
    return encoder_parameters_digest(codec)


def latent_cache(experiment: Experiment, latents: Artifact) -> LatentCache:
    """The cache in a latents artifact's folder."""
    return LatentCache(latents.folder, experiment.codec_settings().posterior_width)


def make_model(context: StageContext, codec: Artifact, latents: Artifact) -> Artifact:
    """Train the model on the latents, and export it with its codec and its experiment."""
    experiment = context.experiment
    corpus, law = experiment.corpus, experiment.latents.model_dump(mode="json")["variance"]
    order = (corpus.flip, corpus.shuffle_window_chunks, corpus.lanes)
    sections = (experiment.model.model_dump(mode="json"), _training_law(experiment.train))
    parts = ("model", codec.key, latents.key, *sections, experiment.latents.mode, order, law)
    key = context.key(*parts)
    with building("model", key) as finished:
        if finished:
            return _reused(context, finished)
        lineage = {"codec": codec.key, "latents": latents.key, **latents.lineage}
        artifact = Artifact("model", key, lineage=lineage)
        cache, drawing = latent_cache(experiment, latents), artifact.folder / "codec"
        summary = cache.summary() or {}
        moments, variance = moments_from(summary["moments"]), experiment.latents.variance
        source = codec.folder / "codec"
        drawing_codec(source, variance=variance, moments=moments, target=drawing)
        inputs = ModelInputs(experiment, context.splits, cache, drawing)
        training = ModelTraining(key, experiment, artifact.folder, inputs)
        started = time.monotonic()
        with context.child("model", "model", key=key) as run:
            run.set_tags(lineage_tags(artifact))
            group = WorkerGroup.of(experiment.train, artifact.folder)
            how: dict[str, Any] = {"total": experiment.train.steps, "on_entry": context.on_entry}
            train_followed(group, train_model, training, run, title="model", **how)
            metrics = last_metrics(training.folder / "journal.jsonl")
            run.log_metrics(_size(experiment))
            if experiment.latents.mode != "cached":
                metrics |= _tell_of_bad_stream(context, cache)
            artifact = replace(
                artifact, metrics=metrics, run_id=run.run_id, seconds=time.monotonic() - started
            )
            names = context.splits.train.index.class_names
            export_model(training, artifact, class_names=names)
            artifact.save()
        return artifact


def _training_law(train: Train) -> dict[str, Any]:
    """What of a training's section its result depends on: global batches are the same for any
    number of workers, wherever these are."""
    placement = {"workers", "cpus_per_worker", "gpus_per_worker", "threads_per_worker"}
    return train.model_dump(mode="json", exclude={*placement, "max_failures"})


def _tell_of_bad_stream(context: StageContext, cache: LatentCache) -> dict[str, float]:
    """The records that could not be used, of all that was read while the model was trained."""
    tally = BadTally()
    for state in cache.bad_states():
        tally.merge(BadTally.from_state(state))
    bad, splits = BadRecords(tally), context.splits
    if "latentlm.sweep" not in context.tags:
        bad.log(context.parent)
    records = sum(int(split.chunk_sizes.sum()) for split in (splits.train, splits.held_out))
    bad.refuse_too_many(context.experiment.corpus, records)
    return bad.counts()


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
