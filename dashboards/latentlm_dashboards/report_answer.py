"""The beginning of a report: the question, its answer with a picture, the claims, the paper.

The paper's numbers and ours stand in separate panels and never share a column.
"""

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

from latentlm_dashboards.charts import factor_charts
from latentlm_dashboards.markup import (
    ChartShelf,
    Markup,
    element,
    folded,
    joined,
    paragraph,
    section,
    table,
    text,
)
from latentlm_dashboards.measures import shown_number, titled
from latentlm_dashboards.paper import SETTINGS, PaperItem, paper_items
from latentlm_dashboards.points import VARIANT, Estimate, Group, Points
from latentlm_dashboards.report_data import ReportData
from latentlm_dashboards.report_pictures import Pictures
from latentlm_dashboards.studies import Study

MOST_STRIPS, MOST_TALL_STRIPS = 6, 3
MOST_ROWS = 40
MOST_METRICS = 4
ALSO_SHOWN = ("generated_accuracy", "frechet_", "reconstruction_psnr", "validation_loss", "wer")


def answer(points: Points, study: Study) -> str:
    """One sentence: the best point with its uncertainty, and who is not told apart from it."""
    best = points.best()
    if best is None or points.metric is None:
        return _no_answer(points, study)
    found = points.estimate(best)
    assert found is not None
    value = f"{shown_number(found.mean)}{_interval(found)}"
    if len(points.groups) == 1:
        return f"{points.metric} is {value}."
    sentence = f"{points.named(best)} is best by {points.metric}: {value}."
    if found.low is None or found.high is None:
        return f"{sentence} No interval is known, so the noise of one seed may decide."
    rest = [(group, one) for group in points.ranked()[1:] if (one := points.estimate(group))]
    rivals = [group for group, other in rest if _reaches(other, found.low, found.high)]
    if rivals:
        nearest = f"{points.named(rivals[0])} ({shown_number(_mean(points, rivals[0]))})"
        others = f" and {len(rivals) - 1} more" if len(rivals) > 1 else ""
        return f"{sentence} Not clearly apart from it: {nearest}{others}."
    bare = sum(other.low is None for _, other in rest)
    told = f", but {bare} of the others have no interval" if bare else ""
    return f"{sentence} No other interval overlaps with it{told}."


def _no_answer(points: Points, study: Study) -> str:
    if points.groups and points.metric:
        return f"No point has a finite {points.metric}."
    if study.status == "RUNNING":
        return "No answer yet: no evaluation has finished."
    if not study.children:
        return "No answer: this run has no children; it ended before its first stage."
    return f"No answer: no evaluation finished; the run is {study.status}."


def first_section(data: ReportData, shelf: ChartShelf, pictures: Pictures) -> Markup:
    """Question, answer, the chart and the pictures that answer it."""
    points, study = data.points, data.study
    lead = lead_factor(points)
    charts = factor_charts(points, lead) if lead is not None else []
    best = points.best()
    if len(charts) > 1 and best is not None:  # the panel that holds the best point
        at = next(i for i, one in enumerate(points.factors) if one.paths == (VARIANT,))
        charts = [c for c in charts if c.title.endswith(f": {best.levels[at].label}")] or charts
    chart = shelf.figure(charts[0]) if charts else Markup()
    strips = _strips(data, pictures, lead)
    inside = [part for part in (chart, strips) if part]
    kind = "first" if len(inside) > 1 else "first alone"
    about = titled(points.metric) if points.metric else ""
    direction = "Less" if points.mode == "min" else "More"
    note = f"{about}: {direction.lower()} is better." if about and points.groups else ""
    return section(
        "answer",
        "Answer",
        element("p", answer(points, study), class_="answer"),
        paragraph(note, "note") if note else "",
        element("div", *inside, class_=kind) if inside else "",
    )


def lead_factor(points: Points) -> int | None:
    """The factor that the first chart goes along: the first that is no variant and has levels that
    can be seen side by side."""
    fitting = [i for i, factor in enumerate(points.factors) if factor.paths != (VARIANT,)] or list(
        range(len(points.factors))
    )
    few = [i for i in fitting if len(points.factors[i].levels) <= 12]
    return next(iter(few or fitting), None)


def _strips(data: ReportData, pictures: Pictures, lead: int | None) -> Markup:
    """Samples along the first factor, the rest as in the best point."""
    best = data.points.best()
    if best is None:
        return Markup()
    groups = [best]
    if lead is not None:
        groups = [g for g in data.points.groups if _differs_only_at(g, best, lead)]
    if len(groups) > MOST_STRIPS:
        ranked = [g for g in data.points.ranked() if g in groups][:MOST_STRIPS]
        groups = [g for g in groups if g in ranked]
    rows = 2 if len(groups) <= MOST_TALL_STRIPS else 1
    shots = [
        pictures.shot_of(
            group, rows=rows, name=_strip_name(data.points, group, lead), best=group is best
        )
        for group in groups
    ]
    shots = [shot for shot in shots if shot]
    if not shots:
        return Markup()
    note = "The same seeds in the same places." if len(shots) > 1 else ""
    held = _held(data.points, best, lead)
    return element(
        "div",
        element("h3", "Samples"),
        paragraph(f"{note} {held}".strip(), "note") if note or held else "",
        element("div", *shots, class_="shots narrow"),
        class_="card",
    )


def _strip_name(points: Points, group: Group, lead: int | None) -> str:
    if lead is None:
        return points.named(group)
    return points.factors[lead].told(group.levels[lead])


def _held(points: Points, best: Group, lead: int | None) -> str:
    told = [
        factor.told(level)
        for i, (factor, level) in enumerate(zip(points.factors, best.levels, strict=True))
        if i != lead
    ]
    return f"With {', '.join(told)}." if told and lead is not None else ""


def _differs_only_at(group: Group, best: Group, lead: int) -> bool:
    return all(
        own == other or i == lead
        for i, (own, other) in enumerate(zip(group.levels, best.levels, strict=True))
    )


def claims_section(data: ReportData) -> Markup:
    """What the paper claims and whether the points bear it out; what mattered."""
    claims = data.findings.get("claims") or []
    items = [
        element(
            "li",
            element("span", claim.get("held", ""), class_=f"verdict {claim.get('held', '')}"),
            element(
                "div",
                element("div", claim.get("says", "")),
                element("div", claim.get("sentence", ""), class_="note"),
            ),
        )
        for claim in claims
        if isinstance(claim, dict)
    ]
    shares = [
        (one["path"], float(one["share"]))
        for one in data.findings.get("importances") or []
        if isinstance(one, dict) and math.isfinite(float(one.get("share", math.nan)))
    ]
    if not items and not shares and not data.findings_text:
        return Markup()
    parts: list[Any] = []
    if items:
        parts.append(element("ul", *items, class_="claims"))
    if shares:
        parts += [element("h3", f"Share of the variance of {data.findings.get('metric', '')}")]
        parts.append(_bars(shares))
    parts += [paragraph(f"Note: {note}.", "note") for note in data.findings.get("notes") or []]
    if data.findings_text:
        parts.append(folded("As the command line prints it", element("pre", data.findings_text)))
    return section("claims", "What was claimed, and what was found", *parts)


def _bars(shares: Sequence[tuple[str, float]]) -> Markup:
    rows = itertools.chain.from_iterable(
        (
            element("span", path),
            element("i", style=f"width:{100 * max(0.0, min(1.0, share)):.1f}%"),
            element("span", f"{share:.0%}"),
        )
        for path, share in shares
    )
    return element("div", *rows, class_="bars")


def paper_section(data: ReportData, shelf: ChartShelf) -> Markup:
    """The paper's table or figure beside ours, and what differs in scale."""
    reproduces = data.study.tags.get("latentlm.reproduces", "")
    items = paper_items(reproduces)
    if not items:
        return Markup()
    ours = element(
        "div",
        paragraph(f"This {data.study.kind}, not the paper", "kicker"),
        element("h3", f"{data.study.name}: {reproduces}"),
        *_ours(data, shelf),
        class_="ours",
    )
    quoted = [_quoted(item) for item in items]
    beside = element("div", element("div", *quoted), ours, class_="beside")
    note = (
        "Printed numbers of the paper stand in the tinted panel, ours in the plain one."
        " Metrics of other names are other metrics: no number of one panel can be read as"
        " one of the other."
    )
    return section(
        "paper",
        f"The paper's {reproduces} beside ours",
        paragraph(note, "note"),
        beside,
        element("h3", "What differs in scale", style="margin-top:1.2rem"),
        _differences(items, data),
    )


def figure_beside(data: ReportData) -> int | None:
    """The factor whose charts stand beside a figure of the paper; None beside tables."""
    items = paper_items(data.study.tags.get("latentlm.reproduces", ""))
    figures = items and all(item.item.startswith("Figure") for item in items)
    return lead_factor(data.points) if figures else None


def charted_above(data: ReportData) -> set[int]:
    """Factors whose every chart is already shown, in the answer or beside the paper's figure."""
    lead = lead_factor(data.points)
    if lead is None:
        return set()
    in_answer = len(factor_charts(data.points, lead)) == 1
    return {lead} if in_answer or figure_beside(data) is not None else set()


def _ours(data: ReportData, shelf: ChartShelf) -> list[Markup]:
    """A table beside a table, a figure beside a figure."""
    lead = figure_beside(data)
    if lead is None:
        return [ours_table(data.points)]
    charts = factor_charts(data.points, lead)
    return [shelf.grid(charts), folded("As a table", ours_table(data.points))]


def _quoted(item: PaperItem) -> Markup:
    parts: list[Any] = [paragraph("The paper, arXiv 2412.08635, not ours", "kicker")]
    parts.append(element("h3", f"{item.item}: {item.title} ({item.place})"))
    if item.rows:
        numbers = [i for i in range(len(item.columns)) if _looks_numeric([r[i] for r in item.rows])]
        parts.append(
            table(item.columns, item.rows, label=f"{item.item} of the paper", numbers=numbers)
        )
    if item.says:
        parts.append(element("ul", *(element("li", sentence) for sentence in item.says)))
    if item.only_in_figure:
        parts.append(paragraph(item.only_in_figure, "note"))
    return element("div", *parts, class_="quoted", style="margin-bottom:1rem")


def _looks_numeric(cells: Sequence[str]) -> bool:
    return all(cell[:1].isdigit() or cell in ("–", "") for cell in cells)


def ours_table(points: Points, most: int = MOST_ROWS) -> Markup:
    """Our groups: what was varied, seeds, the metric and a few more, each with its interval."""
    if not points.groups or points.metric is None:
        return paragraph("No evaluation has finished.", "note")
    names = {name for group in points.groups for point in group.points for name in point.metrics}
    also = [
        min((n for n in names if n.startswith(one) and f"{n}_low" in names), key=len, default="")
        or (one if one in names else "")
        for one in ALSO_SHOWN
    ]
    metrics = [points.metric, *dict.fromkeys(m for m in also if m and m != points.metric)]
    metrics = metrics[:MOST_METRICS]
    ranked = points.ranked()
    shown = points.groups if len(points.groups) <= most else tuple(ranked[:most])
    rows = [
        [
            *(level.label for level in group.levels),
            len(group.points),
            *(with_interval(group.estimate(metric)) for metric in metrics),
        ]
        for group in shown
    ]
    columns = [*(factor.name for factor in points.factors), "seeds", *metrics]
    numbers = range(len(points.factors), len(columns))
    best = points.best()
    at = next((i for i, group in enumerate(shown) if group is best), None)
    inside = table(columns, rows, label="Our points", numbers=numbers, best=at, tall=len(rows) > 16)
    if len(shown) < len(points.groups):
        inside = joined(
            (inside, paragraph(f"The best {most} of {len(points.groups)} points.", "note"))
        )
    return inside


def with_interval(estimate: Estimate | None) -> Markup:
    """`1,373 [1,307, 1,438]`."""
    if estimate is None:
        return text("–")
    value = text(shown_number(estimate.mean))
    if estimate.low is None or estimate.high is None:
        return value
    ends = f" [{shown_number(estimate.low)}, {shown_number(estimate.high)}]"
    return joined((value, element("span", ends, class_="interval")))


def _differences(items: Sequence[PaperItem], data: ReportData) -> Markup:
    theirs: dict[str, str] = {}
    for item in items:
        theirs = item.setting | theirs
    ours = _own_setting(data)
    rows = [
        [title, theirs.get(key, "not stated"), ours.get(key, "–")]
        for key, title in SETTINGS.items()
        if key in theirs or key in ours
    ]
    columns = ["", "the paper", f"this {data.study.kind}"]
    return table(columns, rows, label="What differs in scale")


def _own_setting(data: ReportData) -> dict[str, str]:
    """Ours, from the parameters; what was varied is said to be."""
    p = data.study.parameters
    varied = {path.split(".")[0] for factor in data.points.factors for path in factor.paths}
    varied |= {"model"} if VARIANT in varied else set()

    def told(key: str, pattern: str, section_name: str = "") -> None:
        names = [name for name in p if f"{{{name}}}" in pattern]
        filled = pattern
        for name in names:
            filled = filled.replace(f"{{{name}}}", p[name])
        if names and "{" not in filled:
            found[key] = filled + (" (varied)" if section_name in varied else "")

    found: dict[str, str] = {}
    told("corpus", "{corpus.source}", "corpus")
    told("image_size", "{corpus.image_size} px")
    told("codec", "{codec.kind}, {codec.training.steps} steps", "codec")
    told("model", "{model.kind}, width {model.width}, {model.depth} layers", "model")
    told("training", "{train.steps} steps × batch {train.batch_size}", "train")
    told("sampling", "{sample.solver}, {sample.steps} steps, CFG {sample.cfg_scale}", "sample")
    told("scored", "{evaluate.images} samples")
    if data.points.metric:
        found["metric"] = titled(data.points.metric)
    if hardware := data.study.tags.get("latentlm.hardware"):
        found["hardware"] = hardware
    return found


def expected_points(parameters: dict[str, str]) -> int | None:
    """How many points the sweep or run will have, as far as its parameters say."""
    try:
        swept = {
            name: json.loads(value)
            for name, value in parameters.items()
            if name.startswith("sweep.grid.")
        }
        listed = set(map(float, json.loads(parameters.get("evaluate.cfg_scales", "[]"))))
        scale = float(parameters.get("sample.cfg_scale", "nan"))
        samples = int(parameters.get("sweep.search.samples", "1"))
    except (ValueError, TypeError):
        return None
    variants = {name.split(".")[2] for name in parameters if name.startswith("sweep.variants.")}
    count = samples * max(1, len(variants))
    count *= math.prod(len(v) for v in swept.values() if isinstance(v, list))
    if "sweep.grid.sample.cfg_scale" not in swept and listed:
        count *= len(listed | {scale})
    return count


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    source = f"over {estimate.n} seeds" if estimate.source == "seeds" else "of the measurement"
    return f" (95 % {source}: {shown_number(estimate.low)} to {shown_number(estimate.high)})"


def _reaches(other: Estimate, low: float, high: float) -> bool:
    """Whether the other's interval, or its value where it has none, touches low … high."""
    if other.low is None or other.high is None:
        return low <= other.mean <= high
    return other.low <= high and low <= other.high


def _mean(points: Points, group: Group) -> float | None:
    estimate = points.estimate(group)
    return estimate.mean if estimate else None
