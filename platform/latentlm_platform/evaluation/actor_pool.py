"""Evaluator actors that the evaluations of one process use one after another."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from latentlm_platform.corpora.splits import Split
from latentlm_platform.evaluation.actor import EvaluatorActor
from latentlm_platform.evaluation.held_out import Piece, deal
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


def on_actors(
    actors: Sequence[Any], function: Callable[..., Any], jobs: Sequence[Mapping[str, Any]]
) -> Iterator[Any]:
    """`function(actor, **job)` for each job, on whichever actor is free; answers in order."""
    from ray.util import ActorPool

    answers: Iterator[Any] = ActorPool(list(actors)).map(
        lambda actor, job: actor.perform.remote(function, **job), list(jobs)
    )
    return answers


def on_held_out(
    actors: Sequence[Any],
    function: Callable[..., Any],
    split: Split,
    pieces: Sequence[Piece],
    **given: Any,
) -> list[Any]:
    """`function(actor, split=…, pieces=…, **given)` for an equal part of the rows on each actor.

    What is sent is which rows: each actor reads its own chunks.
    """
    import ray

    shared = ray.put(split)
    jobs = [{"split": shared, "pieces": part, **given} for part in deal(pieces, len(actors))]
    return list(on_actors(actors, function, jobs))
