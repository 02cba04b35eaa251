"""The image track from raw files to compared results, through the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from latentlm_platform.tracking.journal import Journal

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def finished(cli: Any, experiment_file: Path) -> dict[str, Any]:
    """The unharmed run."""
    code, report = cli("run", str(experiment_file))
    assert code == 0, report
    return report


def mlflow_runs(report: dict[str, Any]) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(report["tracking_uri"])
    experiment = client.get_run(report["run_id"]).info.experiment_id
    return {run.info.run_id: run for run in client.search_runs([experiment])}


def journal_of(home: Path, stage: str) -> Journal:
    newest = max(
        (home / "artifacts" / stage).glob("*/journal.jsonl"), key=lambda p: p.stat().st_mtime
    )
    return Journal(newest)


def test_a_run_with_damaged_images_ends_well_and_counts_them(finished: dict[str, Any]) -> None:
    metrics = finished["metrics"]
    assert finished["status"] == "FINISHED"
    assert metrics["bad_records"] == 30
    assert metrics["bad_records_truncated_image"] == 15
    assert metrics["bad_records_not_an_image"] == 15
    for name in (
        "generated_accuracy",
        "real_accuracy",
        "frechet_efficientnet_lite0",
        "frechet_efficientnet_lite0_floor",
        "reconstruction_psnr",
    ):
        assert isinstance(metrics[name], float), name
    assert metrics["generated_accuracy_low"] <= metrics["generated_accuracy"]


def test_mlflow_holds_parent_children_and_lineage(finished: dict[str, Any]) -> None:
    runs = mlflow_runs(finished)
    parent = runs[finished["run_id"]]
    children = [
        r for r in runs.values() if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    ]
    kinds = sorted(r.data.tags["latentlm.kind"] for r in children)
    assert kinds == ["codec", "evaluation", "evaluation", "model"]
    assert {r.info.status for r in runs.values()} == {"FINISHED"}
    assert {r.data.params["cfg_scale"] for r in children if "cfg_scale" in r.data.params} == {
        "1.0",
        "3.0",
    }
    assert parent.inputs.dataset_inputs[0].dataset.name
    assert parent.data.tags["latentlm.model"]
    assert "bad_records.json" in parent.data.tags["mlflow.loggedArtifacts"]


def test_the_same_command_answers_at_once(
    cli: Any, experiment_file: Path, finished: dict[str, Any]
) -> None:
    started = time.monotonic()
    code, again = cli("run", str(experiment_file))
    assert code == 0
    assert again["run_id"] == finished["run_id"]
    assert again["metrics"] == finished["metrics"]
    assert time.monotonic() - started < 60


def test_a_finished_run_can_be_sampled_listed_and_compared(
    cli: Any, finished: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "s.png"
    asked = ("--class", "1,07", "--count", "3")
    code, sampled = cli("sample", "small", *asked, "--out", str(out))
    assert (code, sampled["images"], out.exists()) == (0, 6, True)
    assert sampled["classes"] == [1, 7]  # by number, and by the name of its folder
    code, runs = cli("list")
    assert code == 0
    assert finished["key"] in [run["key"] for run in runs]
    code, status = cli("status", finished["key"])
    assert (code, status["status"]) == (0, "FINISHED")
    code, error = cli("sample", "small", "--class", "11")
    assert code == 2
    assert "--class 11 is not a class" in error["error"]


def test_another_sampler_trains_nothing(cli: Any, home: Path, finished: dict[str, Any]) -> None:
    models = set((home / "artifacts" / "model").iterdir())
    code, report = cli("evaluate", finished["key"], "--set", "sample.steps=3")
    assert code == 0
    assert report["key"] != finished["key"]
    assert set((home / "artifacts" / "model").iterdir()) == models
    code, compared = cli("compare", finished["key"], report["key"])
    assert code == 0
    assert compared["parameters"]["sample.steps"] == ["2", "3"]


def test_a_killed_driver_leaves_nothing_running_and_can_be_resumed(
    cli: Any, home: Path, experiment_file: Path, finished: dict[str, Any]
) -> None:
    golden = last_loss(home)
    command = [sys.executable, "-m", "latentlm_platform.cli", "run", str(experiment_file), "--new"]
    driver = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 300
    while not (passed(home, "model", 12) and newest_run(home)["key"] != finished["key"]):
        assert time.monotonic() < deadline
        assert driver.poll() is None
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    key = newest_run(home)["key"]
    code, status = cli("status", key)
    assert (code, status["status"]) == (0, "KILLED")
    statuses = {run.info.status for run in mlflow_runs(finished).values()}
    assert "RUNNING" not in statuses
    assert "KILLED" in statuses
    code, report = cli("resume", key)
    assert (code, report["status"]) == (0, "FINISHED"), report
    assert last_loss(home) == pytest.approx(golden, rel=1e-6)
    lines = journal_of(home, "model").path.read_text().splitlines()
    assert max(json.loads(line).get("truncated_after", 0) for line in lines) >= 10


def newest_run(home: Path) -> dict[str, Any]:
    path = max((home / "runs").glob("*/run.json"), key=lambda p: p.stat().st_mtime)
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def passed(home: Path, stage: str, step: int) -> bool:
    entries, _ = journal_of(home, stage).read_from(0)
    return bool(entries) and step <= entries[-1].step < 39


def last_loss(home: Path) -> float:
    entries, _ = journal_of(home, "model").read_from(0)
    return [e.metrics["loss"] for e in entries if "loss" in e.metrics][-1]


def test_stopping_saves_a_checkpoint_and_reads_killed(
    cli: Any, home: Path, experiment_file: Path, finished: dict[str, Any]
) -> None:
    override = ["--set", "train.steps=4000"]  # `stop` takes seconds to start
    command = [sys.executable, "-m", "latentlm_platform.cli", "run", str(experiment_file)]
    driver = subprocess.Popen([*command, *override], cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 200
    while newest_run(home)["stage"] != "model" or not passed(home, "model", 3):
        assert time.monotonic() < deadline
        assert driver.poll() is None
        time.sleep(0.2)
    code, stopped = cli("stop", newest_run(home)["key"])  # SIGTERM; Ctrl-C takes the same way
    assert (code, stopped["status"]) == (0, "KILLED")
    assert driver.wait(timeout=30) == 130
    record = newest_run(home)
    assert record["status"] == "KILLED"
    folder = journal_of(home, "model").path.parent
    assert list((folder / "checkpoints").glob("step-*/MANIFEST.json"))
    assert "RUNNING" not in {run.info.status for run in mlflow_runs(finished).values()}


def test_too_many_bad_records_end_the_run(
    cli: Any, experiment_file: Path, finished: dict[str, Any]
) -> None:
    code, report = cli("run", str(experiment_file), "--set", "corpus.max_bad_fraction=0.01")
    assert code == 1
    assert report["status"] == "FAILED"
    assert "more than corpus.max_bad_fraction = 0.01" in report["error"]
    refused = mlflow_runs(finished)[report["run_id"]]
    assert refused.data.metrics["bad_records"] == 30
    assert "bad_records.json" in refused.data.tags["mlflow.loggedArtifacts"]


@pytest.mark.parametrize(
    ("override", "sentence", "expected"),
    [
        ("corpus.source=/nowhere/at/all", "/nowhere/at/all", 2),
        ("corpus.classes=4", "classes", 2),
        ("train.workers=64", "CPUs", 3),
        ("model.initial_weights=/nowhere", "initial_weights", 2),
    ],
)
def test_bad_input_is_one_sentence(
    cli: Any, experiment_file: Path, override: str, sentence: str, expected: int
) -> None:
    large = ("corpus.lanes=64", "train.batch_size=64", "codec.training.batch_size=64")
    settings = (*large, "train.validation_items=64") if "workers" in override else ()
    extra = [word for setting in settings for word in ("--set", setting)]
    code, report = cli("run", str(experiment_file), "--set", override, *extra)
    assert code == expected
    assert report["status"] == "FAILED"
    assert sentence in report["error"]
    assert "\n" not in report["error"]
