"""The `sweep` section: which points are tried, how the next one is chosen, and when to stop.

    points = variants × grid × draws of the search; every evaluated CFG scale is a point of its own

A variant is a named piece of an experiment, merged over the rest. A grid lists values of a dotted
path, a whole section being a value too. A search draws values from a space.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from latentlm.settings.rules import Problem
from latentlm_platform.experiment.claims import AnyClaim, lower_is_better
from latentlm_platform.experiment.fields import Positive, Rate, Section

REPLICATES = ("train.seed", "seed")  # paths that only repeat a point

NOT_CONDITIONAL: dict[str, Any] = {}
When = Annotated[
    dict[str, Any],
    Field(description="Drawn only where these paths have these values."),
]


class Between(Section):
    """A number from an interval; `integer` includes both ends."""

    kind: Literal["uniform", "log_uniform", "integer"]
    low: float
    high: float
    when: When = NOT_CONDITIONAL

    def problems(self) -> Iterator[Problem]:
        if self.low >= self.high:
            yield "low", f"{self.low:g} is not below high = {self.high:g}"
        if self.kind == "log_uniform" and self.low <= 0:
            yield "low", f"{self.low:g} has no logarithm; give a number above 0, or kind: uniform"
        if self.kind == "integer" and (self.low % 1 or self.high % 1):
            yield "low", f"{self.low:g} … {self.high:g} has ends that are no whole numbers"


class Choice(Section):
    """One of the listed values."""

    kind: Literal["choice"]
    values: Annotated[tuple[Any, ...], Field(min_length=1)]
    when: When = NOT_CONDITIONAL


Space = Annotated[Between | Choice, Field(discriminator="kind")]


class Search(Section):
    """Draws from a space: all at random beforehand, or by Optuna's TPE from what was measured."""

    algorithm: Literal["random", "optuna"] = "random"
    samples: Positive
    seed: Annotated[int, Field(ge=0)] = 0
    space: Annotated[dict[str, Space], Field(min_length=1)]

    def problems(self) -> Iterator[Problem]:
        for path, one in self.space.items():
            for name, sentence in one.problems():
                yield f"space.{path}", f"{name} = {sentence}"


class EarlyStop(Section):
    """Ends trainings that fall behind the others at the same step, by validation loss.

    asha: of the trainings that reach grace_steps, then grace_steps × reduction …, only the best
    1 / reduction go on (Li et al. 2020). median: ends one that is worse than the median of the
    others' means so far.
    """

    kind: Literal["asha", "median"]
    grace_steps: Positive
    reduction: Annotated[int, Field(ge=2)] = 3


class Sweep(Section):
    """Points, how many at once, when to give up, and what is asked of the result."""

    variants: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Name → a piece of an experiment, merged over the rest."
    )
    grid: dict[str, tuple[Any, ...]] = Field(
        default_factory=dict, description="Dotted path → values; every combination is a point."
    )
    search: Search | None = None
    metric: str = Field("frechet_efficientnet_lite0", description="What the best point is best in.")
    mode: Literal["min", "max"] | None = Field(
        None, description="Whether less or more of the metric is better; default: as it is known."
    )
    cost: str = Field(
        "sampling_cpu_seconds_per_image", description="Metric that quality is weighed against."
    )
    stopper: EarlyStop | None = None
    max_concurrent: Positive = Field(1, description="Trials at once.")
    max_failed: Annotated[int, Field(ge=0)] = Field(
        3, description="Failed trials that the sweep goes on with; one more ends it."
    )
    restarts: Annotated[int, Field(ge=0)] = Field(
        3, description="Restarts of a trial whose process died; an error of ours is not retried."
    )
    time_budget_s: Rate | None = Field(None, description="Ends the sweep, which can be resumed.")
    claims: tuple[AnyClaim, ...] = Field(
        (), description="What the paper says of such a sweep; each is answered from the results."
    )

    @property
    def replicate(self) -> str | None:
        """The path whose values only repeat a point, if the grid has one."""
        return next((path for path in REPLICATES if path in self.grid), None)

    @property
    def better(self) -> Literal["min", "max"]:
        """Whether less or more of the metric is better."""
        return self.mode or ("min" if lower_is_better(self.metric) else "max")

    def problems(self) -> Iterator[Problem]:
        for path, values in self.grid.items():
            if not values:
                yield f"grid.{path}", "the list is empty; give at least one value"
        for index, claim in enumerate(self.claims):
            for name, sentence in claim.problems():
                yield f"claims.{index}.{name}", sentence
        if self.search is None:
            return
        for path in self.search.space.keys() & self.grid.keys():
            yield f"search.space.{path}", "is in the grid too; leave it in one of them"
        if self.search.algorithm == "optuna" and (self.grid or self.variants):
            yield (
                "search.algorithm",
                "optuna chooses every value itself; move the grid and variants into search.space"
                " as kind: choice",
            )
