"""The shape of an evaluation task: what it needs, how it generates and scores, what it shows.

A task has one file. What runs on an actor is a function of that file, `function(actor, **job)`, so
that the actor knows no task. Metrics are flat: NAME with its 95 % interval in NAME_low and
NAME_high, a number of items in NAME_images or the like, chance alone in NAME_floor and the best
that could be had in NAME_ceiling or under the name of what bounds it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from latentlm.metrics import Interval
from latentlm_platform.corpora.splits import Splits
from latentlm_platform.evaluation.judge import Judge
from latentlm_platform.evaluation.references import References
from latentlm_platform.experiment.sections import Experiment

EVALUATION_EPOCH = 2**31 + 1  # keys what is generated here apart from every training epoch
Generated = TypeVar("Generated")
Progress = Callable[[int], None]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Needs:
    """What the evaluator prepares for a task, and the model.kind it is for (empty: any)."""

    judge: bool = False
    references: bool = False
    models: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Subject:
    """A trained model, and all that a task may ask of it; judge and references where needed."""

    experiment: Experiment
    export: Path
    codec: str  # its key
    splits: Splits
    folder: Path  # where what is shown is written
    cfg_scales: tuple[float, ...]
    actors: Sequence[Any] = ()
    judge: Judge | None = None
    references: References | None = None

    @property
    def frechet(self) -> str:
        """The name of the Fréchet distance between features of this extractor."""
        return f"frechet_{self.experiment.evaluate.feature_extractor}"


@dataclass(frozen=True)
class Scores:
    """Metrics that all scales share, and metrics by CFG scale."""

    shared: dict[str, float] = field(default_factory=dict)
    by_scale: dict[float, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Shown:
    """By CFG scale, pictures (name → PNG in the subject's folder) and tables (name → rows); and
    files of all scales together."""

    pictures: dict[float, dict[str, str]] = field(default_factory=dict)
    tables: dict[float, dict[str, Rows]] = field(default_factory=dict)
    files: tuple[str, ...] = ()


class Task(ABC, Generic[Generated]):
    """One thing that an evaluation measures; instances hold nothing."""

    needs: ClassVar[Needs] = Needs()

    def applies(self, experiment: Experiment) -> bool:
        """Whether there is anything to do for this experiment."""
        return not self.needs.models or experiment.model.kind in self.needs.models

    def items(self, subject: Subject) -> int:
        """How many items the progress bar counts for it."""
        return 0

    @abstractmethod
    def generate(self, subject: Subject, *, on_progress: Progress) -> Generated:
        """Let the actors generate and describe; on_progress is told of items that are done."""

    @abstractmethod
    def score(
        self, subject: Subject, generated: Generated, *, shared: Mapping[str, float]
    ) -> Scores:
        """Metrics of what was generated; `shared` is what earlier tasks found."""

    def show(self, subject: Subject, generated: Generated) -> Shown:
        """Write pictures and files into the subject's folder, and say which."""
        return Shown()


def with_interval(name: str, interval: Interval) -> dict[str, float]:
    """A score and its 95 % interval as flat metrics."""
    value, low, high = interval
    return {name: value, f"{name}_low": low, f"{name}_high": high}
