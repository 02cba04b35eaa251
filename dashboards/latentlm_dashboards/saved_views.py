"""The one file that knows how MLflow's pages remember a comparison (3.15 to 3.17).

A saved view is one tag of the experiment, `mlflow.sharedViewState.<id>`: a JSON envelope of name,
time and state, the state deflated. That is the pages' own format, not a public interface, so
`pyproject.toml` pins MLflow's range and a test opens every view in a real browser.
"""

import base64
import binascii
import json
import time
import uuid
import zlib
from typing import Any

from latentlm_dashboards.view import Chart, Field, View

NAMESPACE = uuid.UUID("5d1f3bbf-6c6a-5c4d-9a0e-2f2c6f0f8b41")  # any constant: ids stay the same
SHARED = "mlflow.sharedViewState."
DEFLATED = "deflate;"
TAG_CHARACTERS = 5000
RUNS_A_CHART = 100
CHARTS_A_ROW = 2  # beside the list of runs; three are too narrow for names and axes
CARD_PIXELS = 400
GENERATED = ("Model metrics", "System metrics")  # where the page puts what no chart names
AXIS_TYPES = {"params": "PARAM", "metrics": "METRIC"}
COMPARE_GROUPS = {
    "metrics": "Model metrics",
    "params": "Parameters",
    "tags": "Tags",
    "attributes": "Attributes",
    "system": "System metrics",
}


def view_id(view: View) -> str:
    """The same for ever: made from the view's name."""
    return str(uuid.uuid5(NAMESPACE, view.name))


def section_id(view: View) -> str:
    """Of the view's section of charts; a copy that somebody saved has it too."""
    return _id(view, "section")


def view_path(view: View, experiment_id: str) -> str:
    """Where the page of a saved view is, below the address of MLflow's pages."""
    shared = f"viewStateShareKey={view_id(view)}&compareRunsMode=CHART"
    return f"/#/experiments/{experiment_id}/runs?{shared}"


def view_content(view: View) -> dict[str, str]:
    """Name and packed state: a saved view without its time."""
    return {"name": view.title, "state": _packed(view_state(view))}


def saved_value(view: View) -> str:
    """The tag's value; ValueError where it is longer than MLflow keeps."""
    value = json.dumps({**view_content(view), "createdAt": time.time_ns() // 1_000_000})
    if len(value) > TAG_CHARACTERS:
        raise ValueError(
            f"the view {view.name} packs to {len(value)} characters and MLflow keeps"
            f" {TAG_CHARACTERS}; give it fewer charts or columns"
        )
    return value


def content_of(value: str | None) -> dict[str, Any]:
    """Name and state of a saved view, packed as they are; empty where it is none."""
    try:
        envelope = json.loads(value or "{}")
    except json.JSONDecodeError:
        return {}
    if not isinstance(envelope, dict):
        return {}
    return {k: v for k, v in envelope.items() if k != "createdAt"}


def state_of(value: str) -> dict[str, Any]:
    """The state of a saved view, plain or deflated; ValueError where it cannot be read."""
    text = str(content_of(value).get("state", ""))
    try:
        if text.startswith(DEFLATED):
            packed = base64.b64decode(text.removeprefix(DEFLATED))
            text = zlib.decompress(packed).decode()
        state: dict[str, Any] = json.loads(text)
        if not isinstance(state, dict):
            raise ValueError(f"its state is {text[:40]}")
    except (binascii.Error, zlib.error, ValueError) as error:
        raise ValueError(f"it is no saved view that MLflow 3.15 to 3.17 writes: {error}") from error
    return state


def _packed(state: dict[str, Any]) -> str:
    text = json.dumps(state, separators=(",", ":"), sort_keys=True)
    return DEFLATED + base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def view_state(view: View) -> dict[str, Any]:
    """What the runs page restores: search, order, columns, one section of charts."""
    section = section_id(view)
    charts = [
        {
            **_chart(chart),
            "uuid": _id(view, json.dumps(_chart(chart))),  # of what it shows: its place may change
            "metricSectionId": section,
            "runsCountToCompare": RUNS_A_CHART,
            "deleted": False,
            "isGenerated": False,
        }
        for chart in view.charts
    ]
    shown = {"display": True, "columns": CHARTS_A_ROW, "cardHeight": CARD_PIXELS}
    return {
        "searchFilter": view.runs,
        "orderByKey": canonical(view.order_by),
        "orderByAsc": not view.descending,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": [canonical(field) for field in view.columns],
        "runsHiddenMode": "SHOW_ALL",
        "autoRefreshEnabled": True,
        "compareRunCharts": charts,
        "compareRunSections": [
            {"uuid": section, "name": view.title, "isReordered": True, **shown},
            *(_folded(view, name) for name in GENERATED),
        ],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
    }


def canonical(field: Field) -> str:
    """A field as the page names a column."""
    return f"{field.group}.`{field.name}`"


def _id(view: View, part: str) -> str:
    return str(uuid.uuid5(NAMESPACE, f"{view_id(view)}/{part}"))


def _folded(view: View, name: str) -> dict[str, Any]:
    return {"uuid": _id(view, name), "name": name, "display": False, "isReordered": True}


def _chart(chart: Chart) -> dict[str, Any]:
    """A chart as MLflow's pages write it."""
    names = [field.name for field in chart.axes]
    if chart.kind == "bar":
        return {"type": "BAR", "metricKey": names[0]}
    if chart.kind == "line":
        lines = {"metricKey": names[0], "selectedMetricKeys": names}
        raw = {"lineSmoothness": 0}  # the page's own choice lags behind short curves
        return {"type": "LINE", "xAxisKey": "step", **raw, **lines}
    if chart.kind == "images":
        return {
            "type": "IMAGE",
            "imageKeys": list(chart.words),
            "step": 0,
            "showRunParams": False,  # there are a hundred of them; what was chosen is in the name
        }
    if chart.kind == "difference":
        return {
            "type": "DIFFERENCE",
            "compareGroups": [COMPARE_GROUPS[word] for word in chart.words],
            "chartName": "Runs difference view",
            "showChangeFromBaseline": True,
            "showDifferencesOnly": True,
            "baselineColumnUuid": "",
        }
    if chart.kind == "parallel":
        selected = {
            key: [field.name for field in chart.axes if field.group == group]
            for key, group in (("selectedParams", "params"), ("selectedMetrics", "metrics"))
        }
        return {"type": "PARALLEL", "showAllRuns": True, **selected}
    axes = zip(("xaxis", "yaxis", "zaxis"), chart.axes, strict=False)
    return {"type": chart.kind.upper()} | {
        axis: {"key": field.name, "type": AXIS_TYPES[field.group]} for axis, field in axes
    }
