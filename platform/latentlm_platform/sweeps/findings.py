"""What a sweep found: the best point, what mattered, the Pareto front, the paper's claims.

In: a row for every point, measured or not. Out: Findings, as text and as data, and the table of
groups (rows that differ in nothing but the seed). Nothing here knows how the rows were made.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from latentlm_platform.experiment.claims import AnyClaim
from latentlm_platform.sweeps.row_groups import (
    ABSENT,
    Group,
    Row,
    Summary,
    described,
    grouped,
    identity,
    level,
    plain,
    short_names,
    varying,
)
from latentlm_platform.sweeps.seed_noise import mean_of, rounding, sum_of_squares
from latentlm_platform.sweeps.verdicts import Verdict, read_claim

__all__ = [
    "Findings",
    "Row",
    "Verdict",
    "findings_report",
    "read_findings",
    "render_findings",
    "render_table",
]

Mode = Literal["min", "max"]
LEVELS: Final = 6  # more different numbers than this are binned into quartiles
SEED_NOISE, INTERACTIONS = "seed noise", "interactions"


class Scored(NamedTuple):
    """A group, how many seeds it has, its metric over those measured, its mean cost if known."""

    values: dict[str, Any]
    name: str
    seeds: int
    score: Summary
    cost: float | None


class Importance(NamedTuple):
    """Share of the metric's variance over all rows that goes with a path (η², its main effect)."""

    path: str
    share: float


@dataclass(frozen=True)
class Findings:
    """What a sweep found; `notes` say what was left out of it."""

    metric: str
    mode: Mode
    cost: str | None
    best: Scored | None
    importances: tuple[Importance, ...]
    pareto: tuple[Scored, ...]
    claims: tuple[Verdict, ...]
    notes: tuple[str, ...]


def read_findings(
    rows: Sequence[Row],
    *,
    metric: str,
    mode: Mode,
    claims: Sequence[AnyClaim],
    replicate: str | None,
    cost: str | None,
) -> Findings:
    """What the rows say of `metric`, of which `mode` is better.

    `replicate` is the path that only repeats a point, such as train.seed. `cost` is a metric whose
    less is better. Groups with a seed that diverged are neither best nor on the Pareto front.
    """
    groups = grouped(rows, replicate=replicate)
    names = varying(groups)
    scored = [
        Scored(
            group.values,
            described(group.values, names),
            len(group.seeds),
            score,
            _cost(group, cost),
        )
        for group in groups
        if (score := group.summary(metric)) and not group.diverged(metric)
    ]
    sign = 1 if mode == "min" else -1
    return Findings(
        metric,
        mode,
        cost,
        min(scored, key=lambda one: sign * one.score.mean, default=None),
        tuple(_importances(rows, metric, replicate)),
        tuple(_pareto(scored, sign)),
        tuple(read_claim(claim, rows, replicate=replicate) for claim in claims),
        tuple(_notes(rows, groups, metric)),
    )


def _cost(group: Group, cost: str | None) -> float | None:
    summary = group.summary(cost) if cost else None
    return summary.mean if summary else None


def _pareto(scored: Sequence[Scored], sign: int) -> list[Scored]:
    """Groups that no other one beats in score or cost without losing in the other; cheap first."""
    priced = [(one, sign * one.score.mean, one.cost) for one in scored if one.cost is not None]
    front = [
        (cost, score, one)
        for one, score, cost in priced
        if not any(
            other_score <= score
            and other_cost <= cost
            and (other_score < score or other_cost < cost)
            for _, other_score, other_cost in priced
        )
    ]
    return [one for *_, one in sorted(front, key=lambda each: each[:2])]


def _importances(rows: Sequence[Row], metric: str, replicate: str | None) -> list[Importance]:
    """η² of every path that varies, of seeds, and of what is left to interactions.

    The shares add up to 1 where every combination has the same seeds; elsewhere they overlap, and
    no interactions are told. A path with nearly as many values as there are rows explains much by
    chance alone.
    """
    finite = [row for row in rows if math.isfinite(row.metrics.get(metric, math.nan))]
    scores = [row.metrics[metric] for row in finite]
    if not scores or (total := sum_of_squares(scores)) <= len(scores) * rounding(scores):
        return []
    groups = grouped(finite, replicate=replicate)
    paths = [path for path in varying(finite) if path != replicate]
    shares = {path: _between(finite, _levels(finite, path), metric) / total for path in paths}
    found = [Importance(path, share) for path, share in shares.items()]
    group_of = [identity(row, replicate=replicate) for row in finite]
    between_groups = _between(finite, group_of, metric) / total
    if any(len(group.seeds) > 1 for group in groups):
        found.append(Importance(SEED_NOISE, 1 - between_groups))
    left = between_groups - sum(shares.values())
    if len(paths) > 1 and _crossed(finite, groups, paths):
        found.append(Importance(INTERACTIONS, max(0.0, left)))
    return sorted(found, key=lambda one: -one.share)


def _levels(rows: Sequence[Row], path: str) -> list[Hashable]:
    """The level of each row at the path; quartiles of numbers that have more than LEVELS values."""
    levels = [level(row, path) for row in rows]
    numbers = [row.values[path] for row in rows if path in row.values]
    numeric = all(isinstance(one, int | float) and not isinstance(one, bool) for one in numbers)
    if not numeric or len(set(numbers)) <= LEVELS:
        return levels
    cuts = np.quantile(np.array(numbers, dtype=np.float64), (0.25, 0.5, 0.75))
    return [
        int(np.searchsorted(cuts, float(row.values[path]))) if path in row.values else ABSENT
        for row in rows
    ]


def _between(rows: Sequence[Row], levels: Sequence[Hashable], metric: str) -> float:
    """Sum of squares that is left when every row is replaced by the mean of its level."""
    by_level: dict[Hashable, list[float]] = {}
    for row, own in zip(rows, levels, strict=True):
        by_level.setdefault(own, []).append(row.metrics[metric])
    means = {own: mean_of(scores) for own, scores in by_level.items()}
    return sum_of_squares([means[own] for own in levels])


def _crossed(rows: Sequence[Row], groups: Sequence[Group], paths: Sequence[str]) -> bool:
    """Whether every combination of the paths' levels has equally many rows."""
    counts: dict[Hashable, int] = {}
    levels = [_levels(rows, path) for path in paths]
    for combination in zip(*levels, strict=True):
        counts[combination] = counts.get(combination, 0) + 1
    full = math.prod(len(set(one)) for one in levels)
    return full == len(counts) == len(groups) and len(set(counts.values())) == 1


def _notes(rows: Sequence[Row], groups: Sequence[Group], metric: str) -> Iterable[str]:
    missing = sum(metric not in row.metrics for row in rows)
    infinite = sum(not math.isfinite(row.metrics.get(metric, 0.0)) for row in rows)
    if missing:
        yield f"{missing} of {len(rows)} rows have no {metric} (not finished, or failed)"
    if infinite:
        diverged = sum(group.diverged(metric) for group in groups)
        yield (
            f"{infinite} of {len(rows)} rows have {metric} = NaN or infinity and are left out;"
            f" {diverged} of {len(groups)} groups with one are not ranked"
        )


def render_findings(findings: Findings) -> str:
    """The findings for a terminal: best, importances, Pareto front, one line a claim, notes."""
    metric, best = findings.metric, findings.best
    lines = [f"no point has a finite {metric} yet"]
    if best is not None:
        seeds = f" ({_out_of(best.score.n, best.seeds)} seeds)" if best.seeds > 1 else ""
        lines = [f"best {metric}: {best.score}{seeds} at {best.name}"]
    if findings.importances:
        names = short_names(one.path for one in findings.importances)
        shares = (f"{names[one.path]} {one.share:.0%}" for one in findings.importances)
        lines.append(f"share of its variance: {', '.join(shares)}")
    if findings.pareto:
        lines.append(f"Pareto front of {metric} and {findings.cost}:")
        lines += [f"  {p.score!s:<16} {p.cost:<10.4g} {p.name}" for p in findings.pareto]
    if findings.claims:
        lines.append("the paper's claims:")
        lines += [f"  {one.held:<10} {one.says} ({one.sentence})" for one in findings.claims]
    return "\n".join([*lines, *(f"note: {note}" for note in findings.notes)])


def findings_report(findings: Findings) -> dict[str, Any]:
    """The findings as data that JSON can hold."""
    return {
        "metric": findings.metric,
        "mode": findings.mode,
        "cost": findings.cost,
        "best": _scored_report(findings.best) if findings.best else None,
        "importances": [one._asdict() for one in findings.importances],
        "pareto": [_scored_report(one) for one in findings.pareto],
        "claims": [one._asdict() for one in findings.claims],
        "notes": list(findings.notes),
    }


def _scored_report(one: Scored) -> dict[str, Any]:
    return {
        "values": one.values,
        "seeds": one.seeds,
        "cost": one.cost,
        **one.score._asdict(),
    }


def _out_of(number: int, total: int) -> str:
    return str(number) if number == total else f"{number} of {total}"


def render_table(rows: Sequence[Row], *, metric: str, replicate: str | None) -> str:
    """One line a group in the order of the rows: the values that differ, seeds, mean ± its error.

    `2 of 3` seeds: the others are not finished, failed or diverged.
    """
    groups = grouped(rows, replicate=replicate)
    names = short_names(varying(groups))
    lines = [[*names.values(), "n", metric]]
    for group in groups:
        summary = group.summary(metric)
        n = _out_of(summary.n if summary else 0, len(group.seeds))
        values = [plain(group.values[path]) if path in group.values else ABSENT for path in names]
        score = str(summary) if summary else "nan" if group.diverged(metric) else ABSENT
        lines.append([*values, n, score])
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)
