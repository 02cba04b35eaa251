"""The charts of a report, as plotly's plain data; colours of text and grid are the page's.

Every mark is a value of MLflow with its interval, if it has one; what is not finite has no mark and
is counted in the caption. Lines differ in colour and in symbol.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from latentlm_dashboards.measures import shown_number, titled
from latentlm_dashboards.points import VARIANT, Factor, Group, Level, Points, pareto

COLOURS = ("#3a78c9", "#d9722e", "#2b9a72", "#b8437a", "#7f68c9", "#a58a1f", "#2f9bb0", "#8a8a8a")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "pentagon", "triangle-down")
STAR = "star"
MOST_LINES = 8
MOST_LEVELS = 12
LOG_FROM = 30.0  # largest over smallest
BUCKETS = 200  # marks of a training curve

Curve = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Chart:
    """One chart: its title, what must be said with it, and plotly's traces and layout."""

    title: str
    caption: str
    data: list[dict[str, Any]]
    layout: dict[str, Any] = field(default_factory=dict)


def factor_charts(points: Points, x: int) -> list[Chart]:
    """The metric along factor number `x`: one chart for each variant, a line for each level of the
    first other factor; what else was varied is held as in the best group."""
    factor, best = points.factors[x], points.best()
    if best is None or points.metric is None:
        return []
    others = [i for i in range(len(points.factors)) if i != x]
    if len(factor.levels) > MOST_LEVELS:
        return [_cloud(points, x)]
    panels, by = _panels_and_lines(points, others)
    held = [i for i in others if i not in (panels, by)]
    chosen = [g for g in points.groups if all(g.levels[i] == best.levels[i] for i in held)]
    told = ", ".join(points.factors[i].told(best.levels[i]) for i in held)
    made = []
    for level in points.factors[panels].levels if panels is not None else (None,):
        groups = [g for g in chosen if level is None or g.levels[panels or 0] == level]
        if groups:
            note = f"Held as in the best point: {told}. " if told else ""
            made.append(_lines(points, groups, x=x, by=by, panel=level, note=note))
    if len(made) > 1:
        _share_range(made)
    return made


def cost_chart(points: Points) -> Chart | None:
    """The metric against its cost, with the front that nothing beats in both."""
    if points.cost is None or points.metric is None or not points.ranked():
        return None
    kinds: dict[str, list[Group]] = {}
    at = next((i for i, one in enumerate(points.factors) if one.paths == (VARIANT,)), None)
    for group in points.ranked():
        kinds.setdefault(group.levels[at].label if at is not None else "points", []).append(group)
    data = []
    for index, (name, groups) in enumerate(kinds.items()):
        costs = [cost.mean if (cost := g.estimate(points.cost)) else None for g in groups]
        data.append(_trace(points, groups, costs, name, index) | {"mode": "markers"})
    front = pareto(points)
    xs = [e.mean for g in front if (e := g.estimate(points.cost))]
    ys = [e.mean for g in front if (e := points.estimate(g))]
    line = {"shape": "hv", "dash": "dot", "color": COLOURS[-1]}
    data.append(
        {"x": xs, "y": ys, "mode": "lines", "name": "Pareto front", "line": line, "type": "scatter"}
    )
    names = "; ".join(points.named(group) for group in front)
    return Chart(
        f"{points.metric} against {points.cost}",
        f"{_direction(points)} {titled(points.cost)}: less is better. On the front: {names}.",
        data,
        {"xaxis": _axis(points.cost), "yaxis": _axis(points.metric)},
    )


def curve_chart(
    title: str, curves: Mapping[str, Curve], *, metric: str, caption: str = ""
) -> Chart:
    """Values by step, at most BUCKETS marks a line: each is the mean of its steps."""
    data = []
    for index, (name, curve) in enumerate(curves.items()):
        steps, values = _bucketed(curve)
        colour = COLOURS[index % len(COLOURS)]
        data.append(
            {"type": "scatter", "mode": "lines", "name": plotted(name), "x": steps, "y": values}
            | {"line": {"color": colour, "width": 1.6, "dash": _dash(index)}}
        )
    layout = {"xaxis": _axis("step"), "yaxis": _axis(metric)}
    return Chart(title, caption, data, layout)


def row_chart(
    title: str,
    tables: Mapping[str, Sequence[dict[str, Any]]],
    *,
    x: str,
    y: Sequence[str],
    caption: str = "",
) -> Chart:
    """Columns `y` of tables against column `x`, one line for each table and column."""
    data = []
    for index, (name, column) in enumerate((n, c) for n in tables for c in y):
        rows = [row for row in tables[name] if row.get(column) is not None]
        label = name if len(y) == 1 else f"{name} {column}".strip()
        data.append(
            {"type": "scatter", "mode": "lines+markers", "name": plotted(label)}
            | {"x": [row.get(x) for row in rows], "y": [finite(row[column]) for row in rows]}
            | {"line": {"color": COLOURS[index % len(COLOURS)], "width": 1.6, "dash": _dash(index)}}
            | {"marker": {"symbol": SYMBOLS[index % len(SYMBOLS)], "size": 6}}
        )
    axis = y[0] if len(y) == 1 else "value"
    return Chart(title, caption, data, {"xaxis": _axis(x), "yaxis": _axis(axis)})


def plotted(name: str) -> str:
    """A text as plotly shows it letter by letter: it reads tags and entities as markup."""
    return name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def finite(value: Any) -> Any:
    """None for a number that JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _panels_and_lines(points: Points, others: list[int]) -> tuple[int | None, int | None]:
    """Which of the other factors makes panels, and which makes lines."""
    few = [i for i in others if len(points.factors[i].levels) <= MOST_LINES]
    variant = next((i for i in few if points.factors[i].paths == (VARIANT,)), None)
    lines = [i for i in few if i != variant]
    if variant is not None and lines and len(points.factors[variant].levels) <= 3:
        return variant, lines[0]
    return None, (few[0] if few else None)


def _lines(
    points: Points, groups: list[Group], *, x: int, by: int | None, panel: Level | None, note: str
) -> Chart:
    factor = points.factors[x]
    levels: Sequence[Level | None] = points.factors[by].levels if by is not None else (None,)
    data = []
    for index, level in enumerate(levels):
        own = [g for g in groups if level is None or g.levels[by or 0] == level]
        drawn = [g for g in own if (e := points.estimate(g)) and math.isfinite(e.mean)]
        for apart in (False, True):  # a kind among numbers is no next step of the line
            part = [g for g in drawn if _stands_apart(g.levels[x], factor) == apart]
            if part:
                name = points.factors[by].told(level) if by is not None and level else ""
                xs = [_at(g.levels[x], factor) for g in part]
                trace = _trace(points, part, xs, name or points.metric or "", index)
                data.append(
                    trace | _apart(trace, hidden=len(part) < len(drawn)) if apart else trace
                )
    missing = len(groups) - sum(len(trace["x"]) for trace in data)
    lost = f" {missing} without a finite value have no mark." if missing else ""
    place = f": {panel.label}" if panel else ""
    return Chart(
        f"{points.metric} by {factor.name}{place}",
        f"{note}{_direction(points)} {_interval_note(points, groups)}{lost}",
        data,
        {"xaxis": _factor_axis(factor), "yaxis": _axis(points.metric or "")},
    )


def _cloud(points: Points, x: int) -> Chart:
    """A mark for each group, for a path with many values, as a search draws them."""
    factor = points.factors[x]
    at = next((i for i, one in enumerate(points.factors) if one.paths == (VARIANT,) and i != x), -1)
    levels: Sequence[Level | None] = points.factors[at].levels if at >= 0 else (None,)
    data = []
    for index, level in enumerate(levels):
        own = [g for g in points.ranked() if level is None or g.levels[at] == level]
        xs = [_at(g.levels[x], factor) for g in own]
        name = level.label if level else "points"
        data.append(_trace(points, own, xs, name, index) | {"mode": "markers"})
    return Chart(
        f"{points.metric} by {factor.name}",
        f"Each mark is a point; the other paths vary too. {_direction(points)}",
        data,
        {"xaxis": _factor_axis(factor), "yaxis": _axis(points.metric or "")},
    )


def _trace(
    points: Points, groups: Sequence[Group], xs: Sequence[Any], name: str, index: int
) -> dict[str, Any]:
    estimates = [e for g in groups if (e := points.estimate(g))]
    above = [None if e.high is None else max(0.0, e.high - e.mean) for e in estimates]
    below = [None if e.low is None else max(0.0, e.mean - e.low) for e in estimates]
    colour, symbol = COLOURS[index % len(COLOURS)], SYMBOLS[index % len(SYMBOLS)]
    told = [
        plotted(f"{points.named(g)}: {shown_number(e.mean)}")
        for g, e in zip(groups, estimates, strict=True)
    ]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plotted(name),
        "x": list(xs),
        "y": [e.mean for e in estimates],
        "error_y": {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
        | {"color": colour, "thickness": 1.2, "width": 3, "visible": any(above) or any(below)},
        "marker": {"color": colour, "symbol": symbol, "size": 8},
        "line": {"color": colour, "width": 1.6, "dash": _dash(index)},
        "text": told,
        "hovertemplate": "%{text}<extra></extra>",
    }


def _share_range(charts: list[Chart]) -> None:
    """Panels that are compared have one scale."""
    ends: list[float] = []
    for trace in (trace for chart in charts for trace in chart.data):
        error = trace["error_y"]
        ends += [y + (e or 0.0) for y, e in zip(trace["y"], error["array"], strict=True)]
        ends += [y - (e or 0.0) for y, e in zip(trace["y"], error["arrayminus"], strict=True)]
    if ends:
        room = 0.05 * (max(ends) - min(ends)) or 1.0
        for chart in charts:
            chart.layout["yaxis"]["range"] = [min(ends) - room, max(ends) + room]


def _interval_note(points: Points, groups: Sequence[Group]) -> str:
    estimates = [e for g in groups if (e := points.estimate(g))]
    sources = {e.source for e in estimates}
    seeds = max((e.n for e in estimates), default=1)
    if "seeds" in sources:
        return f"Bars: 95 % over {seeds} seeds."
    if "measurement" in sources:
        return "Bars: 95 % of the measurement; one seed, so the noise of training is not in them."
    return "No interval is known: one seed."


def _direction(points: Points) -> str:
    return f"{'Less' if points.mode == 'min' else 'More'} is better."


def _stands_apart(level: Level, factor: Factor) -> bool:
    return level.number is None and factor.has_numbers


def _apart(trace: dict[str, Any], *, hidden: bool) -> dict[str, Any]:
    """Stars without a line; the legend has them once."""
    marker = trace["marker"] | {"symbol": STAR, "size": 11}
    return {"mode": "markers", "marker": marker, "showlegend": not hidden}


def _at(level: Level, factor: Factor) -> Any:
    return level.number if factor.numeric else level.label


def _factor_axis(factor: Factor) -> dict[str, Any]:
    axis = _axis(factor.name)
    if not factor.numeric:
        labels = [level.label for level in factor.levels]
        shown = [plotted(label).replace("_", "<br>").replace(", ", "<br>") for label in labels]
        axis |= {"type": "category", "categoryorder": "array", "categoryarray": labels}
        return axis | {"tickvals": labels, "ticktext": shown}
    numbers = [level.number for level in factor.levels if level.number is not None]
    if min(numbers) > 0 and max(numbers) / min(numbers) >= LOG_FROM:
        axis["type"] = "log"
    if len(numbers) <= MOST_LEVELS:
        axis |= {"tickvals": numbers, "ticktext": [level.label for level in factor.levels]}
    return axis


def _axis(name: str) -> dict[str, Any]:
    return {"title": {"text": plotted(name)}}


def _dash(index: int) -> str:
    return ("solid", "dash", "dot", "dashdot")[index // len(COLOURS) % 4]


def _bucketed(curve: Curve) -> tuple[list[int], list[float]]:
    finite_part = [(step, value) for step, value in curve if math.isfinite(value)]
    size = max(1, -(-len(finite_part) // BUCKETS))
    buckets = [finite_part[i : i + size] for i in range(0, len(finite_part), size)]
    steps = [bucket[-1][0] for bucket in buckets]
    return steps, [math.fsum(value for _, value in b) / len(b) for b in buckets]
