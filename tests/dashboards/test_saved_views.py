"""Saved views in a real store: written once, found again, never over what somebody changed."""

import base64
import http.server
import json
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from latentlm_dashboards import apply_views, diff_views, tracked_experiments, view_names
from latentlm_dashboards.applying import FINGERPRINT, apply_view
from latentlm_dashboards.saved_views import SHARED, state_of, view_id, view_path, view_state
from latentlm_dashboards.view import Chart, Field, View
from latentlm_dashboards.view_difference import diff_view
from latentlm_dashboards.view_file import shipped_view, shipped_views
from latentlm_platform.errors import UserError
from making_tracked_runs import FRECHET

VIEW = shipped_view("cfg_scale")


class Place:
    """An experiment of its own."""

    def __init__(self, client: Any, name: str) -> None:
        self.client, self.name = client, name
        self.id: str = client.create_experiment(name)

    def tags(self) -> dict[str, str]:
        return dict(self.client.get_experiment(self.id).tags)

    def saved(self) -> dict[str, str]:
        return {key: value for key, value in self.tags().items() if key.startswith(SHARED)}

    def apply(self, view: View = VIEW, **how: Any) -> str:
        return apply_view(view, self.client, self.client.get_experiment(self.id), **how)

    def change(self, view: View = VIEW, **fields: Any) -> None:
        """As the browser would: the same view with another state."""
        tag = SHARED + view_id(view)
        state = state_of(self.tags()[tag]) | fields
        value = json.dumps({"name": view.title, "state": json.dumps(state), "createdAt": 7})
        self.client.set_experiment_tag(self.id, tag, value)


@pytest.fixture
def place(client: Any, request: pytest.FixtureRequest) -> Place:
    return Place(client, request.node.name)


def test_a_view_of_another_program_is_passed_over(place: Place, uri: str) -> None:
    place.apply()
    for state in ("null", "[]", "no JSON"):
        odd = json.dumps({"name": "odd", "state": state})
        place.client.set_experiment_tag(place.id, f"{SHARED}of-another-program", odd)
        found = diff_views(uri, place.name, names=[VIEW.name])
        assert [one.standing for one in found] == ["same"]


def test_the_link_names_the_saved_view(place: Place) -> None:
    assert place.apply() == "created"
    ((key, value),) = place.saved().items()
    shared = f"viewStateShareKey={key.removeprefix(SHARED)}&compareRunsMode=CHART"
    assert view_path(VIEW, place.id) == f"/#/experiments/{place.id}/runs?{shared}"
    assert json.loads(value)["name"] == "Which CFG scale is best?"
    state = state_of(value)
    charts = state["compareRunCharts"]
    assert [chart["type"] for chart in charts] == [
        *("SCATTER", "IMAGE", "SCATTER", "BAR", "BAR", "PARALLEL")
    ]
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in charts} <= sections
    assert len({chart["uuid"] for chart in charts}) == len(charts)
    assert state["autoRefreshEnabled"] is True


def test_saving_again_changes_nothing_and_a_new_version_replaces(place: Place) -> None:
    place.apply()
    before = place.tags()
    assert place.apply() == "unchanged"
    assert place.tags() == before
    newer = replace(VIEW, title="A new title")
    assert diff_view(newer, place.tags()).standing == "older"
    assert place.apply(newer) == "updated"
    (value,) = place.saved().values()
    assert json.loads(value)["name"] == "A new title"


def test_a_chart_keeps_its_id_when_others_come_and_go() -> None:
    charts = dict(zip(VIEW.charts, _charts(VIEW), strict=True))
    fewer = replace(VIEW, charts=VIEW.charts[2:])
    assert _charts(fewer) == [charts[chart] for chart in fewer.charts]


def _charts(view: View) -> list[dict[str, Any]]:
    charts: list[dict[str, Any]] = view_state(view)["compareRunCharts"]
    return charts


def test_what_somebody_changed_stays_and_is_said_in_words(place: Place) -> None:
    place.apply()
    charts = _charts(VIEW)
    charts[0] |= {"yaxis": {"key": "loss", "type": "METRIC"}}
    charts[2]["deleted"] = True
    generated = {"type": "BAR", "metricKey": "x", "isGenerated": True, "uuid": "g"}
    added = {"type": "LINE", "metricKey": "loss", "scaleType": "log", "uuid": "u"}
    columns = ["params.`cfg_scale`", "metrics.`loss`"]
    place.change(
        compareRunCharts=[*charts, generated, added],
        selectedColumns=columns,
        searchFilter="metrics.loss < 1",
        orderByAsc=True,
    )
    before = place.tags()
    assert place.apply(replace(VIEW, title="A new title")) == "kept"
    assert place.apply(restore=True) == "kept"
    assert place.tags() == before
    difference = diff_view(VIEW, place.tags())
    assert difference.standing == "changed"
    accuracy = "metrics.generated_accuracy"
    assert [words for words in difference.words if "column removed" not in words] == [
        f"runs: metrics.loss < 1 in MLflow, {VIEW.runs} here",
        f"order: {accuracy}, smallest first in MLflow, {accuracy}, largest first here",
        "column added in MLflow: metrics.loss",
        "chart changed in MLflow: scatter of cfg_scale, generated_accuracy is now scatter of"
        " cfg_scale, loss",
        f"chart removed in MLflow: scatter of cfg_scale, {FRECHET}",
        "chart added in MLflow: line of loss on a logarithmic scale",
    ]
    assert sum("column removed in MLflow" in words for words in difference.words) == 6


def test_a_layout_that_was_changed_is_a_difference_too(place: Place) -> None:
    place.apply()
    assert diff_view(VIEW, place.tags()).standing == "same"
    place.change(hideEmptyCharts=False)
    assert diff_view(VIEW, place.tags()).words == ("how it is laid out",)


def test_an_apply_that_was_cut_off_is_no_change_of_somebody(place: Place) -> None:
    place.apply()
    place.client.set_experiment_tag(place.id, FINGERPRINT + VIEW.name, "of an older version")
    assert place.apply() == "unchanged"
    assert place.apply(replace(VIEW, title="A new title")) == "updated"


def test_a_deleted_view_stays_away_until_it_is_named(place: Place) -> None:
    place.apply()
    (tag,) = place.saved()
    place.client.delete_experiment_tag(place.id, tag)
    assert place.apply() == "deleted"
    assert diff_view(VIEW, place.tags()).standing == "deleted"
    assert place.apply(restore=True) == "created"


def test_a_tag_that_is_no_view_is_left_and_said(place: Place) -> None:
    for value in ("", "{", "[]", '{"name": "x", "state": "deflate;zzz"}', '{"state": "{"}'):
        place.client.set_experiment_tag(place.id, SHARED + view_id(VIEW), value)
        assert place.apply() == "kept"
        assert diff_view(VIEW, place.tags()).standing == "changed"


def test_a_view_too_large_for_a_tag_is_refused(place: Place) -> None:
    names = [base64.b85encode(zlib.compress(str(i).encode())).decode() for i in range(400)]
    charts = tuple(Chart("bar", (Field("metrics", name),)) for name in names)
    with pytest.raises(ValueError, match="fewer charts"):
        place.apply(replace(VIEW, charts=charts))
    assert place.saved() == {}


def test_names_with_quotes_and_of_any_script(place: Place) -> None:
    odd = Field("params", 'l\'été "σ" 中 😀')
    view = replace(VIEW, title="«Größer» 'als' \"σ\"?", columns=(odd,))
    place.apply(view)
    (value,) = place.saved().values()
    assert json.loads(value)["name"] == view.title
    assert state_of(value)["selectedColumns"] == [f"params.`{odd.name}`"]
    assert diff_view(view, place.tags()).standing == "same"


def test_every_shipped_view_finds_the_runs_it_is_about(uri: str, client: Any) -> None:
    applied = apply_views(uri, "latentlm", base_url="http://host:1/")
    assert [view.name for view in applied] == view_names()
    experiment = client.get_experiment_by_name("latentlm")
    kinds = {}
    for view in shipped_views():
        state = state_of(experiment.tags[SHARED + view_id(view)])
        runs = client.search_runs([experiment.experiment_id], state["searchFilter"])
        kinds[view.name] = sorted({run.data.tags["latentlm.kind"] for run in runs})
    assert all(view.link.startswith("http://host:1/#/experiments/") for view in applied)
    assert kinds["cfg_scale"] == ["evaluation"]
    assert kinds["training_health"] == ["codec", "model"]
    assert kinds["cost_throughput"] == ["codec", "model", "run"]
    assert kinds["data_bad_records"] == ["run"]
    assert kinds["codec_health"] == ["codec"]
    assert kinds["speech_synthesis"] == []


def test_notes_say_what_no_run_has(uri: str, client: Any) -> None:
    how: dict[str, Any] = {"base_url": "http://h", "with_notes": True}
    notes = {view.name: view.note for view in apply_views(uri, "latentlm", **how)}
    place, _, sentence = notes["cfg_scale"].partition(": ")
    assert place.endswith("views/cfg_scale.yaml:9")
    assert sentence.startswith("no run of this experiment has params.solver_steps, metrics.")
    assert "params.cfg_scale," not in sentence
    assert "speech track" in notes["speech_codecs"]
    client.create_experiment("nothing in it")
    empty = apply_views(uri, "nothing in it", **how)
    assert {view.note for view in empty} == {"the experiment has no runs yet"}
    assert {view.outcome for view in empty} == {"created"}


def test_unknown_names_are_said(uri: str, client: Any) -> None:
    with pytest.raises(UserError, match="no view is called 'nope'"):
        apply_views(uri, "latentlm", names=["nope"], base_url="http://h")
    with pytest.raises(UserError, match=r"no MLflow experiment 'nope' .* there are '"):
        apply_views(uri, "nope", base_url="http://h")
    gone = client.create_experiment("gone")
    client.delete_experiment(gone)
    with pytest.raises(UserError, match=r"'gone' .* was deleted"):
        diff_views(uri, "gone")
    assert tracked_experiments(uri) == ["latentlm"]


@pytest.fixture
def server_of() -> Iterator[Any]:
    """A server that reports a version, and fails at all else."""
    servers = []

    def start(version: str) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200 if self.path == "/version" else 500)
                self.end_headers()
                self.wfile.write(version.encode())

            def log_message(self, *_: object) -> None:
                """Quiet."""

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()


@pytest.mark.parametrize("version", ["3.14.2", "2.22.0", "3.9"])
def test_an_older_mlflow_has_no_views_and_names_the_report(server_of: Any, version: str) -> None:
    uri = server_of(version)
    for ask in (
        lambda: apply_views(uri, "latentlm", base_url=uri),
        lambda: diff_views(uri, "latentlm"),
    ):
        with pytest.raises(UserError, match=f"is {version}, .* 3.15 .*dashboards report RUN"):
            ask()


def test_the_package_counts_where_the_store_is_a_database(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setattr(mlflow, "__version__", "3.12.0")
    with pytest.raises(UserError, match=r"is 3\.12\.0"):
        apply_views(uri, "latentlm", base_url="http://h")
