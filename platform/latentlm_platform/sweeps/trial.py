"""A trial of a sweep, as Ray Tune runs it: what is missing of its stages, then its points.

It runs in an actor that Tune uses for one trial after another, and keeps what is dear to start: the
connection to MLflow and the actors that sample and score.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from latentlm_platform import stages
from latentlm_platform.artifacts import Artifact, key_of
from latentlm_platform.corpora.splits import Splits, open_splits
from latentlm_platform.errors import own_error
from latentlm_platform.evaluation.actor_pool import EvaluatorPool
from latentlm_platform.experiment.files import experiment_key
from latentlm_platform.experiment.points import Point, drawn_points
from latentlm_platform.experiment.sections import Experiment
from latentlm_platform.experiment.trials import Trial, trial_of
from latentlm_platform.runs import now_s
from latentlm_platform.sweeps.ledger import Event, Ledger, Line, ledger_of
from latentlm_platform.tracking.client import TrackedRun, Tracker, open_tracker
from latentlm_platform.tracking.journal import Entry
from latentlm_platform.tracking.reaper import delete_left, kill_left

FLUSH_S = 60.0
TRAINED_LOSS = "validation_loss"  # what trainings are compared by before they have ended


@dataclass(frozen=True)
class SweepJob:
    """What all trials of a sweep share."""

    key: str
    attempt: int
    experiment: Experiment
    trials: tuple[Trial, ...]
    folder: Path
    parent_run_id: str
    trained: dict[str, Artifact]

    @property
    def ledger(self) -> Ledger:
        return ledger_of(self.folder)

    def trial(self, config: dict[str, Any]) -> Trial:
        """The trial that Tune asks for: one by its number, or one that a search algorithm drew."""
        if "trial" in config:
            return self.trials[config["trial"]]
        return trial_of(drawn_points(self.experiment, config))


class _Kept:
    """What this process keeps between trials."""

    tracker: Tracker | None = None
    evaluators = EvaluatorPool(cpus_each=0.0)


def run_trial(config: dict[str, Any], *, job: SweepJob) -> None:
    """What Tune calls. An error of ours is written down and not raised: a retry would meet it."""
    from ray import tune

    trial = None
    try:
        trial = job.trial(config)
        draw = {} if "trial" in config else config
        job.ledger.append(_lines("started", trial, draw=draw))
        metrics = _Performance(job, trial, draw=draw).run()
    except Exception as error:
        _Kept.evaluators.close()  # one of them may be dead
        own = own_error(error)
        if own is None and _process_died(error):
            raise
        sentence = str(own) if own is not None else f"{type(error).__name__}: {error}"
        lines = _lines("failed", trial, error=sentence) if trial else [_refused(config, sentence)]
        job.ledger.append(lines)
        tune.report({"failed": 1, "error": sentence, "step": 0})
        return
    tune.report(metrics | {"failed": 0, "step": trial.experiment.train.steps})


def _process_died(error: Exception) -> bool:
    """Whether a process or a connection is gone, so that another try may end otherwise."""
    from ray.exceptions import RayError, RayTaskError

    gone = isinstance(error, RayError) and not isinstance(error, RayTaskError)
    return gone or isinstance(error, ConnectionError)


class _Performance:
    """One trial being done."""

    def __init__(self, job: SweepJob, trial: Trial, *, draw: dict[str, Any]) -> None:
        self.job, self.trial, self.draw = job, trial, draw
        self.started_s = now_s()
        if _Kept.tracker is None:
            _Kept.tracker = open_tracker(trial.experiment.tracking)
        self.tracker = _Kept.tracker

    def run(self) -> dict[str, float]:
        """Stages and points; the metrics of the first point, for whoever chooses the next."""
        experiment = self.trial.experiment
        tags = {"latentlm.sweep": self.job.key, "latentlm.trial": self.trial.key}
        kill_left(self.tracker, tags)  # by an earlier try
        evaluations = tags | {"latentlm.kind": "evaluation"}
        delete_left(self.tracker, evaluations, keys=set(self.trial.point_keys()))
        context = stages.StageContext(
            experiment,
            self.job.key,
            self.job.attempt,
            _splits(experiment),
            TrackedRun(self.tracker, self.job.parent_run_id),
            print,
            _Kept.evaluators,
            tags=tags,
            values=self.trial.points[0].values,
            on_entry=self._report_training,
        )
        if experiment.train.gpus_per_worker and not self.job.trained:
            _Kept.evaluators.close()  # trainings need the GPUs that they hold
        done = dict(self.job.trained)
        if not done:
            done["codec"] = stages.make_codec(context)
            done["latents"] = stages.make_latents(context, done["codec"])
            done["model"] = stages.make_model(context, done["codec"], done["latents"])
        done["evaluation"] = stages.evaluate_model(context, done["model"])
        lines = [self._finish(context, done, point) for point in self.trial.points]
        self.tracker.outbox.flush(FLUSH_S)  # a line says that MLflow has the point
        self.job.ledger.append(lines)
        return lines[0].metrics

    def _report_training(self, entry: Entry) -> None:
        """Tell Tune how the training stands, so that it can end one that falls behind.

        Of the last step nothing is told: what is trained to its end is evaluated.
        """
        from ray import tune

        if TRAINED_LOSS in entry.metrics and entry.step < self.trial.experiment.train.steps:
            tune.report({TRAINED_LOSS: entry.metrics[TRAINED_LOSS], "step": entry.step})

    def _finish(
        self, context: stages.StageContext, done: dict[str, Artifact], point: Point
    ) -> Line:
        """The point's MLflow run and its line."""
        key, scale = experiment_key(point.experiment), float(point.experiment.sample.cfg_scale)
        own = replace(context, experiment=point.experiment, values=point.values)
        run_id = stages.log_evaluation(own, done["evaluation"], key=key)
        metrics: dict[str, float] = {}
        for stage, artifact in done.items():
            metrics |= artifact.metrics | {f"{stage}_seconds": artifact.seconds}
        metrics |= done["evaluation"].facts["by_cfg_scale"][f"{scale:g}"]
        return Line(
            "finished",
            key,
            self.trial.key,
            values=point.values,
            metrics=metrics,
            artifacts={stage: artifact.key for stage, artifact in done.items()},
            run_id=run_id,
            seconds=now_s() - self.started_s,
            draw=self.draw,
        )


def _lines(
    event: Event, trial: Trial, *, error: str = "", draw: dict[str, Any] | None = None
) -> Iterator[Line]:
    for point, key in zip(trial.points, trial.point_keys(), strict=True):
        yield Line(event, key, trial.key, values=point.values, error=error, draw=draw or {})


def _refused(draw: dict[str, Any], error: str) -> Line:
    """A draw that is no experiment."""
    key = key_of(draw)
    return Line("failed", key, key, values=draw, error=error)


def _splits(experiment: Experiment) -> Splits:
    return open_splits(experiment.corpus, seed=experiment.seed)
