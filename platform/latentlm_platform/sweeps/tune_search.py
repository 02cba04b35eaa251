"""The part of a sweep that is Ray Tune's: which trial is next, where it runs, when it is ended."""

import math
import os
from pathlib import Path
from typing import Any

from latentlm_platform.errors import Stopped, UserError
from latentlm_platform.experiment.points import is_optuna
from latentlm_platform.experiment.search import Between, Search, Sweep
from latentlm_platform.experiment.trials import Trial
from latentlm_platform.planning.resources import TRIAL_CPUS
from latentlm_platform.progress import Bar, say
from latentlm_platform.runs import now_s
from latentlm_platform.sweeps.ledger import Line
from latentlm_platform.sweeps.trial import TRAINED_LOSS, SweepJob, run_trial

STATE_EVERY_S = 300  # Tune's own snapshots, which nothing of ours reads
LONGEST_TRAINING = 10**9  # steps, for ASHA; trainings end by themselves


class SearchedSweep:
    """What is left to do of a sweep, done."""

    def __init__(self, job: SweepJob, *, retry_failed: bool) -> None:
        assert job.experiment.sweep is not None
        self.job, self.sweep = job, job.experiment.sweep
        self.retry_failed = retry_failed
        self.optuna = is_optuna(job.experiment)
        self.ends = job.ledger.ends()
        if retry_failed:
            self.ends = {key: e for key, e in self.ends.items() if e.event != "failed"}

    def run(self) -> None:
        """Run trials until every point has ended; UserError where the sweep ends before that."""
        left = self._left()
        if not (self._samples_left() if self.optuna else left):
            return
        watch = Watch(self.job, self.sweep, total=self._total())
        with watch.bar:
            self._fit(left, watch)
        watch.raise_if_ended_early()

    def _left(self) -> list[int]:
        return [i for i, trial in enumerate(self.job.trials) if not self._has_ended(trial)]

    def _has_ended(self, trial: Trial) -> bool:
        return all(key in self.ends for key in trial.point_keys())

    def _total(self) -> int:
        if self.optuna:
            assert self.sweep.search is not None
            return self.sweep.search.samples
        return sum(len(trial.points) for trial in self.job.trials)

    def _samples_left(self) -> int:
        assert self.sweep.search is not None
        return max(0, self.sweep.search.samples - self.job.ledger.draws())

    def _fit(self, left: list[int], watch: "Watch") -> None:
        from ray import tune
        from ray.tune.tuner import Tuner

        os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the other output is never silent
        os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a failed trial has none
        os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", str(STATE_EVERY_S))
        folder = self.job.folder / "tune"
        attempt = sum(1 for _ in folder.glob("attempt-*"))
        samples, space = 1, {"trial": tune.grid_search(left)}
        if self.optuna:
            assert self.sweep.search is not None
            samples, space = self._samples_left(), {}
        tuner = Tuner(
            tune.with_resources(tune.with_parameters(run_trial, job=self.job), {"cpu": TRIAL_CPUS}),
            param_space=space,
            tune_config=tune.TuneConfig(
                num_samples=samples,
                max_concurrent_trials=self.sweep.max_concurrent,
                time_budget_s=self.sweep.time_budget_s,
                # one that a stopper ends leaves its training behind, which must end with its actor
                reuse_actors=self.sweep.stopper is None,
                search_alg=self._search_algorithm() if self.optuna else None,
                scheduler=self._scheduler(),
                trial_dirname_creator=lambda trial: f"trial-{trial.trial_id}",
            ),
            run_config=tune.RunConfig(
                name=f"attempt-{attempt}",
                storage_path=str(folder),
                failure_config=tune.FailureConfig(max_failures=self.sweep.restarts),
                stop=watch.stopper(),
                callbacks=[watch.callback()],
                verbose=0,
            ),
        )
        tuner.fit()

    def _scheduler(self) -> Any:
        from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule

        stopper = self.sweep.stopper
        if stopper is None:
            return None
        by = {"time_attr": "step", "metric": TRAINED_LOSS, "mode": "min"}
        if stopper.kind == "median":
            never = float("inf")  # it would pause trials, and a paused one starts anew
            return MedianStoppingRule(**by, grace_period=stopper.grace_steps, min_time_slice=never)
        return ASHAScheduler(
            **by,
            grace_period=stopper.grace_steps,
            reduction_factor=stopper.reduction,
            max_t=LONGEST_TRAINING,
        )

    def _search_algorithm(self) -> Any:
        """TPE, told what this sweep has measured so far."""
        from ray.tune.search import ConcurrencyLimiter

        try:
            import optuna
            from ray.tune.search.optuna import OptunaSearch
        except ImportError as error:
            raise UserError(
                "sweep.search.algorithm = optuna needs Optuna: pip install 'latentlm[optuna]', or"
                " set it to random"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        search, metric = self.sweep.search, self.sweep.metric
        assert search is not None
        first = {e.trial: e for e in reversed(self.ends.values()) if metric in e.metrics}

        class EndsOnly(OptunaSearch):
            """Only what a trial ends with is the metric: a training's validation loss is not."""

            def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
                return

            def on_trial_complete(
                self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
            ) -> None:
                failed = error or result is None or metric not in result
                super().on_trial_complete(trial_id, None if failed else result, failed)

        algorithm = EndsOnly(
            space=_optuna_space(search),
            metric=metric,
            mode=self.sweep.better,
            points_to_evaluate=[e.draw for e in first.values()] or None,
            evaluated_rewards=[e.metrics[metric] for e in first.values()] or None,
            seed=search.seed + self.job.ledger.draws(),  # the same seed would draw the same again
        )
        return ConcurrencyLimiter(algorithm, max_concurrent=self.sweep.max_concurrent)


def _optuna_space(search: Search) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    space: dict[str, Any] = {}
    for path, one in search.space.items():
        if not isinstance(one, Between):
            space[path] = CategoricalDistribution(one.values)
        elif one.kind == "integer":
            space[path] = IntDistribution(int(one.low), int(one.high))
        else:
            space[path] = FloatDistribution(one.low, one.high, log=one.kind == "log_uniform")
    return space


class Watch:
    """Follows the trials for the driver: progress, failures, trials that Tune ended."""

    def __init__(self, job: SweepJob, sweep: Sweep, *, total: int) -> None:
        self.job, self.sweep = job, sweep
        self.optuna = is_optuna(job.experiment)
        self.bar = Bar("sweep", total=total, unit="draw" if self.optuna else "point")
        self.started_s = now_s()
        self.failed = 0
        self.bar.reach(self._ended())

    def too_many_failed(self) -> bool:
        return self.failed > self.sweep.max_failed

    def stopper(self) -> Any:
        """Ends the whole sweep once too many trials have failed."""
        from ray.tune import Stopper

        watch = self

        class TooManyFailed(Stopper):
            def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
                return False

            def stop_all(self) -> bool:
                return watch.too_many_failed()

        return TooManyFailed()

    def callback(self) -> Any:
        """Tune's callbacks, in the driver."""
        from ray.tune import Callback

        watch = self

        class Following(Callback):
            def on_trial_complete(
                self, iteration: int, trials: list[Any], trial: Any, **info: Any
            ) -> None:
                watch.trial_ended(trial)

            def on_trial_error(
                self, iteration: int, trials: list[Any], trial: Any, **info: Any
            ) -> None:
                watch.trial_died(trial)

        return Following()

    def trial_ended(self, tuned: Any) -> None:
        """A trial returned, or a scheduler ended it."""
        result = tuned.last_result or {}
        if result.get("failed") == 1:
            self.failed += 1
            self._say(f"a trial failed: {result['error']}")
        elif "failed" not in result and self.sweep.stopper is not None:
            self._record(tuned, "stopped", "fell behind the others")
        self._reach()

    def trial_died(self, tuned: Any) -> None:
        """A trial's process died more often than sweep.restarts."""
        self.failed += 1
        reason = _last_line(getattr(tuned, "error_file", None))
        self._say(f"a trial died: {reason}")
        self._record(tuned, "failed", reason)
        self._reach()

    def _budget_is_used(self) -> bool:
        budget = self.sweep.time_budget_s
        return budget is not None and now_s() - self.started_s >= budget

    def raise_if_ended_early(self) -> None:
        """UserError or Stopped where points are left."""
        if self.too_many_failed():
            raise UserError(
                f"{self.failed} trials failed, more than sweep.max_failed"
                f" = {self.sweep.max_failed}",
                exit_code=1,
            )
        ended = self._ended()
        if ended >= self.bar.total:
            return
        if self._budget_is_used():
            raise UserError(
                f"sweep.time_budget_s = {self.sweep.time_budget_s:g} is used up with {ended} of"
                f" {self.bar.total} points ended; `latentlm sweep --resume` goes on with a new one",
                exit_code=1,
            )
        raise Stopped(f"the sweep stopped with {ended} of {self.bar.total} points ended")

    def _record(self, tuned: Any, event: Any, error: str) -> None:
        trial, ends = self.job.trial(tuned.config), self.job.ledger.ends()
        self.job.ledger.append(
            Line(event, key, trial.key, values=point.values, error=error)
            for point, key in zip(trial.points, trial.point_keys(), strict=True)
            if key not in ends
        )

    def _reach(self) -> None:
        ended = self.job.ledger.ends().values()
        found = [e.metrics[self.sweep.metric] for e in ended if self.sweep.metric in e.metrics]
        found = [value for value in found if math.isfinite(value)]
        best = min if self.sweep.better == "min" else max
        note = f"best {best(found):.4g}" if found else ""
        self.bar.reach(self._ended(), note=note)

    def _ended(self) -> int:
        return self.job.ledger.draws() if self.optuna else len(self.job.ledger.ends())

    def _say(self, sentence: str) -> None:
        say(f"  {sentence}")


def _last_line(path: str | None) -> str:
    if path is None or not Path(path).exists():
        return "its process ended without a word"
    lines = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "its process ended without a word"
