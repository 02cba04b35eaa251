"""`latentlm dashboards` as a person and a program use it."""

import json
import subprocess
import sys
import webbrowser
from pathlib import Path
from typing import Any

import pytest

from latentlm_dashboards import view_names
from latentlm_dashboards.runs import connect
from latentlm_dashboards.saved_views import SHARED, view_id
from latentlm_dashboards.view_file import shipped_view
from latentlm_platform import cli


@pytest.fixture
def store(uri: str, request: pytest.FixtureRequest) -> list[str]:
    """Arguments that name an empty experiment of its own."""
    name = request.node.name
    connect(uri).create_experiment(name)
    return ["--uri", uri, "--experiment", name]


def run(*arguments: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """(exit code, report, standard output, standard error)."""
    path = tmp_path / "report.json"
    code = cli.main(["dashboards", *arguments, "--json", str(path)])
    printed = capsys.readouterr()
    return code, json.loads(path.read_text()), printed.out, printed.err


def test_list_needs_neither_a_server_nor_mlflow() -> None:
    code = (
        "import sys; sys.modules['mlflow'] = None\n"
        "from latentlm_platform.cli import main\n"
        "sys.exit(main(['dashboards', 'list', '--json', '-']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    entries = json.loads(done.stdout)
    assert [entry["name"] for entry in entries] == view_names()
    (figure_6,) = [entry for entry in entries if entry["name"] == "tokenizer_variance"]
    assert figure_6["reproduces"] == ["Figure 6"]
    assert set(figure_6["kinds"]) == {"parallel", "scatter", "images"}
    assert Path(figure_6["file"]).is_file()
    assert "Which CFG scale is best?" in done.stderr


def test_apply_twice_then_a_change_then_diff(
    store: list[str], uri: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    how: dict[str, Any] = {"capsys": capsys, "tmp_path": tmp_path}
    code, report, _, _ = run("diff", *store, **how)
    assert (code, {view["standing"] for view in report}) == (1, {"absent"})
    code, report, printed, said = run("apply", *store, **how)
    assert (code, {view["outcome"] for view in report}) == (0, {"created"})
    assert "created   cfg_scale: http://127.0.0.1:5000/#/experiments/" in printed
    assert "the experiment has no runs yet" in said
    code, report, _, _ = run("apply", "cfg_scale", *store, **how)
    assert [(view["name"], view["outcome"]) for view in report] == [("cfg_scale", "unchanged")]
    assert run("diff", *store, **how)[0] == 0
    client, tag = connect(uri), SHARED + view_id(shipped_view("cfg_scale"))
    experiment = client.get_experiment_by_name(store[-1])
    mine = json.dumps({**json.loads(experiment.tags[tag]), "name": "mine"})
    client.set_experiment_tag(experiment.experiment_id, tag, mine)
    code, report, printed, _ = run("apply", *store, **how)
    assert "somebody changed it; see `latentlm dashboards diff`" in printed
    code, report, printed, _ = run("diff", *store, **how)
    assert code == 1
    assert "cfg_scale: changed by somebody, and left so" in printed
    assert "  name: mine in MLflow, Which CFG scale is best? here" in printed


def test_open_prints_the_link_and_opens_it_where_pages_answer(
    store: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    how: dict[str, Any] = {"capsys": capsys, "tmp_path": tmp_path}
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    dead = ["--pages", "http://127.0.0.1:9"]
    code, report, printed, _ = run("open", "cfg_scale", "--print", *store, *dead, **how)
    assert (code, opened) == (0, [])
    assert printed.strip() == report["link"]
    code, _, _, said = run("open", "cfg_scale", *store, *dead, **how)
    assert (code, opened) == (2, [])
    assert "do not answer at http://127.0.0.1:9; start them with `latentlm ui`" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["open"], "takes the name of a view"),
        (["report", "a", "b"], "2 names were given"),
        (["apply", "cfg_scal"], "did you mean cfg_scale?"),
        (["apply", "--experiment", "no such 'one'"], "there are "),
        (["list", "--print"], "--print belongs to `latentlm dashboards open`"),
        (["diff", "--output", "x"], "--output belongs to `latentlm dashboards report`"),
        (["apply", "--uri", "http://127.0.0.1:9"], "does not answer"),
    ],
)
def test_bad_input_is_one_sentence(
    uri: str,
    arguments: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    given = arguments if "--uri" in arguments else [*arguments, "--uri", uri]
    code, report, _, said = run(*given, capsys=capsys, tmp_path=tmp_path)
    assert code == 2
    assert sentence in said
    assert len(said.strip().splitlines()) == 1
    assert report["error"] in said


def test_without_a_store_it_says_how_to_get_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTLM_HOME", str(tmp_path / "home"))
    code, _, _, said = run("apply", capsys=capsys, tmp_path=tmp_path)
    assert (code, "no runs in" in said) == (2, True)


def test_the_report_is_written_also_where_mlflow_is_too_old_for_views(
    uri: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mlflow

    monkeypatch.setattr(mlflow, "__version__", "3.12.0")
    how: dict[str, Any] = {"capsys": capsys, "tmp_path": tmp_path}
    code, _, _, said = run("apply", "--uri", uri, **how)
    assert (code, "latentlm dashboards report RUN" in said) == (2, True)
    path = tmp_path / "small.html"
    code, report, _, _ = run("report", "small", "--uri", uri, "--output", str(path), **how)
    assert code == 0
    assert path.stat().st_size == report["bytes"] > 0


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("quickstart.yaml", ["cfg_scale", "training_health"]),
        (
            "image/sweeps/sigma_cfg.yaml",
            [
                *("tokenizer_variance", "tokenizer_variance_dit", "tokenizer_variance_latentlm"),
                *("cfg_scale", "training_health"),
            ],
        ),
    ],
)
def test_a_run_puts_the_views_in_and_links_those_that_fit(
    file: str,
    names: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from latentlm_platform.commands.results import mlflow_links
    from latentlm_platform.experiment.files import load_experiment
    from latentlm_platform.pipeline import Request
    from latentlm_platform.tracking.client import open_tracker
    from making_tracked_runs import EXPERIMENTS

    monkeypatch.setenv("LATENTLM_HOME", str(tmp_path))
    experiment = load_experiment(str(EXPERIMENTS / file), overrides=[])
    request = Request(experiment, source=file, overrides=())
    open_tracker(experiment.tracking)
    links = mlflow_links(request, None)  # type: ignore[arg-type]
    assert list(links) == names
    tags = connect(f"sqlite:///{tmp_path}/mlflow.db").get_experiment_by_name("latentlm").tags
    assert sum(tag.startswith(SHARED) for tag in tags) == len(view_names())
