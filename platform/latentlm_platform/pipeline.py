"""The spine: one run from the corpus to its scores.

`execute` performs the stages that are missing, keeps the run's record and its MLflow parent run
true at every moment, and ends them as the run ended: FINISHED, FAILED or KILLED.
"""

import contextlib
import signal
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from latentlm_platform import stages
from latentlm_platform.artifacts import Artifact, read_artifact
from latentlm_platform.cluster import connected
from latentlm_platform.corpora.opening import fetch_corpora, open_corpora
from latentlm_platform.errors import Stopped, UserError, own_error
from latentlm_platform.evaluation.actor_pool import EvaluatorPool
from latentlm_platform.evaluation.evaluator import cfg_scales
from latentlm_platform.experiment.files import experiment_key, resolved_yaml, source_text
from latentlm_platform.experiment.sections import Experiment
from latentlm_platform.planning.plan import untrainable
from latentlm_platform.planning.resources import cluster_resources, cpu_problems
from latentlm_platform.progress import say
from latentlm_platform.runs import RunRecord, claimed, now_s, read_run, reap, this_process
from latentlm_platform.tracking.client import Status as Ended
from latentlm_platform.tracking.client import TrackedRun, Tracker, open_tracker
from latentlm_platform.tracking.provenance import collect
from latentlm_platform.tracking.reaper import kill_orphans
from latentlm_platform.training.codec_training import check_codec_files
from latentlm_platform.training.export import check_initial_weights
from latentlm_platform.training.worker_group import take_stop

STAGES = ("codec", "latents", "model", "evaluation")
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Request:
    """What the user asked for: the file, the overrides, and how far to go."""

    experiment: Experiment
    source: str
    overrides: tuple[str, ...]
    until: str = STAGES[-1]
    new: bool = False
    verbose: bool = False
    named: RunRecord | None = None  # resume this very repetition
    trained: RunRecord | None = None  # evaluate the model of this run, train nothing


def execute(request: Request) -> RunRecord:
    """Do what is missing of this experiment; its record, finished."""
    reap()
    record = open_record(request)
    with claimed(record):
        return _drive(request, read_run(record.key) or record)


def _drive(request: Request, record: RunRecord) -> RunRecord:
    if record.status == "FINISHED" and _reaches(record.until, request.until):
        return record
    _refuse_what_does_not_fit(request)
    tracker = open_tracker(request.experiment.tracking)
    parent = open_parent(tracker, record, request)
    record = record.changed(
        status="RUNNING",
        until=request.until,
        driver=this_process(),
        run_id=parent.run_id,
        tracking_uri=tracker.uri,
        started_s=now_s(),
        ended_s=0.0,
        metrics={},
        error="",
    )
    with ending(record, parent, tracker), parent.system_metrics(), terminable():
        _run_stages(request, record, parent)
    return read_run(record.key) or record


def _run_stages(request: Request, record: RunRecord, parent: TrackedRun) -> None:
    experiment = request.experiment
    check_initial_weights(experiment)
    check_codec_files(experiment)
    fetch_corpora(experiment, say)
    done = trained_artifacts(request.trained)
    # ray.init takes SIGTERM for itself: ours is set again after it
    with connected(experiment.cluster, verbose=request.verbose), terminable():
        splits = open_corpora(experiment, parent)
        pool = EvaluatorPool()
        context = stages.StageContext(
            experiment, record.key, record.attempt, splits, parent, say, pool
        )
        for stage in STAGES[len(done) : STAGES.index(request.until) + 1]:
            say(f"{stage} …")
            record = record.changed(stage=stage)
            done[stage] = _perform(stage, context, done)
            parent.set_tags({f"latentlm.{stage}": done[stage].key})
            record = record.changed(
                artifacts={s: artifact.key for s, artifact in done.items()},
                metrics=record.metrics | done[stage].metrics,
            )
            if take_stop(done[stage].folder):
                raise Stopped(f"stopped after the stage {stage}")
    metrics = {name: v for artifact in done.values() for name, v in artifact.metrics.items()}
    for stage, artifact in done.items():
        metrics[f"{stage}_seconds"] = artifact.seconds
    metrics["run_seconds"] = now_s() - record.started_s
    parent.log_metrics(metrics)
    record.changed(metrics=metrics)


def trained_artifacts(trained: RunRecord | None) -> dict[str, Artifact]:
    """The artifacts before evaluation of a run that is only evaluated again."""
    if trained is None:
        return {}
    found = {s: read_artifact(s, trained.artifacts.get(s, "")) for s in STAGES[:-1]}
    missing = [stage for stage, artifact in found.items() if artifact is None]
    if missing:
        raise UserError(
            f"run {trained.key} has no finished {missing[0]}: `latentlm resume {trained.key}`"
        )
    return {stage: artifact for stage, artifact in found.items() if artifact is not None}


def _perform(stage: str, context: stages.StageContext, done: dict[str, Artifact]) -> Artifact:
    if stage == "codec":
        return stages.make_codec(context)
    if stage == "latents":
        return stages.make_latents(context, done["codec"])
    if stage == "model":
        return stages.make_model(context, done["codec"], done["latents"])
    evaluation = stages.evaluate_model(context, done["model"])
    for scale in cfg_scales(context.experiment):
        sample = replace(context.experiment.sample, cfg_scale=scale)
        experiment = context.experiment.model_copy(update={"sample": sample})
        stages.log_evaluation(replace(context, experiment=experiment), evaluation)
    return evaluation


def open_record(request: Request) -> RunRecord:
    """The newest repetition of this experiment, or a new one."""
    if request.named is not None:
        return request.named
    base = experiment_key(request.experiment)
    if request.trained is not None and request.trained.attempt > 1:
        base = f"{base}-of-{request.trained.key}"
    attempt = 1
    while read_run(_attempt_key(base, attempt + 1)) is not None:
        attempt += 1
    found = read_run(_attempt_key(base, attempt))
    if found is not None and not request.new:
        return found
    attempt += 1 if found is not None else 0
    return RunRecord(
        key=_attempt_key(base, attempt),
        name=request.experiment.name,
        source=request.source,
        overrides=request.overrides,
        attempt=attempt,
        trained=request.trained.key if request.trained else "",
    )


def _attempt_key(base: str, attempt: int) -> str:
    return base if attempt == 1 else f"{base}-{attempt}"


def _reaches(done: str | None, wanted: str) -> bool:
    return done is not None and STAGES.index(done) >= STAGES.index(wanted)


def _refuse_what_does_not_fit(request: Request) -> None:
    experiment = request.experiment
    if experiment.sweep is not None:
        raise UserError(
            f"{experiment.name} has a sweep: use `latentlm sweep`, or `latentlm run` for one point,"
            " its values given with --set, and --set sweep=null"
        )
    unready = untrainable(experiment)
    trained = request.trained is not None
    if unready:
        problems = [unready]
    else:
        problems = cpu_problems(experiment, cluster_resources(experiment), trained=trained)
    if problems:
        raise UserError("; ".join(problems), exit_code=3, report={"fits": False})


def open_parent(tracker: Tracker, record: RunRecord, request: Request) -> TrackedRun:
    """The run's MLflow parent: the same one when the run goes on, so that no history is doubled."""
    if record.run_id and record.tracking_uri == tracker.uri:
        kill_orphans(tracker.uri, [record.run_id])  # children that a dead driver left
        parent = tracker.reopen(record.run_id)
        parent.set_tags({"latentlm.resumed_at_s": round(now_s()), "latentlm.error": ""})
        return parent
    provenance = collect(ROOT)
    experiment = request.experiment
    tags = {
        "latentlm.kind": "run",
        "latentlm.key": record.key,
        "latentlm.experiment": experiment.name,
        "latentlm.question": experiment.question,
        "latentlm.reproduces": experiment.reproduces or "",
        **provenance.tags(),
    }
    if request.trained is not None:
        tags["latentlm.trained"] = request.trained.key
    parameters = experiment.model_dump(mode="json")
    parent = tracker.start_run(experiment.name, tags=tags, parameters=parameters)
    parent.log_text(resolved_yaml(experiment), "experiment/resolved.yaml")
    parent.log_text(source_text(request.source), "experiment/source.yaml")
    parent.log_text(provenance.text(), "environment.txt")
    if provenance.diff:
        parent.log_text(provenance.diff, "git.diff")
    return parent


@contextlib.contextmanager
def ending(record: RunRecord, parent: TrackedRun, tracker: Tracker) -> Iterator[None]:
    """End the record and its MLflow run as the body ends."""
    status: Ended = "FAILED"
    error = ""
    try:
        yield
        status = "FINISHED"
    except (Stopped, KeyboardInterrupt, SystemExit) as stop:
        status, error = "KILLED", str(stop) or "interrupted"
        raise UserError(
            f"{error}; go on with: latentlm resume {record.key}",
            exit_code=130,
            report={"status": "KILLED", "run_id": parent.run_id, "key": record.key},
        ) from stop
    except UserError as failure:
        error = str(failure)
        failure.report |= {"status": "FAILED", "run_id": parent.run_id, "key": record.key}
        raise
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
        own = own_error(failure)
        if own is None:
            traceback.print_exc()
        if own is not None:
            own.report |= {"status": "FAILED", "run_id": parent.run_id, "key": record.key}
        raise own or UserError(
            f"{error} (a fault of ours; the trace is above)",
            exit_code=1,
            report={"status": "FAILED", "run_id": parent.run_id, "key": record.key},
        ) from failure
    finally:
        # MLflow first: while the record still reads RUNNING, a driver that dies here is reaped
        if error:
            parent.set_tags({"latentlm.error": error})
        parent.finish(status)
        lost = tracker.close()
        if lost:
            say(lost)
        newest = read_run(record.key) or record
        replace(newest, status=status, error=error, ended_s=now_s()).save()


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM (`latentlm stop`, a batch system) ends a run as Ctrl-C does."""

    def interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def run_report(record: RunRecord) -> dict[str, Any]:
    """What `run` tells programs."""
    return {
        "status": record.status,
        "run_id": record.run_id,
        "key": record.key,
        "name": record.name,
        "tracking_uri": record.tracking_uri,
        "metrics": record.metrics,
        "links": record.links,
        "folder": str(record.folder),
    }
