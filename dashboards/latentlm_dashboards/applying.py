"""Views into an MLflow experiment and never over what somebody changed there.

A second tag beside each saved view, `latentlm.view.<name>`, holds a fingerprint of what was written
last: a view that does not fit it was changed by somebody and stays as it is, one that is gone was
deleted in the browser and stays away until it is asked for by name.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from latentlm_dashboards.mlflow_version import require_saved_views
from latentlm_dashboards.runs import KIND, connect
from latentlm_dashboards.saved_views import (
    SHARED,
    content_of,
    saved_value,
    view_content,
    view_id,
    view_path,
)
from latentlm_dashboards.view import Field, View
from latentlm_dashboards.view_file import shipped_views
from latentlm_platform.errors import UserError

FINGERPRINT = "latentlm.view."
LEAST = "-1.7976931348623157e308"  # MLflow's search has no "exists" for metrics
Outcome = Literal["created", "unchanged", "updated", "kept", "deleted"]


@dataclass(frozen=True, slots=True)
class AppliedView:
    """What became of a view: somebody changed the `kept`, and deleted the `deleted`, which have no
    link. `note`: what to know of it."""

    name: str
    title: str
    outcome: Outcome
    link: str
    note: str = ""


def apply_views(
    uri: str,
    experiment_name: str,
    *,
    base_url: str,
    names: Iterable[str] = (),
    with_notes: bool = False,
) -> list[AppliedView]:
    """Save the shipped views in an experiment; repeating it changes nothing. Those that are named
    also come back where somebody deleted them. Links are below `base_url`, that of MLflow's pages.

    With notes, each view says which of its fields no run of the experiment has. UserError for an
    unknown view or experiment, and for an MLflow without saved views.
    """
    names = tuple(names)
    views = shipped_views(names)
    require_saved_views(uri)
    client = connect(uri)
    experiment = find_experiment(client, experiment_name, uri=uri)
    known = _Known(client, experiment.experiment_id)
    base = base_url.rstrip("/")
    applied = []
    for view in views:
        outcome = apply_view(view, client, experiment, restore=bool(names))
        link = base + view_path(view, experiment.experiment_id) if outcome != "deleted" else ""
        note = known.note(view) if with_notes and link else ""
        applied.append(AppliedView(view.name, view.title, outcome, link, note))
    return applied


def find_experiment(client: Any, name: str, *, uri: str) -> Any:
    """MLflow's experiment of that name; UserError that names those there are."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        known = ", ".join(repr(one.name) for one in client.search_experiments(max_results=10))
        raise UserError(f"there is no MLflow experiment {name!r} at {uri}; there are {known}")
    if experiment.lifecycle_stage == "deleted":
        raise UserError(f"the MLflow experiment {name!r} at {uri} was deleted; restore it there")
    return experiment


def tracked_experiments(uri: str) -> list[str]:
    """The experiments that hold a run of ours, by name, the one that changed last first."""
    client = connect(uri)
    experiments = client.search_experiments(order_by=["last_update_time DESC"])
    ours = f"tags.`{KIND}` LIKE '%'"
    return [
        one.name
        for one in experiments
        if client.search_runs([one.experiment_id], ours, max_results=1)
    ]


def apply_view(view: View, client: Any, experiment: Any, *, restore: bool = False) -> Outcome:
    """Save one view unless somebody changed it, or deleted it and it is not to be restored.

    `experiment` is as MLflow gave it just now.
    """
    tag, mark = SHARED + view_id(view), FINGERPRINT + view.name
    saved = experiment.tags.get(tag)
    if content_of(saved) == view_content(view):
        if experiment.tags.get(mark) != fingerprint(saved):  # an apply that was interrupted
            client.set_experiment_tag(experiment.experiment_id, mark, fingerprint(saved))
        return "unchanged"
    if saved is not None and not is_ours(view, experiment.tags):
        return "kept"
    if saved is None and mark in experiment.tags and not restore:
        return "deleted"
    value = saved_value(view)
    client.set_experiment_tag(experiment.experiment_id, tag, value)
    client.set_experiment_tag(experiment.experiment_id, mark, fingerprint(value))
    return "updated" if saved else "created"


def is_ours(view: View, tags: dict[str, str]) -> bool:
    """Whether the saved view is as it was written from here, be it by an older version."""
    return tags.get(FINGERPRINT + view.name) == fingerprint(tags.get(SHARED + view_id(view)))


def fingerprint(value: str | None) -> str:
    """What tells one saved view from another."""
    return hashlib.sha256((value or "").encode()).hexdigest()


class _Known:
    """What the runs of an experiment have, asked once for each field."""

    def __init__(self, client: Any, experiment_id: str) -> None:
        self.client, self.experiment_id = client, experiment_id
        self.found: dict[str, bool] = {}

    def note(self, view: View) -> str:
        """A sentence where the view shows less than it could; else ""."""
        if not self.has(""):
            return "the experiment has no runs yet"
        absent = [field for field in view.fields() if not self.has(_query(field))]
        if view.awaits and absent:
            return f"made for runs of the {view.awaits} track; there are none with its scores yet"
        if not absent:
            return ""
        names = ", ".join(map(str, absent))
        first = min(view.lines.get(field, 1) for field in absent)
        return (
            f"{view.file}:{first}: no run of this experiment has {names} yet; applied all the same"
        )

    def has(self, query: str) -> bool:
        if query not in self.found:
            runs = self.client.search_runs([self.experiment_id], query, max_results=1)
            self.found[query] = bool(runs)
        return self.found[query]


def _query(field: Field) -> str:
    wanted = f">= {LEAST}" if field.group == "metrics" else "LIKE '%'"
    return f"{field.group}.`{field.name}` {wanted}"
