"""A study: a run or a sweep as MLflow holds it, parent and children, read in a few calls.

In: the store and what a person calls the run. Out: plain values, checked once here: numbers that
MLflow can only store as ±1.8e308 are infinities again, tags that hold JSON are read.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

from latentlm_dashboards.runs import KEY, KIND, children, find_parent

STUDIES = ("run", "sweep")
NEAR_INFINITY = 1.7e308
CFG_SCALE = "sample.cfg_scale"


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """What MLflow holds of any run of ours."""

    run_id: str
    name: str
    kind: str
    key: str
    status: str
    parameters: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    artifacts: str
    started_ms: int
    ended_ms: int | None


@dataclass(frozen=True, kw_only=True)
class Child(Tracked):
    """A codec, model or evaluation; `chosen` is swept path → value, as far as it depends on it."""

    chosen: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Study(Tracked):
    """A parent run (`kind` run or sweep) and all its children, oldest first."""

    experiment_id: str
    experiment: str
    children: tuple[Child, ...]

    def of_kind(self, kind: str) -> list[Child]:
        """Its children of that kind."""
        return [child for child in self.children if child.kind == kind]


def read_study(client: Any, reference: str) -> Study:
    """The run or sweep of that key, beginning of a key, name or MLflow run id; the newest of them.

    Raises LookupError where nothing fits, or where several different ones do.
    """
    parent = find_parent(client, reference, kinds=STUDIES)
    experiment_id = parent.info.experiment_id
    return Study(
        **_tracked(parent),
        experiment_id=experiment_id,
        experiment=client.get_experiment(experiment_id).name,
        children=tuple(_child(run) for run in children(client, parent)),
    )


def _child(run: Any) -> Child:
    chosen = _chosen(run.data.tags.get("latentlm.chosen", "{}"), dict(run.data.params))
    return Child(**_tracked(run), chosen=chosen)


def _tracked(run: Any) -> dict[str, Any]:
    """The fields of `Tracked`."""
    info, data = run.info, run.data
    return {
        "run_id": info.run_id,
        "name": info.run_name or info.run_id,
        "kind": data.tags.get(KIND, "child"),
        "key": data.tags.get(KEY, ""),
        "status": info.status,
        "parameters": dict(data.params),
        "metrics": _numbers(data.metrics),
        "tags": dict(data.tags),
        "artifacts": info.artifact_uri or "",
        "started_ms": info.start_time or 0,
        "ended_ms": info.end_time,
    }


def _chosen(text: str, parameters: dict[str, str]) -> dict[str, Any]:
    """The swept values; an evaluation outside a sweep differs from its siblings in its scale."""
    try:
        chosen = json.loads(text)
    except ValueError:  # a tag is cut at 5,000 characters
        chosen = {}
    chosen = dict(chosen) if isinstance(chosen, dict) else {}
    if CFG_SCALE not in chosen and "cfg_scale" in parameters:
        chosen[CFG_SCALE] = read_number(parameters["cfg_scale"])
    return chosen


def read_number(text: str) -> Any:
    """The number that the text is, or the text."""
    try:
        return float(text)
    except ValueError:
        return text


def _numbers(metrics: dict[str, float]) -> dict[str, float]:
    """Without the machine's own metrics; MLflow stores an infinity as the largest number."""
    return {
        name: math.copysign(math.inf, value) if abs(value) > NEAR_INFINITY else value
        for name, value in metrics.items()
        if not name.startswith("system/")
    }
