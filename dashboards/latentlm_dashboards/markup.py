"""HTML in pieces: text is escaped unless it is `Markup` already. Tables, sections, folded parts."""

import html
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from latentlm_dashboards.charts import Chart

LONG_LEGEND = 6  # lines
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")


class Markup(str):
    """HTML that stands as it is."""


def text(value: Any) -> Markup:
    """Escaped, also for attributes in double quotes; control characters become visible gaps."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(UNPRINTABLE.sub("\ufffd", str(value))))


def joined(parts: Iterable[Any], between: str = "") -> Markup:
    """One piece of several."""
    return Markup(between.join(text(part) for part in parts))


def element(name: str, *content: Any, **attributes: Any) -> Markup:
    """`<name …>content</name>`; `class_` is class, `_` in names is `-`, True has no value."""
    written = "".join(
        f" {key.strip('_').replace('_', '-')}" + ("" if value is True else f'="{text(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Markup(f"<{name}{written}>{joined(content)}</{name}>")


def paragraph(content: Any, kind: str | None = None) -> Markup:
    """A paragraph."""
    return element("p", content, class_=kind)


def section(identifier: str, title: str, *content: Any) -> Markup:
    """A part of the page with its heading, which the contents link to."""
    heading = element("h2", title, id=f"{identifier}-title")
    labelled = {"aria_labelledby": f"{identifier}-title"}
    return element("section", heading, *content, id=identifier, **labelled)


def folded(summary: str, *content: Any, opened: bool = False) -> Markup:
    """A part that is shown when it is asked for."""
    return element("details", element("summary", summary), *content, open=opened)


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    label: str,
    numbers: Iterable[int] = (),
    best: int | None = None,
    tall: bool = False,
) -> Markup:
    """A table in a box that scrolls by itself; columns of `numbers` are set to the right."""
    right = set(numbers)

    def cells(name: str, values: Sequence[Any]) -> Markup:
        return joined(
            element(name, value, class_="number" if index in right else None)
            for index, value in enumerate(values)
        )

    head = element("thead", element("tr", cells("th", columns)))
    body = element(
        "tbody",
        *(
            element("tr", cells("td", row), class_="best" if index == best else None)
            for index, row in enumerate(rows)
        ),
    )
    kind = "scroll tall" if tall else "scroll"
    inside = element("table", head, body)
    return element("div", inside, class_=kind, tabindex="0", role="region", aria_label=label)


class ChartShelf:
    """Keeps the charts of a page; the page's script draws them when they come near."""

    def __init__(self) -> None:
        self.charts: list[Chart] = []

    def figure(self, chart: Chart | None) -> Markup:
        """The place where the chart will be drawn."""
        if chart is None or not any(trace["x"] for trace in chart.data):
            return Markup()
        self.charts.append(chart)
        legend = sum(trace.get("showlegend", True) for trace in chart.data)
        return element(
            "figure",
            element("h3", chart.title),
            element("div", class_="plot", role="img", aria_label=f"{chart.title}. {chart.caption}"),
            element("figcaption", chart.caption) if chart.caption else "",
            class_="chart tall" if legend > LONG_LEGEND else "chart",
            data_chart=len(self.charts) - 1,
        )

    def grid(self, charts: Iterable[Chart | None]) -> Markup:
        """Several of them, side by side where there is room."""
        figures = [figure for chart in charts if (figure := self.figure(chart))]
        return element("div", *figures, class_="charts") if figures else Markup()

    def data(self) -> Markup:
        """All charts as JSON that cannot end its script element."""
        plain = [{"data": chart.data, "layout": chart.layout} for chart in self.charts]
        return script_json(plain)


def script_json(value: Any) -> Markup:
    """JSON for a script element; raises ValueError for numbers that are not finite."""
    packed = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(packed.replace("<", "\\u003c"))
