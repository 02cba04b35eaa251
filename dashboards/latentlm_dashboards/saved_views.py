"""The one file that knows how MLflow's pages remember a comparison (3.15 to 3.17).

A saved view is one tag of the experiment, `mlflow.sharedViewState.<id>`: a JSON envelope of name,
time and state, the state deflated. That is the pages' own format, not a public interface, so
`pyproject.toml` pins MLflow's range. A second tag holds a fingerprint of what was written last:
a view that somebody changed in the browser no longer fits it and is left as it is.
"""

import base64
import hashlib
import json
import time
import uuid
import zlib
from collections.abc import Iterable
from typing import Any

from latentlm_dashboards.runs import connect
from latentlm_dashboards.view import Chart, Field, View, shipped_view

NAMESPACE = uuid.UUID("5d1f3bbf-6c6a-5c4d-9a0e-2f2c6f0f8b41")  # any constant: ids stay the same
SHARED = "mlflow.sharedViewState."
FINGERPRINT = "latentlm.view."
TAG_CHARACTERS = 5000
RUNS_A_CHART = 100
GENERATED = ("Model metrics", "System metrics")  # where the page puts what no chart names
AXIS_TYPES = {"params": "PARAM", "metrics": "METRIC"}


def apply_views(
    uri: str, experiment_name: str, *, names: Iterable[str], base_url: str
) -> dict[str, str]:
    """Save the shipped views in an experiment; a link each, below `base_url` of MLflow's pages.

    Repeating it changes nothing. Raises LookupError for an unknown view or experiment.
    """
    client = connect(uri)
    experiment = client.get_experiment_by_name(experiment_name)
    if experiment is None:
        raise LookupError(f"there is no MLflow experiment {experiment_name!r} at {uri} yet")
    views = [shipped_view(name) for name in names]
    return {
        view.name: base_url.rstrip("/") + apply(view, client, experiment.experiment_id)
        for view in views
    }


def apply(view: View, client: Any, experiment_id: str) -> str:
    """Save one view unless somebody changed it; the path of its page."""
    view_id = str(uuid.uuid5(NAMESPACE, view.name))
    tag, mark = SHARED + view_id, FINGERPRINT + view.name
    tags = client.get_experiment(experiment_id).tags
    content = {"name": view.title, "state": _packed(_state(view, view_id))}
    theirs = tag in tags and tags.get(mark) != _fingerprint(tags[tag])
    if not theirs and _content(tags.get(tag)) != content:
        value = json.dumps({**content, "createdAt": time.time_ns() // 1_000_000})
        if len(value) > TAG_CHARACTERS:
            raise ValueError(
                f"the view {view.name} packs to {len(value)} characters and MLflow keeps"
                f" {TAG_CHARACTERS}; give it fewer charts or columns"
            )
        client.set_experiment_tag(experiment_id, mark, _fingerprint(value))
        client.set_experiment_tag(experiment_id, tag, value)
    return f"/#/experiments/{experiment_id}/runs?viewStateShareKey={view_id}&compareRunsMode=CHART"


def _fingerprint(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


def _content(value: str | None) -> dict[str, Any]:
    """Name and state of a saved view, without its time."""
    return {k: v for k, v in json.loads(value or "{}").items() if k != "createdAt"}


def _packed(state: dict[str, Any]) -> str:
    text = json.dumps(state, separators=(",", ":"), sort_keys=True)
    return "deflate;" + base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _state(view: View, view_id: str) -> dict[str, Any]:
    """What the runs page restores: search, order, columns, one section of charts."""
    section = str(uuid.uuid5(NAMESPACE, view_id))
    charts = [
        {
            **_chart(chart),
            "uuid": str(uuid.uuid5(NAMESPACE, f"{view_id}/{index}")),
            "metricSectionId": section,
            "runsCountToCompare": RUNS_A_CHART,
            "deleted": False,
            "isGenerated": False,
        }
        for index, chart in enumerate(view.charts)
    ]
    return {
        "searchFilter": view.runs,
        "orderByKey": _column(view.order_by),
        "orderByAsc": not view.descending,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": [_column(field) for field in view.columns],
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": [
            {"uuid": section, "name": view.title, "display": True, "isReordered": True},
            *(_folded(name, view_id) for name in GENERATED),
        ],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
    }


def _folded(name: str, view_id: str) -> dict[str, Any]:
    uuid_of_it = str(uuid.uuid5(NAMESPACE, f"{view_id}/{name}"))
    return {"uuid": uuid_of_it, "name": name, "display": False, "isReordered": True}


def _column(field: Field) -> str:
    return f"{field.group}.`{field.name}`"


def _chart(chart: Chart) -> dict[str, Any]:
    names = [field.name for field in chart.axes]
    if chart.kind == "bar":
        return {"type": "BAR", "metricKey": names[0]}
    if chart.kind == "line":
        return {
            "type": "LINE",
            "metricKey": names[0],
            "selectedMetricKeys": names,
            "xAxisKey": "step",
        }
    if chart.kind == "parallel":
        groups = {
            group: [field.name for field in chart.axes if field.group == group]
            for group in AXIS_TYPES
        }
        return {
            "type": "PARALLEL",
            "selectedParams": groups["params"],
            "selectedMetrics": groups["metrics"],
            "showAllRuns": True,
        }
    axes = zip(("xaxis", "yaxis", "zaxis"), chart.axes, strict=False)
    return {"type": chart.kind.upper()} | {
        axis: {"key": field.name, "type": AXIS_TYPES[field.group]} for axis, field in axes
    }
