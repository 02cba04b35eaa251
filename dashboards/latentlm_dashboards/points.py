"""The points of a study: its evaluations by what was varied, with their uncertainty.

A *factor* is what the sweep lists as one thing: a path of the grid with everything below it, or the
variant. Points that differ in the seed alone are one *group*. Its interval is 95 % over its seeds
(Student's t) or, of a single seed, what the measurement itself reported as `_low` and `_high`.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from latentlm_dashboards.measures import Mode, better, main_metric, shown_value
from latentlm_dashboards.studies import Child, Study

REPLICATES = ("train.seed", "seed")
VARIANT = "variant"
SHORT_NAMES = {"cfg_scale": "CFG", "sigma": "σ"}
T_975 = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # by df, from 1
T_975_LATER = 2.0  # from df = 11 to ∞ it is 2.20 to 1.96


class Point(NamedTuple):
    """One evaluation with all that is known of its model and codec."""

    child: Child
    values: dict[str, Any]
    metrics: dict[str, float]


class Level(NamedTuple):
    """One value of a factor; `number` where the factor is a quantity."""

    label: str
    number: float | None


class Factor(NamedTuple):
    """What was varied as one; levels in order; `numeric` if every level has a number."""

    title: str
    paths: tuple[str, ...]
    levels: tuple[Level, ...]

    @property
    def name(self) -> str:
        """As a person would call it."""
        return SHORT_NAMES.get(self.title, self.title)

    def told(self, level: Level) -> str:
        """`σ 0.5`, or the level alone where it says what it is: a variant, a kind among numbers."""
        alone = self.paths == (VARIANT,) or (level.number is None and self.has_numbers)
        return level.label if alone else f"{self.name} {level.label}"

    @property
    def has_numbers(self) -> bool:
        return any(level.number is not None for level in self.levels)

    @property
    def numeric(self) -> bool:
        return all(level.number is not None for level in self.levels)


class Estimate(NamedTuple):
    """A mean, its 95 % interval where there is one, and what the interval is of."""

    mean: float
    low: float | None
    high: float | None
    n: int
    source: Literal["seeds", "measurement", "none"]


@dataclass(frozen=True)
class Group:
    """Points that differ in the seed alone; `levels` in the order of the factors."""

    levels: tuple[Level, ...]
    points: tuple[Point, ...]

    def estimate(self, metric: str) -> Estimate | None:
        """None where no point has the metric; its mean is not finite if that of a seed is not."""
        return estimated([p.metrics for p in self.points if metric in p.metrics], metric)


@dataclass(frozen=True)
class Points:
    """Factors and groups, the metric that answers the question, and the cost if there is one."""

    factors: tuple[Factor, ...]
    groups: tuple[Group, ...]
    metric: str | None
    mode: Mode
    cost: str | None

    def best(self) -> Group | None:
        """The group of the best finite mean."""
        return self.ranked()[0] if self.ranked() else None

    def ranked(self) -> list[Group]:
        """The groups with a finite mean, best first."""
        sign = 1 if self.mode == "min" else -1
        scored = [(e.mean, group) for group in self.groups if (e := self.estimate(group))]
        finite = [(sign * mean, i) for i, (mean, _) in enumerate(scored) if math.isfinite(mean)]
        return [scored[i][1] for _, i in sorted(finite)]

    def estimate(self, group: Group) -> Estimate | None:
        """The group's value of the metric."""
        return group.estimate(self.metric) if self.metric else None

    def named(self, group: Group) -> str:
        """`dit, σ 0.5, CFG 2`."""
        pairs = zip(self.factors, group.levels, strict=True)
        return ", ".join(factor.told(level) for factor, level in pairs) or "the run"


def read_points(study: Study, table: Sequence[dict[str, Any]] = ()) -> Points:
    """The points of finished evaluations. `table`: the rows of the sweep's points.json, if any."""
    points = _points(study, table)
    factors, level_of = _factors(study, points)
    by_levels: dict[tuple[Level, ...], list[Point]] = {}
    for point in points:
        own = tuple(
            known[_identity(point.values, factor.paths)]
            for factor, known in zip(factors, level_of, strict=True)
        )
        by_levels.setdefault(own, []).append(point)
    order = [{level: i for i, level in enumerate(factor.levels)} for factor in factors]
    groups = [Group(levels, tuple(alike)) for levels, alike in by_levels.items()]
    groups.sort(key=lambda group: [order[i][level] for i, level in enumerate(group.levels)])
    names = {name for point in points for name in point.metrics}
    metric = study.parameters.get("sweep.metric") or main_metric(names)
    cost = study.parameters.get("sweep.cost", "sampling_cpu_seconds_per_image")
    mode = better(metric or "", study.parameters.get("sweep.mode"))
    return Points(tuple(factors), tuple(groups), metric, mode, cost if cost in names else None)


def estimated(rows: Sequence[dict[str, float]], metric: str) -> Estimate | None:
    """Mean and interval of the metric over rows that all have it."""
    values = [row[metric] for row in rows]
    if not values:
        return None
    if not all(math.isfinite(value) for value in values):
        return Estimate(math.nan, None, None, len(values), "none")
    mean = math.fsum(values) / len(values)
    if len(values) > 1:
        spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
        df = len(values) - 1
        t = T_975[df - 1] if df <= len(T_975) else T_975_LATER
        reach = t * spread / math.sqrt(len(values))
        return Estimate(mean, mean - reach, mean + reach, len(values), "seeds")
    low, high = rows[0].get(f"{metric}_low"), rows[0].get(f"{metric}_high")
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return Estimate(mean, None, None, 1, "none")
    return Estimate(mean, low, high, 1, "measurement")


def pareto(points: Points) -> list[Group]:
    """Groups that no other beats in metric or cost without losing in the other, cheap first."""
    assert points.cost is not None
    sign = 1 if points.mode == "min" else -1
    priced = [
        (cost.mean, sign * score.mean, group)
        for group in points.ranked()
        if (score := points.estimate(group))
        and (cost := group.estimate(points.cost))
        and math.isfinite(cost.mean)
    ]
    front: list[tuple[float, Group]] = []
    for _cost, score_mean, group in sorted(priced, key=lambda one: one[:2]):
        if not front or score_mean < front[-1][0]:
            front.append((score_mean, group))
    return [group for _, group in front]


def _points(study: Study, table: Sequence[dict[str, Any]]) -> list[Point]:
    """One for each evaluation that finished; a later one of the same point replaces an earlier."""
    by_key = {(c.kind, c.key): c for c in study.children if c.kind in ("codec", "model")}
    newest: dict[str, Child] = {}
    for child in study.of_kind("evaluation"):
        if child.status == "FINISHED":
            newest[f"{child.key} {_identity(child.chosen, child.chosen)}"] = child
    points = []
    for child in newest.values():
        metrics: dict[str, float] = {}
        for stage in ("codec", "model"):
            made = by_key.get((stage, child.tags.get(f"latentlm.lineage.{stage}", "")))
            metrics |= made.metrics if made else {}
        metrics |= _row_of(child.chosen, table)
        points.append(Point(child, child.chosen, metrics | child.metrics))
    return points


def _row_of(values: dict[str, Any], table: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The numbers of the row that has all of the point's values."""
    for row in table:
        if all(path in row and row[path] == value for path, value in values.items()):
            return {
                name: float(value)
                for name, value in row.items()
                if name not in values
                and isinstance(value, int | float)
                and not isinstance(value, bool)
            }
    return {}


def _identity(values: dict[str, Any], paths: Iterable[str]) -> str:
    return json.dumps({path: values.get(path) for path in sorted(paths)}, default=str)


def _factors(study: Study, points: Sequence[Point]) -> tuple[list[Factor], list[dict[str, Level]]]:
    """Every path that varies, grouped as the sweep's grid lists them, the variant first; beside
    each factor its levels by the values they stand for."""
    paths = dict.fromkeys(p for point in points for p in point.values if p not in REPLICATES)
    varying = [p for p in paths if len({_identity(one.values, [p]) for one in points}) > 1]
    heads: dict[str, list[str]] = {}
    for path in varying:
        heads.setdefault(_listed_as(path, study.parameters), []).append(path)
    found = []
    for own in sorted(heads.values(), key=lambda paths: paths != [VARIANT]):
        main = max(own, key=lambda path: _distinct_numbers(path, points))
        levels = _levels(own, main, points)
        ordered = sorted(
            dict.fromkeys(levels.values()),
            key=lambda level: (level.number is None, level.number or 0.0),
        )
        found.append((Factor(main.rpartition(".")[2], tuple(own), tuple(ordered)), levels))
    return [factor for factor, _ in found], [levels for _, levels in found]


def _listed_as(path: str, parameters: dict[str, str]) -> str:
    """The path of the grid that it is below, else itself."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        if f"sweep.grid.{'.'.join(parts[:length])}" in parameters:
            return ".".join(parts[:length])
    return path


def _levels(paths: Sequence[str], main: str, points: Sequence[Point]) -> dict[str, Level]:
    """By the values they stand for: the number at `main`, the texts of those that have none there,
    and everything where that alone would call two of them the same."""
    values = {_identity(point.values, paths): point.values for point in points}
    short = {identity: _short_level(paths, main, own) for identity, own in values.items()}
    if len(set(short.values())) == len(short):
        return short
    return {
        identity: Level(", ".join(_named(path, own[path]) for path in paths if path in own), None)
        for identity, own in values.items()
    }


def _short_level(paths: Sequence[str], main: str, values: dict[str, Any]) -> Level:
    value = values.get(main)
    if value is not None and _is_number(value):
        return Level(shown_value(value), float(value))
    texts = [values[path] for path in paths if isinstance(values.get(path), str)]
    if not texts:
        texts = [_named(path, values[path]) for path in paths if values.get(path) is not None]
    return Level(", ".join(texts) or "none", None)


def _named(path: str, value: Any) -> str:
    return f"{path.rpartition('.')[2]} {shown_value(value)}"


def _distinct_numbers(path: str, points: Sequence[Point]) -> int:
    return len({p.values[path] for p in points if _is_number(p.values.get(path))})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
