"""What a paper says of a sweep, one claim each; `kind` says how the results answer it.

    claims:
      - kind: monotone
        says: FID falls with σ at CFG 1
        metric: frechet_efficientnet_lite0
        along: codec.variance.sigma
        direction: falls
        where: {variant: latentlm, sample.cfg_scale: 1}

`where` chooses the rows that have these values (1 and 1.0 are one number, true is none). A claim
is answered from all the seeds of these rows together; findings.py has the statistics.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from latentlm.settings.rules import Problem
from latentlm_platform.errors import UserError
from latentlm_platform.experiment.fields import Section

VARIANT: Final = "variant"  # stands among a row's values like a path
LESS_IS_BETTER: Final = {
    "bias",
    "cer",
    "collapsed",
    "error",
    "exposure",
    "frechet",
    "loss",
    "perplexity",
    "seconds",
    "wer",
}
MORE_IS_BETTER: Final = {
    "accuracy",
    "inception",
    "mfu",
    "pesq",
    "psnr",
    "similarity",
    "ssim",
    "stoi",
}
RATE: Final = "_per_s_"  # of images or tokens

Choice = Annotated[
    dict[str, Any],
    Field(description="Dotted path → value, or variant → its name; rows with all of them."),
]
Chosen = Annotated[Choice, Field(min_length=1)]


def lower_is_better(metric: str) -> bool:
    """Whether less of the metric is better, by the words of its name; UserError if unknown."""
    words = set(metric.split("_"))
    if words & LESS_IS_BETTER:
        return True
    if words & MORE_IS_BETTER or RATE in f"{metric}_":
        return False
    raise UserError(
        f"{metric} is neither known to be better when lower nor when higher;"
        " say which with sweep.mode, or choose a metric of quality such as validation_loss"
    )


class _Claim(Section):
    """What every claim has."""

    says: Annotated[str, Field(min_length=1)] = Field(description="The claim, in a sentence.")
    metric: str
    where: Choice = Field({}, description="Rows it is about, by their values; default: all.")

    def paths(self) -> list[str]:
        """The dotted paths that it mentions."""
        return _paths(self.where)

    def problems(self) -> Iterator[Problem]:
        yield from _choice_problems("where", self.where)


class _Along(_Claim):
    """A claim about an order of values of one path."""

    along: str = Field(
        description="Dotted path whose values are lined up; rows lacking it are not."
    )

    def paths(self) -> list[str]:
        return _paths({self.along: None} | self.where)

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.along in self.where:
            yield "along", f"{self.along} has one value only in where; remove it from there"


class Monotone(_Along):
    """Each value of `along` has a lower (falls) or higher (rises) metric than the one below it."""

    kind: Literal["monotone"]
    direction: Literal["falls", "rises"] = Field(description="Of the metric, as `along` grows.")


class Insensitive(_Along):
    """The metric varies no more over the values of `along` than over seeds."""

    kind: Literal["insensitive"]


class Worse(_Claim):
    """The rows of `where` score worse than those of `than`.

    Rows are compared seed by seed. `every` asks it of each group in `where` against each one in
    `than`, so that the claim is as strong as its weakest pair and needs no correction for many
    tests; `mean` asks it of the average over the groups of either side. There is no `any`: the
    best of many comparisons would look significant too often.
    """

    kind: Literal["worse"]
    where: Chosen
    than: Chosen
    against: Literal["every", "mean"] = "every"

    def paths(self) -> list[str]:
        return _paths(self.where | self.than)

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from _choice_problems("than", self.than)
        if self.where == self.than:
            yield "than", "chooses the same rows as where; name the ones that it is compared with"
        try:
            lower_is_better(self.metric)
        except UserError:
            yield "metric", f"{self.metric} is not known to be better when lower or when higher"


class Reported(_Claim):
    """The paper says nothing that could be held against the rows; they are only listed."""

    kind: Literal["reported"]


AnyClaim = Annotated[Monotone | Insensitive | Worse | Reported, Field(discriminator="kind")]


def _paths(values: dict[str, Any]) -> list[str]:
    return [path for path in values if path != VARIANT]


def _choice_problems(name: str, choice: dict[str, Any]) -> Iterator[Problem]:
    for path, value in choice.items():
        if isinstance(value, dict):
            yield name, f"{path} is a section; write its keys as {path}.KEY, each with its value"
