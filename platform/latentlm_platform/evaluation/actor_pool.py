"""Evaluator actors that the evaluations of one process use one after another."""

from typing import Any

from latentlm_platform.evaluation.actor import EvaluatorActor
from latentlm_platform.experiment.sections import Experiment


class EvaluatorPool:
    """`evaluate.actors` actors, started when first asked for and kept until `close`.

    A sweep keeps them beside its trainings, with which they never work at once: they then ask Ray
    for no CPU.
    """

    def __init__(self, *, cpus_each: float = 1.0) -> None:
        self.cpus_each = cpus_each
        self._fitting: tuple[Any, ...] = ()
        self._actors: list[Any] = []

    def actors(self, experiment: Experiment) -> list[Any]:
        """Actors as this experiment wants them; the same ones where it wants the same."""
        import ray

        settings, gpus = experiment.evaluate, experiment.train.gpus_per_worker
        fitting = (settings.actors, settings.feature_extractor, settings.feature_size, gpus)
        if fitting != self._fitting:
            self.close()
            options: dict[str, Any] = {"num_cpus": self.cpus_each, "num_gpus": gpus or None}
            options["scheduling_strategy"] = "DEFAULT"  # beside a trial's own reservation
            remote = ray.remote(EvaluatorActor).options(**options)
            arguments = {
                "extractor": settings.feature_extractor,
                "feature_size": settings.feature_size,
            }
            self._actors = [remote.remote(**arguments) for _ in range(settings.actors)]
            self._fitting = fitting
        return self._actors

    def close(self) -> None:
        """End the actors."""
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors, self._fitting = [], ()
