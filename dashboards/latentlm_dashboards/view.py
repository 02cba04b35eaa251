"""A comparison view: one YAML of `dashboards/views/`, checked, as frozen dataclasses.

    title: Which CFG scale is best?
    runs: tags."latentlm.kind" = 'evaluation'        # MLflow's search language; default: all runs
    order_by: metrics.generated_accuracy
    descending: true                                 # the default
    columns: [params.cfg_scale, metrics.generated_accuracy]
    charts:
      - {kind: scatter, x: params.cfg_scale, y: metrics.generated_accuracy}
      - {kind: bar, y: metrics.generated_accuracy}
      - {kind: line, y: [metrics.loss, metrics.validation_loss]}
      - {kind: contour, x: params.cfg_scale, y: params.solver_steps, z: metrics.generated_accuracy}
      - {kind: parallel, axes: [params.cfg_scale, metrics.generated_accuracy]}

`order_by` must be there: sorted by time, MLflow's page folds children under their parents, and a
view of children is empty. What is wrong is named with its place, all at once.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from latentlm_platform.located_yaml import Document, KeyPath, Located, read_yaml, refuse, shown

GROUPS = ("params", "metrics", "tags")
MOST_CHARTS = 40

Kind = Literal["bar", "line", "scatter", "contour", "parallel"]


class Shape(NamedTuple):
    """The keys of a kind of chart; `many`: its one key takes a list; `groups`: what may stand."""

    keys: tuple[str, ...]
    many: bool
    groups: tuple[str, ...]


SHAPES = {
    "bar": Shape(("y",), False, ("metrics",)),
    "line": Shape(("y",), True, ("metrics",)),
    "scatter": Shape(("x", "y"), False, ("params", "metrics")),
    "contour": Shape(("x", "y", "z"), False, ("params", "metrics")),
    "parallel": Shape(("axes",), True, ("params", "metrics")),
}


@dataclass(frozen=True, slots=True)
class Field:
    """A parameter, metric or tag of runs, such as metrics.loss."""

    group: Literal["params", "metrics", "tags"]
    name: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart: x, y and z in this order, or the lines or axes."""

    kind: Kind
    axes: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class View:
    """Which runs are shown, in which order, with which columns and charts."""

    name: str
    title: str
    runs: str
    order_by: Field
    descending: bool
    columns: tuple[Field, ...]
    charts: tuple[Chart, ...]


def views_folder() -> Path:
    """Where the shipped views are."""
    return Path(__file__).parents[1] / "views"


def view_names() -> list[str]:
    """The shipped views."""
    return sorted(path.stem for path in views_folder().glob("*.yaml"))


def shipped_view(name: str) -> View:
    """A view of `dashboards/views/` by name; LookupError where there is none."""
    if name not in view_names():
        raise LookupError(f"no view is called {name!r}; there are {', '.join(view_names())}")
    return read_view(views_folder() / f"{name}.yaml")


def read_view(path: Path) -> View:
    """The checked view of a file; `UserError` with every problem and its place."""
    document = read_yaml(path)
    reading = _Reading(document)
    view = reading.view(path.stem)
    refuse([*document.problems, *reading.problems], file=document.file)
    return view


class _Reading:
    """Checks while it reads; what cannot be read is noted in `problems` and left out."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[Located] = []

    def view(self, name: str) -> View:
        data = self.document.data
        self.keys(data, ("title", "runs", "order_by", "descending", "columns", "charts"), ())
        order_by = self.field(data.get("order_by"), ("order_by",))
        charts = self.items(data.get("charts"), ("charts",))
        if len(charts) > MOST_CHARTS:
            self.problem(("charts",), f"{len(charts)} charts; a view takes at most {MOST_CHARTS}")
        return View(
            name=name,
            title=self.text(data.get("title"), ("title",)),
            runs=self.text(data.get("runs", ""), ("runs",)),
            order_by=order_by or Field("metrics", "unread"),
            descending=self.flag(data.get("descending", True), ("descending",)),
            columns=self.fields(data.get("columns", []), ("columns",)),
            charts=tuple(
                chart
                for index, part in enumerate(charts)
                if (chart := self.chart(part, ("charts", index)))
            ),
        )

    def chart(self, part: Any, path: KeyPath) -> Chart | None:
        kind = part.get("kind") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in SHAPES:
            self.problem(path, f"a chart needs `kind`, one of {', '.join(SHAPES)}")
            return None
        shape = SHAPES[kind]
        self.keys(part, ("kind", *shape.keys), path)
        axes: list[Field] = []
        for key in shape.keys:
            if key not in part:
                self.problem(path, f"a {kind} chart needs `{key}`, such as metrics.loss")
            elif shape.many:
                axes += self.fields(part[key], (*path, key), groups=shape.groups)
            elif found := self.field(part[key], (*path, key), groups=shape.groups):
                axes.append(found)
        return Chart(cast("Kind", kind), tuple(axes))

    def fields(
        self, value: Any, path: KeyPath, *, groups: tuple[str, ...] = GROUPS
    ) -> tuple[Field, ...]:
        items = self.items(value, path)
        read = (self.field(item, (*path, i), groups=groups) for i, item in enumerate(items))
        return tuple(field for field in read if field)

    def field(self, value: Any, path: KeyPath, *, groups: tuple[str, ...] = GROUPS) -> Field | None:
        group, _, name = value.partition(".") if isinstance(value, str) else ("", "", "")
        if group in groups and name:
            return Field(cast("Literal['params', 'metrics', 'tags']", group), name)
        wanted = " or ".join(f"{group}.NAME" for group in groups)
        self.problem(path, f"{shown(value)} was given; expected {wanted}")
        return None

    def items(self, value: Any, path: KeyPath) -> list[Any]:
        if isinstance(value, list) and (value or path == ("columns",)):
            return value
        self.problem(path, f"{'.'.join(map(str, path))} takes a list with at least one entry")
        return []

    def text(self, value: Any, path: KeyPath) -> str:
        if isinstance(value, str) and (value or path == ("runs",)):
            return value
        self.problem(path, f"`{path[0]}` takes a text")
        return ""

    def flag(self, value: Any, path: KeyPath) -> bool:
        if not isinstance(value, bool):
            self.problem(path, f"{shown(value)} was given; `{path[0]}` is true or false")
        return bool(value)

    def keys(self, part: dict[str, Any], known: Iterable[str], path: KeyPath) -> None:
        known = list(known)
        for key in part:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
                self.problem((*path, key), f"unknown key {key}; {hint}")

    def problem(self, path: KeyPath, message: str) -> None:
        self.problems.append(Located(self.document.place(path), path, None, message))
