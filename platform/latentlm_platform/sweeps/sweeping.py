"""A sweep: its trials on Ray Tune, its ledger, its findings.

Tune chooses, places and restarts trials; what was done is in the ledger and in MLflow. Going on
with a sweep starts a new Tune over the points that have not ended, and Tune's own files are never
read, so that nothing they lose is lost.
"""

import json
from typing import Any

from latentlm_platform.artifacts import Artifact
from latentlm_platform.cluster import connected
from latentlm_platform.corpora.bad_records import BadRecords
from latentlm_platform.corpora.opening import fetch_corpora, open_corpora
from latentlm_platform.errors import UserError
from latentlm_platform.experiment.files import experiment_key, load_experiment
from latentlm_platform.experiment.points import Point, stage_of, sweep_points
from latentlm_platform.experiment.sections import Experiment
from latentlm_platform.experiment.trials import CODEC_SECTIONS, MODEL_SECTIONS, trials_of, work_key
from latentlm_platform.latents.cache import SUMMARY
from latentlm_platform.pipeline import (
    Request,
    ending,
    open_parent,
    open_record,
    terminable,
    trained_artifacts,
)
from latentlm_platform.planning.plan import untrainable
from latentlm_platform.planning.resources import cluster_resources, cpu_problems
from latentlm_platform.progress import say
from latentlm_platform.runs import RunRecord, claimed, now_s, read_run, reap, this_process
from latentlm_platform.sweeps.findings import Row, findings_report, read_findings, render_findings
from latentlm_platform.sweeps.ledger import Line, ledger_of
from latentlm_platform.sweeps.trial import SweepJob
from latentlm_platform.sweeps.tune_search import SearchedSweep
from latentlm_platform.tracking.client import TrackedRun, open_tracker
from latentlm_platform.tracking.reaper import kill_left
from latentlm_platform.training.codec_training import check_codec_files
from latentlm_platform.training.export import check_initial_weights


def execute_sweep(request: Request, *, retry_failed: bool = False) -> RunRecord:
    """Do what is missing of this sweep; its record, finished. Points that failed stay so unless
    they are to be tried again."""
    reap()
    record = open_record(request)
    with claimed(record):
        record = read_run(record.key) or record
        if record.status == "FINISHED" and not (retry_failed and failed_lines(record)):
            return record
        return _drive(request, record, retry_failed=retry_failed)


def _drive(request: Request, record: RunRecord, *, retry_failed: bool) -> RunRecord:
    experiment = request.experiment
    points = sweep_points(experiment)
    likely = points or [Point({}, experiment.model_copy(update={"sweep": None}))]  # of Optuna
    _refuse(experiment, likely, trained=request.trained)
    tracker = open_tracker(experiment.tracking)
    parent = open_parent(tracker, record, request)
    parent.set_tags({"latentlm.kind": "sweep", "latentlm.sweep": record.key})
    record = record.changed(
        status="RUNNING",
        driver=this_process(),
        run_id=parent.run_id,
        tracking_uri=tracker.uri,
        stage="sweep",
        started_s=now_s(),
        ended_s=0.0,
        error="",
    )
    with ending(record, parent, tracker), parent.system_metrics(), terminable():
        corpora = _prepare(likely)
        job = SweepJob(
            key=record.key,
            attempt=record.attempt,
            experiment=experiment,
            trials=tuple(trials_of(points)),
            folder=record.folder,
            parent_run_id=parent.run_id,
            trained=trained_artifacts(request.trained),
        )
        try:
            with connected(experiment.cluster, verbose=request.verbose), terminable():
                for one in corpora:  # before any trial does
                    open_corpora(one, parent)
                SearchedSweep(job, retry_failed=retry_failed).run()
        finally:
            kill_left(tracker, {"mlflow.parentRunId": parent.run_id})
        record = _conclude(record, experiment, parent)
    return read_run(record.key) or record


def _refuse(experiment: Experiment, points: list[Point], *, trained: RunRecord | None) -> None:
    """What cannot be done is said before anything is started."""
    assert experiment.sweep is not None
    if trained is not None:
        _refuse_training(experiment, points, trained)
    problems: dict[str, None] = {}
    cluster = cluster_resources(experiment)
    for one in {work_key(p.experiment, SIZED): p.experiment for p in points}.values():
        unready = untrainable(one)
        sized = one.model_copy(update={"sweep": experiment.sweep})
        fits = cpu_problems(sized, cluster, trained=trained is not None)
        problems |= dict.fromkeys([unready] if unready else fits)
    if problems:
        raise UserError("; ".join(problems), exit_code=3, report={"fits": False})


SIZED = frozenset({"codec", "latents", "model", "train", "evaluate", "corpus"})


def _refuse_training(experiment: Experiment, points: list[Point], trained: RunRecord) -> None:
    """A finished model's own settings can be neither swept nor other than they were."""
    for path in dict.fromkeys(path for point in points for path in point.values):
        if (stage := stage_of(path)) != "evaluation":
            raise UserError(
                f"the sweep varies {path}, which belongs to the stage {stage}, but --model takes a"
                " trained model as it is: sweep only sample.… and evaluate.…, or leave --model out"
            )
    was = load_experiment(trained.source, overrides=trained.overrides)
    if not trained.key.startswith(experiment_key(was)):
        raise UserError(
            f"{trained.source} has changed since run {trained.key} was started: undo the change, or"
            " leave --model out"
        )
    for section in sorted(MODEL_SECTIONS):
        if work_key(was, [section]) != work_key(experiment, [section]):
            raise UserError(
                f"run {trained.key} was trained with another {section} section than the sweep has:"
                f" let the sweep extend {trained.source}, or leave --model out"
            )


def _prepare(points: list[Point]) -> list[Experiment]:
    """Fetch every corpus and check every file of weights once; an experiment for each corpus."""
    by_corpus = {p.experiment.corpus.model_dump_json(): p.experiment for p in points}
    for one in by_corpus.values():
        fetch_corpora(one, say)
    for one in {work_key(p.experiment, CODEC_SECTIONS): p.experiment for p in points}.values():
        check_codec_files(one)
    for point in points:
        if point.experiment.model.initial_weights is not None:
            check_initial_weights(point.experiment)
    return list(by_corpus.values())


def _conclude(record: RunRecord, experiment: Experiment, parent: TrackedRun) -> RunRecord:
    """Read the result; the parent run gets the findings and the best point's metrics."""
    rows = rows_of(record, experiment)
    sweep = experiment.sweep
    assert sweep is not None
    finished = [row for row in rows if row.metrics]
    if finished and not any(sweep.metric in row.metrics for row in finished):
        known = ", ".join(sorted(finished[0].metrics))
        raise UserError(
            f"sweep.metric = {sweep.metric} was reported by no point; choose of {known}"
        )
    failed = failed_lines(record)
    metrics = {"points_finished": float(len(finished)), "points_failed": float(len(failed))}
    findings = sweep_findings(record, experiment)
    parent.log_text(json.dumps(findings_report(findings), indent=1), "findings.json")
    parent.log_text(render_findings(findings), "findings.txt")
    parent.log_table([{**row.values, **row.metrics} for row in finished], "points.json")
    _bad_records(record).log(parent)
    if findings.best is not None:
        metrics[f"best_{sweep.metric}"] = findings.best.score.mean
    metrics["run_seconds"] = now_s() - record.started_s
    parent.log_metrics(metrics)
    return record.changed(metrics=metrics)


def _bad_records(record: RunRecord) -> BadRecords:
    """Of every corpus that its points were encoded from."""
    ends = ledger_of(record.folder).ends().values()
    keys = sorted({key for end in ends if (key := end.artifacts.get("latents"))})
    paths = [Artifact("latents", key).folder / SUMMARY for key in keys]
    return BadRecords.of(*(json.loads(p.read_text("utf-8")) for p in paths if p.exists()))


def sweep_findings(record: RunRecord, experiment: Experiment) -> Any:
    """What the finished points say, by the sweep's own questions."""
    sweep = experiment.sweep
    assert sweep is not None
    return read_findings(
        rows_of(record, experiment),
        metric=sweep.metric,
        mode=sweep.better,
        claims=sweep.claims,
        replicate=sweep.replicate,
        cost=sweep.cost,
    )


def rows_of(record: RunRecord, experiment: Experiment) -> list[Row]:
    """Every point of a sweep; one that is not finished has no metrics, so that nobody can take the
    rest for the whole."""
    ends = ledger_of(record.folder).ends()
    measured = {k: e.metrics if e.event == "finished" else {} for k, e in ends.items()}
    expected = {experiment_key(p.experiment): p.values for p in sweep_points(experiment)}
    values = expected | {k: e.values for k, e in ends.items()}
    return [Row(key, chosen, measured.get(key, {})) for key, chosen in values.items()]


def failed_lines(record: RunRecord) -> list[Line]:
    """The points that failed."""
    ends = ledger_of(record.folder).ends()
    return [line for line in ends.values() if line.event == "failed"]
