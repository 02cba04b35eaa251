"""Rows of a sweep, gathered into groups that differ in nothing but the seed.

In: one row a point of the sweep. Out: groups in the order of their first row, and words for them.
Values compare as in YAML: 1 and 1.0 are one number, `true` is no number, lists compare by items.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from latentlm_platform.located_yaml import shown
from latentlm_platform.sweeps.seed_noise import mean_of, standard_error

ABSENT: Final = "–"  # a path that a row does not have, in tables


class Row(NamedTuple):
    """A point of the sweep: its key, dotted path → value, metric → number.

    A path may be absent (a diagonal-Gaussian codec has no sigma). A point that is not measured is
    a row without the metric; one that diverged has NaN or infinity there.
    """

    key: str
    values: dict[str, Any]
    metrics: dict[str, float]


class Summary(NamedTuple):
    """Mean over the seeds with a finite metric, its standard error (None with one), their count."""

    mean: float
    standard_error: float | None
    n: int

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f" ± {self.standard_error:.2g}"
        return f"{self.mean:.4g}{error}"


@dataclass(frozen=True)
class Group:
    """Rows that only repeat one another: `values` without the replicate, and `rows`."""

    values: dict[str, Any]
    rows: tuple[Row, ...]
    replicate: str | None

    def seed(self, row: Row) -> Hashable:
        """Which repetition the row is; rows with the same one are the same work done twice."""
        return comparable(row.values.get(self.replicate)) if self.replicate else None

    @property
    def seeds(self) -> list[Hashable]:
        """Every repetition that has a row, measured or not."""
        return list(dict.fromkeys(self.seed(row) for row in self.rows))

    def scores(self, metric: str) -> dict[Hashable, float]:
        """Seed → metric, wherever it was measured, NaN and infinity included."""
        found: dict[Hashable, list[float]] = {}
        for row in self.rows:
            if (score := row.metrics.get(metric)) is not None:
                found.setdefault(self.seed(row), []).append(score)
        return {
            seed: scores[0] if len(scores) == 1 else _mean(scores) for seed, scores in found.items()
        }

    def summary(self, metric: str) -> Summary | None:
        """Over the seeds whose metric is finite; None where there is none."""
        finite = [score for score in self.scores(metric).values() if math.isfinite(score)]
        return Summary(mean_of(finite), standard_error(finite), len(finite)) if finite else None

    def diverged(self, metric: str) -> bool:
        """Whether a seed has NaN or infinity: a mean of the others would flatter the group."""
        return not all(math.isfinite(score) for score in self.scores(metric).values())


def _mean(scores: Sequence[float]) -> float:
    return mean_of(scores) if all(math.isfinite(one) for one in scores) else math.nan


def comparable(value: Any) -> Hashable:
    """Equal for two values exactly where YAML would call them the same."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return ("number", value)
    if isinstance(value, list | tuple):
        return ("list", tuple(comparable(one) for one in value))
    if isinstance(value, dict):
        return ("section", frozenset((key, comparable(one)) for key, one in value.items()))
    return (type(value).__name__, value)


def level(row_or_group: Row | Group, path: str) -> Hashable:
    """What the row or group has at the path, comparable; absence is a value of its own."""
    values = row_or_group.values
    return comparable(values[path]) if path in values else ABSENT


def identity(row_or_group: Row | Group, *, replicate: str | None) -> Hashable:
    """Equal for rows of one group, and for the group."""
    values = row_or_group.values.items()
    return frozenset((path, comparable(value)) for path, value in values if path != replicate)


def grouped(rows: Iterable[Row], *, replicate: str | None) -> list[Group]:
    """Rows with the same values but for the replicate's, in the order of their first row."""
    found: dict[Hashable, list[Row]] = {}
    for row in rows:
        found.setdefault(identity(row, replicate=replicate), []).append(row)
    return [
        Group({p: v for p, v in alike[0].values.items() if p != replicate}, tuple(alike), replicate)
        for alike in found.values()
    ]


def matching(rows: Iterable[Row], where: dict[str, Any]) -> list[Row]:
    """The rows that have all of these values."""
    wanted = {path: comparable(value) for path, value in where.items()}
    return [row for row in rows if all(level(row, path) == wanted[path] for path in wanted)]


def why_nothing_matches(rows: Sequence[Row], where: dict[str, Any]) -> str:
    """Which value of `where` no row has, and which values there are."""
    for path, value in where.items():
        if matching(rows, {path: value}):
            continue
        there = {
            comparable(row.values[path]): row.values[path] for row in rows if path in row.values
        }
        if not there:
            return f"no row has a value at {path}"
        listed = ", ".join(shown(one) for one in there.values())
        return f"no row has {path} = {shown(value)}; rows have {listed}"
    together = " and ".join(f"{path} = {shown(value)}" for path, value in where.items())
    return f"no row has {together} together" if where else "there are no rows"


def varying(rows: Iterable[Row | Group]) -> list[str]:
    """Paths that not all of the rows or groups have the same value at, in order of appearance."""
    rows = list(rows)
    paths = dict.fromkeys(path for row in rows for path in row.values)
    return [path for path in paths if len({level(row, path) for row in rows}) > 1]


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Path → its shortest ending that none of the other paths has."""
    paths = list(paths)
    names = {}
    for path in paths:
        parts = path.split(".")
        endings = [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
        others = [f".{one}" for one in paths if one != path]
        alone = (e for e in endings if not any(one.endswith(f".{e}") for one in others))
        names[path] = next(alone, path)
    return names


def described(values: dict[str, Any], paths: Iterable[str]) -> str:
    """`sigma=0.5, cfg_scale=1`: the values at these paths, in short; "all" if there are none."""
    names = short_names(paths)
    parts = [f"{name}={plain(values[path])}" for path, name in names.items() if path in values]
    return ", ".join(parts) or "all"


def plain(value: Any) -> str:
    """A value as a table shows it: text without quotes, six digits of a number with a fraction."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else shown(value)
