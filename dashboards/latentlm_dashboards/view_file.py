"""A view's YAML, checked: what is wrong is named with its place, all at once.

    title: Which CFG scale is best?
    reproduces: [Figure 10a]                         # of the paper; may be left out
    awaits: speech                                   # a track that nothing trains yet, if so
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
      - {kind: difference, compare: [metrics, params]}
      - {kind: images, pictures: [samples]}

`order_by` must be there: sorted by time, MLflow's page folds children under their parents, and a
view of children is empty.
"""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from latentlm_dashboards.view import (
    GROUPS,
    SHAPES,
    TRACKS,
    Chart,
    Field,
    Group,
    Kind,
    Track,
    View,
    view_names,
    views_folder,
)
from latentlm_platform.errors import UserError
from latentlm_platform.located_yaml import Document, KeyPath, Located, read_yaml, refuse, shown

MOST_CHARTS = 40
MAY_BE_EMPTY = ("columns", "reproduces")
KEYS = (
    "title",
    "reproduces",
    "awaits",
    "runs",
    "order_by",
    "descending",
    "columns",
    "charts",
)


def shipped_view(name: str) -> View:
    """A view of `dashboards/views/` by name; UserError where there is none."""
    names = view_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        raise UserError(f"no view is called {name!r}; {hint}")
    return read_view(views_folder() / f"{name}.yaml")


def shipped_views(names: Iterable[str] = ()) -> list[View]:
    """The views of these names; without names, all that are shipped."""
    return [shipped_view(name) for name in dict.fromkeys(list(names) or view_names())]


def views_about(reproduces: str | None) -> list[str]:
    """The views of a figure or table of the paper that the text names, such as "Figure 10a, on
    images"; a figure without a letter is all of its parts."""
    wanted = _cited(reproduces or "")
    return [
        view.name
        for view in shipped_views()
        if any(_about(one, own) for one in wanted for own in _cited(" ".join(view.reproduces)))
    ]


def _about(one: tuple[str, str, str], other: tuple[str, str, str]) -> bool:
    letters = {one[2], other[2]}
    return one[:2] == other[:2] and (len(letters) == 1 or "" in letters)


def _cited(text: str) -> list[tuple[str, str, str]]:
    return re.findall(r"\b(Figure|Table) (\d+)([a-z]?)\b", text)


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
        self.lines: dict[Field, int] = {}

    def view(self, name: str) -> View:
        data = self.document.data
        self.keys(data, KEYS, ())
        order_by = self.field(data.get("order_by"), ("order_by",), groups=GROUPS)
        return View(
            name=name,
            title=self.text(data.get("title"), ("title",)),
            runs=self.text(data.get("runs", ""), ("runs",)),
            order_by=order_by or Field("metrics", "unread"),
            descending=self.flag(data.get("descending", True), ("descending",)),
            columns=self.fields(data.get("columns", []), ("columns",), groups=GROUPS),
            charts=self.charts(data.get("charts")),
            reproduces=self.words(data.get("reproduces", []), ("reproduces",)),
            awaits=self.track(data.get("awaits")),
            file=self.document.file,
            lines=self.lines,
        )

    def charts(self, value: Any) -> tuple[Chart, ...]:
        parts = self.items(value, ("charts",))
        if len(parts) > MOST_CHARTS:
            self.problem(("charts",), f"{len(parts)} charts; a view takes at most {MOST_CHARTS}")
        charts: list[Chart] = []
        for index, part in enumerate(parts):
            chart = self.chart(part, ("charts", index))
            if chart in charts:
                self.problem(("charts", index), "this chart is there already; leave one out")
            elif chart:
                charts.append(chart)
        return tuple(charts)

    def chart(self, part: Any, path: KeyPath) -> Chart | None:
        kind = part.get("kind") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in SHAPES:
            self.problem(path, f"a chart needs `kind`, one of {', '.join(SHAPES)}")
            return None
        shape = SHAPES[kind]
        self.keys(part, ("kind", *shape.keys), path)
        axes: list[Field] = []
        words: tuple[str, ...] = ()
        for key in shape.keys:
            where = (*path, key)
            if key not in part:
                such = {"difference": "[metrics]", "images": "[samples]"}.get(kind, "metrics.loss")
                self.problem(path, f"a chart of kind {kind} needs `{key}`, such as {such}")
            elif shape.takes == "words":
                words = self.words(part[key], where, known=shape.groups)
            elif shape.takes == "fields":
                axes += self.fields(part[key], where, groups=shape.groups)
            elif found := self.field(part[key], where, groups=shape.groups):
                axes.append(found)
        return Chart(cast("Kind", kind), tuple(axes), words)

    def fields(self, value: Any, path: KeyPath, *, groups: tuple[str, ...]) -> tuple[Field, ...]:
        items = self.items(value, path)
        read = (self.field(item, (*path, i), groups=groups) for i, item in enumerate(items))
        return tuple(field for field in read if field)

    def field(self, value: Any, path: KeyPath, *, groups: tuple[str, ...]) -> Field | None:
        group, _, name = value.partition(".") if isinstance(value, str) else ("", "", "")
        if group in groups and name and "`" not in name:
            field = Field(cast("Group", group), name)
            self.lines.setdefault(field, self.document.place(path).line or 1)
            return field
        wanted = " or ".join(f"{group}.NAME" for group in groups)
        self.problem(path, f"{shown(value)} was given; expected {wanted}")
        return None

    def words(self, value: Any, path: KeyPath, *, known: tuple[str, ...] = ()) -> tuple[str, ...]:
        items = self.items(value, path)
        for index, item in enumerate(items):
            if not isinstance(item, str) or not item or (known and item not in known):
                wanted = f"one of {', '.join(known)}" if known else "a text"
                self.problem((*path, index), f"{shown(item)} was given; expected {wanted}")
        return tuple(item for item in items if isinstance(item, str))

    def track(self, value: Any) -> Track | None:
        if value is not None and value not in TRACKS:
            wanted = " or ".join(TRACKS)
            self.problem(("awaits",), f"{shown(value)} was given; `awaits` is {wanted}")
        return cast("Track | None", value)

    def items(self, value: Any, path: KeyPath) -> list[Any]:
        if isinstance(value, list) and (value or path[0] in MAY_BE_EMPTY):
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
