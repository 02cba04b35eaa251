"""A comparison view: which runs, in which order, with which columns and charts.

`dashboards/views/` holds one YAML a view (`view_file` reads and checks them), `saved_views` writes
them as MLflow's pages remember them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

Group = Literal["params", "metrics", "tags"]
Kind = Literal["bar", "line", "scatter", "contour", "parallel", "difference", "images"]
Track = Literal["speech", "multimodal"]
Compared = Literal["metrics", "params", "tags", "attributes", "system"]

GROUPS: tuple[str, ...] = ("params", "metrics", "tags")
TRACKS: tuple[str, ...] = ("speech", "multimodal")
COMPARED: tuple[str, ...] = ("metrics", "params", "tags", "attributes", "system")


class Shape(NamedTuple):
    """The keys of a kind of chart. `takes`: one field, many fields, or many words; `groups`: what
    the fields, or which words, may be."""

    keys: tuple[str, ...]
    takes: Literal["field", "fields", "words"]
    groups: tuple[str, ...] = ()


SHAPES = {
    "bar": Shape(("y",), "field", ("metrics",)),
    "line": Shape(("y",), "fields", ("metrics",)),
    "scatter": Shape(("x", "y"), "field", ("params", "metrics")),
    "contour": Shape(("x", "y", "z"), "field", ("params", "metrics")),
    "parallel": Shape(("axes",), "fields", ("params", "metrics")),
    "difference": Shape(("compare",), "words", COMPARED),
    "images": Shape(("pictures",), "words"),
}


@dataclass(frozen=True, slots=True)
class Field:
    """A parameter, metric or tag of runs, such as metrics.loss."""

    group: Group
    name: str

    def __str__(self) -> str:
        return f"{self.group}.{self.name}"


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart: x, y and z in this order, or the lines or axes; words of a difference (what is
    compared) or of images (their keys)."""

    kind: Kind
    axes: tuple[Field, ...] = ()
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class View:
    """What a view file says. `reproduces`: the paper's figures and tables that ask the same;
    `awaits`: the track whose runs it is made for and which nothing trains yet; `lines`: where in
    `file` a field stands."""

    name: str
    title: str
    runs: str
    order_by: Field
    descending: bool
    columns: tuple[Field, ...]
    charts: tuple[Chart, ...]
    reproduces: tuple[str, ...] = ()
    awaits: Track | None = None
    file: str = ""
    lines: Mapping[Field, int] = field(default_factory=dict, compare=False)

    def fields(self) -> list[Field]:
        """Every parameter, metric and tag that it names, once."""
        axes = (axis for chart in self.charts for axis in chart.axes)
        return list(dict.fromkeys((self.order_by, *self.columns, *axes)))


def views_folder() -> Path:
    """Where the shipped views are."""
    return Path(__file__).parents[1] / "views"


def view_names() -> list[str]:
    """The shipped views."""
    return sorted(path.stem for path in views_folder().glob("*.yaml"))
