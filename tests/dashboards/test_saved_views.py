"""Saved views in a real store: written once, found again, never over what somebody changed."""

import base64
import json
import zlib
from dataclasses import replace
from typing import Any

import pytest

from latentlm_dashboards import apply_views, view_names
from latentlm_dashboards.saved_views import SHARED, apply
from latentlm_dashboards.view import Chart, Field, shipped_view


@pytest.fixture
def experiment(client: Any, request: pytest.FixtureRequest) -> str:
    made: str = client.create_experiment(request.node.name)
    return made


def saved(client: Any, experiment: str) -> dict[str, str]:
    tags = client.get_experiment(experiment).tags
    return {key: value for key, value in tags.items() if key.startswith(SHARED)}


def state_of(value: str) -> dict[str, Any]:
    packed = json.loads(value)["state"].removeprefix("deflate;")
    state: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return state


def test_the_link_names_the_saved_view(client: Any, experiment: str) -> None:
    link = apply(shipped_view("cfg_scale"), client, experiment)
    ((key, value),) = saved(client, experiment).items()
    view_id = key.removeprefix(SHARED)
    assert link == (
        f"/#/experiments/{experiment}/runs?viewStateShareKey={view_id}&compareRunsMode=CHART"
    )
    assert json.loads(value)["name"] == "Which CFG scale is best?"
    charts = state_of(value)["compareRunCharts"]
    kinds = [chart["type"] for chart in charts]
    assert kinds == ["SCATTER", "SCATTER", "BAR", "BAR", "PARALLEL"]
    sections = {section["uuid"] for section in state_of(value)["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in charts} <= sections
    assert len({chart["uuid"] for chart in charts}) == len(charts)


def test_saving_again_changes_nothing_and_a_new_version_replaces(
    client: Any, experiment: str
) -> None:
    view = shipped_view("cfg_scale")
    link = apply(view, client, experiment)
    before = client.get_experiment(experiment).tags
    assert apply(view, client, experiment) == link
    assert client.get_experiment(experiment).tags == before
    assert apply(replace(view, title="A new title"), client, experiment) == link
    (value,) = saved(client, experiment).values()
    assert json.loads(value)["name"] == "A new title"


def test_what_somebody_changed_stays(client: Any, experiment: str) -> None:
    view = shipped_view("cfg_scale")
    apply(view, client, experiment)
    ((key, value),) = saved(client, experiment).items()
    changed = json.dumps({**json.loads(value), "name": "mine"})
    client.set_experiment_tag(experiment, key, changed)
    apply(replace(view, title="A new title"), client, experiment)
    assert saved(client, experiment) == {key: changed}


def test_a_view_too_large_for_a_tag_is_refused(client: Any, experiment: str) -> None:
    view = shipped_view("cfg_scale")
    names = [base64.b85encode(zlib.compress(str(i).encode())).decode() for i in range(400)]
    charts = tuple(Chart("bar", (Field("metrics", name),)) for name in names)
    with pytest.raises(ValueError, match="fewer charts"):
        apply(replace(view, charts=charts), client, experiment)
    assert saved(client, experiment) == {}


def test_every_shipped_view_finds_the_runs_it_is_about(uri: str, client: Any) -> None:
    links = apply_views(uri, "latentlm", names=view_names(), base_url="http://host:1/")
    assert set(links) == set(view_names())
    experiment = client.get_experiment_by_name("latentlm")
    kinds = {}
    for name in view_names():
        state = state_of(
            client.get_experiment(experiment.experiment_id).tags[
                SHARED + links[name].partition("ShareKey=")[2].partition("&")[0]
            ]
        )
        runs = client.search_runs([experiment.experiment_id], state["searchFilter"])
        kinds[name] = sorted(run.data.tags["latentlm.kind"] for run in runs)
        assert links[name].startswith("http://host:1/#/experiments/")
    assert kinds["cfg_scale"] == ["evaluation"] * 8
    assert kinds["training_health"] == ["codec"] * 2 + ["model"] * 2


def test_unknown_names_are_said(uri: str) -> None:
    with pytest.raises(LookupError, match="no view"):
        apply_views(uri, "latentlm", names=["nope"], base_url="http://h")
    with pytest.raises(LookupError, match="no MLflow experiment"):
        apply_views(uri, "nope", names=["cfg_scale"], base_url="http://h")
