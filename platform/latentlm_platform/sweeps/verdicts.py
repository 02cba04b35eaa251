"""Whether the rows of a sweep bear out what a paper claims, each answer with its numbers.

In: a claim and all rows. Out: yes, no, undecided or reported, and a sentence. Differences are
taken seed by seed, so that what a seed does to both sides cancels; intervals are 95 %. Steps and
pairs are not corrected for their number. A row that is missing, not measured or diverged leaves a
claim undecided: the others might have survived by their luck.
"""

import itertools
import math
from collections.abc import Hashable, Sequence
from typing import Any, Literal, NamedTuple

from latentlm_platform.errors import UserError
from latentlm_platform.experiment.claims import (
    AnyClaim,
    Insensitive,
    Monotone,
    Reported,
    Worse,
    lower_is_better,
)
from latentlm_platform.located_yaml import shown
from latentlm_platform.sweeps.row_groups import (
    Group,
    Row,
    described,
    grouped,
    identity,
    level,
    matching,
    plain,
    short_names,
    varying,
    why_nothing_matches,
)
from latentlm_platform.sweeps.seed_noise import Interval, analyse_variance, mean_of, t_interval

SIGNIFICANT = 0.05
LISTED = 3  # gaps that a sentence names; the others it counts

Held = Literal["yes", "no", "undecided", "reported"]
Answer = tuple[Held, str]


class Verdict(NamedTuple):
    """What the paper says, whether the rows bear it out, and the numbers."""

    says: str
    held: Held
    sentence: str


class _UndecidedError(Exception):
    """Why the rows cannot answer."""


def read_claim(claim: AnyClaim, rows: Sequence[Row], *, replicate: str | None) -> Verdict:
    """The verdict of all the rows of a sweep on one claim; `replicate` is the seed's path."""
    try:
        return Verdict(claim.says, *_answer(claim, rows, replicate))
    except _UndecidedError as reason:
        return Verdict(claim.says, "undecided", str(reason))


def _answer(claim: AnyClaim, rows: Sequence[Row], replicate: str | None) -> Answer:
    groups = _chosen(rows, claim.where, replicate)
    match claim:
        case Monotone():
            return _monotone(claim, groups)
        case Insensitive():
            return _insensitive(claim, groups)
        case Worse():
            return _worse(claim, groups, _chosen(rows, claim.than, replicate))
        case Reported():
            return "reported", _span(claim.metric, groups)


def _chosen(rows: Sequence[Row], where: dict[str, Any], replicate: str | None) -> list[Group]:
    chosen = matching(rows, where)
    if not chosen:
        raise _UndecidedError(why_nothing_matches(rows, where))
    return grouped(chosen, replicate=replicate)


def _monotone(claim: Monotone, groups: Sequence[Group]) -> Answer:
    groups = _lined_up(groups, claim.along, in_order=True)
    scores = _complete(groups, claim.metric)
    sign = -1 if claim.direction == "falls" else 1
    pairs = list(itertools.pairwise(scores))
    steps = [t_interval(_differences(after, before)) for before, after in pairs]
    agreeing = sum(step.mean * sign > 0 for step in steps)
    told = [f"{agreeing} of {_count(len(steps), 'step')} {claim.direction[:-1]}"]
    seeds = len(scores[0])
    if seeds > 1:
        beyond = [step for step in steps if step.excludes_zero]
        against = len(steps) - agreeing
        told.append(f"{sum(step.mean * sign > 0 for step in beyond)} beyond seed noise")
        if against:
            clearly = sum(step.mean * sign < 0 for step in beyond)
            told.append(f"{against} against it ({clearly} beyond seed noise)")
        whole = sum(
            all((after[i] - before[i]) * sign > 0 for before, after in pairs) for i in range(seeds)
        )
        told.append(f"the whole order in {whole} of {seeds} seeds")
    else:
        told.append("one seed, so its noise is unknown")
    sentence = f"{', '.join(told)}: {_path_of_means(claim, groups)}"
    if seeds > 1:
        sentence += f"; steps {', '.join(_interval(step) for step in steps)}"
    return ("yes" if agreeing == len(steps) else "no"), sentence


def _insensitive(claim: Insensitive, groups: Sequence[Group]) -> Answer:
    groups = _lined_up(groups, claim.along)
    scores = _complete(groups, claim.metric)
    means = _path_of_means(claim, groups)
    if len(scores[0]) < 2:
        return "undecided", f"one seed, so its noise is unknown; needs two seeds or more: {means}"
    found = analyse_variance(scores)
    sentence = (
        f"F({found.df_between}, {found.df_within}) = {found.f:.3g}, p = {found.p:.2g}:"
        f" the means' standard deviation is {found.std_of_means:.3g}, seeds alone give"
        f" {found.std_by_noise:.3g}, below {found.std_noticed:.3g} it would not be noticed: {means}"
    )
    return ("no" if found.p < SIGNIFICANT else "yes"), sentence


def _lined_up(groups: Sequence[Group], along: str, *, in_order: bool = False) -> list[Group]:
    """One group a value of the path, sorted if all are numbers; groups without it are left out."""
    there = [group for group in groups if along in group.values]
    if not there:
        raise _UndecidedError(f"none of the rows has a value at {along}")
    by_value: dict[Hashable, list[Group]] = {}
    for group in there:
        by_value.setdefault(level(group, along), []).append(group)
    for alike in by_value.values():
        if len(alike) > 1:
            open_paths = ", ".join(varying(alike))
            raise _UndecidedError(
                f"where leaves {open_paths} open, so that {along} ="
                f" {shown(alike[0].values[along])} has {len(alike)} groups; give it a value there"
            )
    if len(there) == 1:
        raise _UndecidedError(
            f"{along} has one value, {shown(there[0].values[along])}, in the rows"
        )
    values = [group.values[along] for group in there]
    if all(isinstance(one, int | float) and not isinstance(one, bool) for one in values):
        return sorted(there, key=lambda group: float(group.values[along]))
    if in_order:
        listed = ", ".join(shown(one) for one in values)
        raise _UndecidedError(f"the values of {along} have no order: {listed} are not all numbers")
    return there


def _complete(groups: Sequence[Group], metric: str) -> list[list[float]]:
    """The metric of every group, seed by seed in the same order; undecided if one is missing."""
    seeds = list(dict.fromkeys(seed for group in groups for seed in group.seeds))
    names, gaps = varying(groups), []
    for group in groups:
        scores = group.scores(metric)
        for seed in seeds:
            where = described(group.values, names) + _seed_named(group, seed)
            if seed not in group.seeds:
                gaps.append(f"{where} is missing")
            elif seed not in scores:
                gaps.append(f"{where} has no {metric}")
            elif not math.isfinite(scores[seed]):
                gaps.append(f"{where} has {metric} = {scores[seed]}")
    if gaps:
        more = f" and {len(gaps) - LISTED} more" if len(gaps) > LISTED else ""
        means = ", ".join(str(group.summary(metric) or "?") for group in groups)
        raise _UndecidedError(f"{'; '.join(gaps[:LISTED])}{more}; so far {means}")
    return [[group.scores(metric)[seed] for seed in seeds] for group in groups]


def _seed_named(group: Group, seed: Hashable) -> str:
    assert isinstance(seed, tuple) or group.replicate is None  # comparable() gives type and value
    return f", {group.replicate}={shown(seed[1])}" if isinstance(seed, tuple) else ""


class _Pair(NamedTuple):
    """How much worse one group is than another, by seed; better where it is negative."""

    names: str
    means: str
    by: Interval

    def told(self) -> str:
        how = "worse" if self.by.mean > 0 else "better" if self.by.mean < 0 else "no worse"
        by = self.by if self.by.mean >= 0 else Interval(*_mirrored(self.by))
        return f"{how} by {_interval(by)}, {self.means}"


def _worse(claim: Worse, groups: Sequence[Group], others: Sequence[Group]) -> Answer:
    pairs = _pairs(claim, groups, others)
    weakest = min(pairs, key=lambda pair: (pair.by.mean > 0, pair.by.low, pair.by.mean))
    seeds = weakest.by.n
    if len(pairs) == 1:
        start = weakest.told()
    else:
        beyond = sum(pair.by.low > 0 for pair in pairs)
        contrary = sum(pair.by.mean <= 0 for pair in pairs)
        start = (
            f"{beyond} of {len(pairs)} pairs beyond seed noise, {contrary} contrary; the weakest,"
        )
        start += f" {weakest.names}: {weakest.told()}"
    if weakest.by.mean <= 0:
        return "no", f"{start} ({_count(seeds, 'seed')})"
    if weakest.by.low > 0:
        return "yes", f"{start} ({_count(seeds, 'seed')})"
    if seeds == 1:
        return "undecided", f"{start}: yes by one seed, whose noise is unknown; needs two or more"
    return "undecided", f"{start} ({seeds} seeds): yes by the mean, but inside seed noise"


def _pairs(claim: Worse, groups: Sequence[Group], others: Sequence[Group]) -> list[_Pair]:
    try:
        sign = 1 if lower_is_better(claim.metric) else -1
    except UserError as error:
        raise _UndecidedError(str(error)) from None
    ours = {identity(group, replicate=None) for group in groups}
    both = [other for other in others if identity(other, replicate=None) in ours]
    names = varying([*groups, *others])
    if both:
        name = described(both[0].values, names)
        raise _UndecidedError(f"where and than both choose {name}; make them choose other rows")
    scores = _complete([*groups, *others], claim.metric)
    left = list(zip((described(g.values, names) for g in groups), scores, strict=False))
    right = [
        (described(o.values, names), s) for o, s in zip(others, scores[len(groups) :], strict=True)
    ]
    if claim.against == "mean":
        left, right = [_averaged("where", left)], [_averaged("than", right)]
    return [
        _Pair(
            f"{name} v. {other}",
            f"{mean_of(ours):.4g} v. {mean_of(theirs):.4g}",
            t_interval([sign * d for d in _differences(ours, theirs)]),
        )
        for name, ours in left
        for other, theirs in right
    ]


def _averaged(name: str, side: list[tuple[str, list[float]]]) -> tuple[str, list[float]]:
    by_seed = zip(*(scores for _, scores in side), strict=True)
    return f"the mean of {name}", [mean_of(scores) for scores in by_seed]


def _span(metric: str, groups: Sequence[Group]) -> str:
    """From the lowest to the highest group, and how many there are."""
    names = varying(groups)
    found = [
        (s.mean, str(s), described(g.values, names)) for g in groups if (s := g.summary(metric))
    ]
    if not found:
        return f"none of {_count(len(groups), 'group')} has a finite {metric}"
    low, high = min(found), max(found)
    if len(groups) == 1:
        return low[1]
    missing = len(groups) - len(found)
    note = f", {missing} without a finite one" if missing else ""
    return f"{len(groups)} groups{note}: {low[1]} ({low[2]}) … {high[1]} ({high[2]})"


def _path_of_means(claim: Monotone | Insensitive, groups: Sequence[Group]) -> str:
    means = " → ".join(f"{s.mean:.4g}" for g in groups if (s := g.summary(claim.metric)))
    values = ", ".join(plain(group.values[claim.along]) for group in groups)
    return f"{means} at {short_names([claim.along])[claim.along]} {values}"


def _differences(these: Sequence[float], those: Sequence[float]) -> list[float]:
    return [one - other for one, other in zip(these, those, strict=True)]


def _mirrored(one: Interval) -> tuple[float, float, float, int]:
    return -one.mean, -one.high, -one.low, one.n


def _interval(one: Interval) -> str:
    ends = "" if one.n == 1 else f" [{one.low:.3g}, {one.high:.3g}]"
    return f"{one.mean:.3g}{ends}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
