"""What differs between a shipped view and the one that MLflow's pages hold, in words.

In MLflow 3.17 nobody saves over a shared view: "Override saved view" makes it what the own browser
remembers, and "Save current view" then saves that under another id. Such a copy is told from its
section of charts, which keeps the shipped view's id.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from latentlm_dashboards.applying import FINGERPRINT, find_experiment, is_ours
from latentlm_dashboards.mlflow_version import require_saved_views
from latentlm_dashboards.runs import connect
from latentlm_dashboards.saved_views import (
    SHARED,
    content_of,
    section_id,
    state_of,
    view_id,
    view_state,
)
from latentlm_dashboards.view import View
from latentlm_dashboards.view_file import shipped_views

Standing = Literal["same", "absent", "deleted", "older", "changed", "copied"]


@dataclass(frozen=True, slots=True)
class ViewDifference:
    """How a view stands. `older`: an apply will bring it up to date; `changed`: by somebody, and
    left so; `copied`: saved in the browser under the title, `name` is what it was made from.
    `words`: one line for each thing that differs."""

    name: str
    title: str
    standing: Standing
    words: tuple[str, ...]


def diff_views(
    uri: str, experiment_name: str, *, names: Iterable[str] = ()
) -> list[ViewDifference]:
    """The shipped views of these names (default: all) against those in an experiment, each followed
    by the copies of it that people saved.

    UserError for an unknown view or experiment, and for an MLflow without saved views.
    """
    views = shipped_views(names)
    require_saved_views(uri)
    tags = find_experiment(connect(uri), experiment_name, uri=uri).tags
    return [found for view in views for found in (diff_view(view, tags), *_copies(view, tags))]


def diff_view(view: View, tags: dict[str, str]) -> ViewDifference:
    """One view against the experiment's tags."""
    saved = tags.get(SHARED + view_id(view))
    if saved is None:
        gone: Standing = "deleted" if FINGERPRINT + view.name in tags else "absent"
        return ViewDifference(view.name, view.title, gone, ("it is not in MLflow",))
    try:
        theirs = state_of(saved)
    except ValueError as error:
        return ViewDifference(view.name, view.title, "changed", (str(error),))
    words = [*_said("name", view.title, content_of(saved).get("name")), *_states(view, theirs)]
    if not words and theirs != view_state(view):
        words = ["how it is laid out"]
    standing: Standing = "same"
    if words:
        standing = "older" if is_ours(view, tags) else "changed"
    return ViewDifference(view.name, view.title, standing, tuple(words))


def _copies(view: View, tags: dict[str, str]) -> Iterator[ViewDifference]:
    own = SHARED + view_id(view)
    for tag, value in sorted(tags.items()):
        if not tag.startswith(SHARED) or tag == own:
            continue
        try:
            state = state_of(value)
        except ValueError:
            continue  # of an older MLflow, or of another program
        sections = [one.get("uuid") for one in state.get("compareRunSections") or []]
        if section_id(view) in sections:
            title = str(content_of(value).get("name"))
            yield ViewDifference(view.name, title, "copied", tuple(_states(view, state)))


def _states(view: View, theirs: dict[str, Any]) -> Iterator[str]:
    ours = view_state(view)
    yield from _said("runs", ours["searchFilter"], theirs.get("searchFilter"))
    yield from _said("order", _order(ours), _order(theirs))
    yield from _columns(ours["selectedColumns"], theirs.get("selectedColumns") or [])
    yield from _charts(ours["compareRunCharts"], theirs.get("compareRunCharts") or [])


def _said(what: str, ours: Any, theirs: Any) -> Iterator[str]:
    if ours != theirs:
        yield f"{what}: {_quoted(theirs)} in MLflow, {_quoted(ours)} here"


def _quoted(text: Any) -> str:
    return str(text) if text else "nothing"


def _order(state: dict[str, Any]) -> str:
    key = str(state.get("orderByKey", "")).replace("`", "")
    return f"{key}, {'smallest' if state.get('orderByAsc') else 'largest'} first"


def _columns(ours: list[str], theirs: list[str]) -> Iterator[str]:
    for words, some in (
        ("column added in MLflow", [one for one in theirs if one not in ours]),
        ("column removed in MLflow", [one for one in ours if one not in theirs]),
    ):
        for one in some:
            yield f"{words}: {one.replace('`', '')}"
    if set(ours) == set(theirs) and ours != theirs:
        yield "columns are in another order in MLflow"


def _charts(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> Iterator[str]:
    """Charts that the page generates by itself are nobody's."""
    shown = {
        chart.get("uuid"): chart
        for chart in theirs
        if not chart.get("deleted") and not chart.get("isGenerated")
    }
    for chart in ours:
        found = shown.pop(chart["uuid"], None)
        if found is None:
            yield f"chart removed in MLflow: {chart_words(chart)}"
        elif chart_words(found) != chart_words(chart):
            yield f"chart changed in MLflow: {chart_words(chart)} is now {chart_words(found)}"
    for chart in shown.values():
        yield f"chart added in MLflow: {chart_words(chart)}"


def chart_words(chart: dict[str, Any]) -> str:
    """What a chart of MLflow's pages shows, whoever made it."""
    kind = str(chart.get("type", "chart")).lower()
    if kind in ("scatter", "contour"):
        axes = [chart.get(axis) or {} for axis in ("xaxis", "yaxis", "zaxis")]
        parts = [str(axis["key"]) for axis in axes if axis.get("key")]
    elif kind == "parallel":
        parts = [*(chart.get("selectedParams") or []), *(chart.get("selectedMetrics") or [])]
    elif kind == "difference":
        parts = list(chart.get("compareGroups") or [])
    elif kind == "image":
        parts = list(chart.get("imageKeys") or [])
    else:
        parts = list(chart.get("selectedMetricKeys") or [chart.get("metricKey", "")])
    scale = " on a logarithmic scale" if chart.get("scaleType") == "log" else ""
    return f"{kind} of {', '.join(parts)}{scale}"
