"""Sweeps through the command line: an unharmed one, the same one harmed, and sampling alone."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from latentlm_platform.experiment.files import experiment_key, load_experiment
from latentlm_platform.sweeps.ledger import Ledger, Line

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[2]
METRIC = "frechet_efficientnet_lite0"
SIGMA = "codec.variance={kind: fixed, sigma: 1}"
SWEEP = """
extends: [{base}]
name: swept
codec: {{training: {{workers: 1}}}}
latents: {{actors: 1}}
train: {{workers: 1}}
evaluate: {{actors: 1, cfg_scales: [], exposure_bias_images: 0}}
sweep:
  max_concurrent: 2
  grid:
    codec.variance: [{{kind: fixed, sigma: 0.1}}, {{kind: fixed, sigma: 1}}]
    sample.cfg_scale: [1, 3]
  claims:
    - kind: reported
      says: sigma at CFG 1
      metric: frechet_efficientnet_lite0
      where: {{sample.cfg_scale: 1}}
"""


@pytest.fixture(scope="module")
def sweep_file(experiment_file: Path) -> Path:
    path = experiment_file.with_name("swept.yaml")
    path.write_text(SWEEP.format(base=experiment_file.name), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def unharmed(cli: Any, sweep_file: Path) -> dict[str, Any]:
    code, report = cli("sweep", str(sweep_file))
    assert code == 0, report
    return report


def table(report: dict[str, Any]) -> dict[str, float]:
    return {point["key"]: point["metrics"][METRIC] for point in report["points"]}


def runs_of(report: dict[str, Any]) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(report["tracking_uri"])
    experiment = client.get_run(report["run_id"]).info.experiment_id
    query = f"tags.`mlflow.parentRunId` = '{report['run_id']}'"
    return list(client.search_runs([experiment], query))


def mlflow_metrics(report: dict[str, Any]) -> dict[str, float]:
    from mlflow import MlflowClient

    metrics: dict[str, float] = (
        MlflowClient(report["tracking_uri"]).get_run(report["run_id"]).data.metrics
    )
    return metrics


def test_points_share_what_they_can(unharmed: dict[str, Any], home: Path, sweep_file: Path) -> None:
    assert unharmed["status"] == "FINISHED"
    assert len(table(unharmed)) == 4
    children = runs_of(unharmed)
    kinds = Counter(run.data.tags["latentlm.kind"] for run in children)
    assert kinds == {"codec": 2, "model": 2, "evaluation": 4}
    assert {run.info.status for run in children} == {"FINISHED"}
    for run in children:
        assert run.data.tags["latentlm.sweep"] == unharmed["key"]
        assert run.data.tags["latentlm.key"]
        assert "codec.variance.sigma" in json.loads(run.data.tags["latentlm.chosen"])
    points = [run for run in children if run.data.tags["latentlm.kind"] == "evaluation"]
    assert {run.data.tags["latentlm.key"] for run in points} == set(table(unharmed))
    assert {run.data.params["sample.cfg_scale"] for run in points} == {"1.0", "3.0"}
    assert unharmed["findings"]["claims"][0]["held"] == "reported"
    assert mlflow_metrics(unharmed)["bad_records"] == 30
    assert min(run.data.metrics["model_parameters"] for run in points) > 10_000


def test_a_finished_sweep_answers_at_once(
    cli: Any, unharmed: dict[str, Any], sweep_file: Path
) -> None:
    started = time.monotonic()
    code, again = cli("sweep", str(sweep_file), "--resume")
    assert (code, table(again)) == (0, table(unharmed))
    assert time.monotonic() - started < 60


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A home whose MLflow is a server, and its address."""
    elsewhere = tmp_path_factory.mktemp("harmed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "latentlm_platform.cli", "ui", "--port", str(port)]
    environment = os.environ | {"LATENTLM_HOME": str(elsewhere)}
    server = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert server.stdout is not None
    assert any("MLflow answers" in line for line in server.stdout)
    yield elsewhere, f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait(30)


def test_a_harmed_sweep_ends_with_the_same_table(
    sweep_file: Path, unharmed: dict[str, Any], served: tuple[Path, str]
) -> None:
    """A trial's process is killed, then the driver, then Tune's own files are emptied. MLflow is a
    server here, and a database in the sweep that it is compared with."""
    elsewhere, url = served
    environment = os.environ | {"LATENTLM_HOME": str(elsewhere)}
    ledger = Ledger(elsewhere / "runs" / unharmed["key"] / "ledger.jsonl")
    sweep = Sweep(sweep_file, environment, "--set", f"tracking.uri={url}")
    sweep.wait(lambda: bool(list(elsewhere.glob("artifacts/model/*/checkpoints/*"))))
    sweep.kill_trial()
    sweep.wait(lambda: "finished" in {line.event for line in ledger.read()})
    os.kill(sweep.driver.pid, signal.SIGKILL)
    sweep.driver.wait()
    for path in elsewhere.glob("runs/*/tune/**/*"):
        if path.name == "tuner.pkl" or path.name.startswith("experiment_state"):
            path.write_bytes(b"")
    before = ledger.read()
    command = [*sweep.command, "--resume", "--json", "-"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert (report["key"], report["tracking_uri"]) == (unharmed["key"], url)
    assert table(report) == pytest.approx(table(unharmed), rel=1e-4)
    assert reruns(ledger.read(), finished_before=before) == 0
    statuses = {run.info.status for run in runs_of(report)}
    assert "RUNNING" not in statuses
    assert "KILLED" in statuses


def reruns(lines: list[Line], *, finished_before: list[Line]) -> int:
    """Finished points that were begun again."""
    finished = {line.point for line in finished_before if line.event == "finished"}
    assert finished
    return sum(
        line.event == "started" and line.point in finished for line in lines[len(finished_before) :]
    )


class Sweep:
    """A sweep in a process of its own, to be harmed."""

    def __init__(self, file: Path, environment: dict[str, str], *arguments: str) -> None:
        command = (sys.executable, "-m", "latentlm_platform.cli", "sweep", str(file))
        self.command = [*command, *arguments]
        self.driver = subprocess.Popen(
            self.command, cwd=ROOT, env=environment, start_new_session=True
        )

    def wait(self, arrived: Any) -> None:
        deadline = time.monotonic() + 300
        while not arrived():
            assert time.monotonic() < deadline
            assert self.driver.poll() is None
            time.sleep(0.2)

    def kill_trial(self) -> None:
        """kill -9 of the actor in which Tune runs a trial."""
        for process in psutil.Process(self.driver.pid).children(recursive=True):
            if "ImplicitFunc" in " ".join(process.cmdline()):
                process.kill()
                return
        raise AssertionError("no trial runs")


@pytest.fixture(scope="module")
def based(cli: Any, unharmed: dict[str, Any], sweep_file: Path) -> Path:
    """The sweep's experiment without its sweep; with `SIGMA` it has been run."""
    base = sweep_file.with_name("based.yaml")
    base.write_text(sweep_file.read_text().partition("sweep:\n")[0].replace("swept", "based"))
    code, _ = cli("run", str(base), "--set", SIGMA)
    assert code == 0
    return base


def test_sampling_alone_trains_nothing_and_agrees_with_evaluate(
    cli: Any, home: Path, based: Path
) -> None:
    models = set((home / "artifacts" / "model").iterdir())
    grid = "sweep={max_concurrent: 2, grid: {sample.steps: [2, 3], sample.cfg_scale: [1, 2, 4]}}"
    sets = ["--set", SIGMA, "--set", grid]
    code, report = cli("sweep", str(based), *sets, "--model", "based")
    assert code == 0
    assert set((home / "artifacts" / "model").iterdir()) == models
    assert len(table(report)) == 6
    point = report["points"][-1]
    assert point["values"] == {"sample.steps": 3, "sample.cfg_scale": 4}
    override = ["--set", "sample.steps=3", "--set", "sample.cfg_scale=4"]
    code, alone = cli("evaluate", "based", *override)
    assert code == 0
    assert alone["metrics"][METRIC] == pytest.approx(point["metrics"][METRIC], rel=1e-3)
    key = experiment_key(load_experiment(based, overrides=[SIGMA, grid]))
    assert report["key"] == key


def test_optuna_draws_one_point_after_another(cli: Any, home: Path, based: Path) -> None:
    scale, steps = "{kind: uniform, low: 1, high: 4}", "{kind: integer, low: 2, high: 4}"
    space = f"sample.cfg_scale: {scale}, sample.steps: {steps}"
    search = f"sweep={{search: {{algorithm: optuna, samples: 3, space: {{{space}}}}}}}"
    code, report = cli("sweep", str(based), "--set", SIGMA, "--set", search, "--model", "based")
    assert (code, report["status"]) == (0, "FINISHED"), report
    drawn = [point["values"] for point in report["points"]]
    assert len({json.dumps(values) for values in drawn}) == 3
    assert all(1 <= values["sample.cfg_scale"] <= 4 for values in drawn)
    assert all(values["sample.steps"] in (2, 3, 4) for values in drawn)
    best = report["findings"]["best"]
    assert best["values"] in drawn
    assert Ledger(home / "runs" / report["key"] / "ledger.jsonl").draws() == 3


def test_a_training_that_falls_behind_is_stopped(cli: Any, home: Path, based: Path) -> None:
    stopper = "stopper: {kind: asha, grace_steps: 20, reduction: 2}"
    grid = f"sweep={{{stopper}, grid: {{train.optimizer.learning_rate: [2e-3, 1e-7]}}}}"
    code, report = cli("sweep", str(based), "--set", SIGMA, "--set", grid)
    assert (code, report["status"]) == (0, "FINISHED"), report
    ends = Ledger(home / "runs" / report["key"] / "ledger.jsonl").ends().values()
    events = {end.values["train.optimizer.learning_rate"]: end.event for end in ends}
    assert events == {2e-3: "finished", 1e-7: "stopped"}
    assert "RUNNING" not in {run.info.status for run in runs_of(report)}


def test_a_failing_point_does_not_sink_the_sweep(cli: Any, based: Path, home: Path) -> None:
    """A learning rate at which the loss is not finite fails alone, once, and is told."""
    grid = "sweep={max_concurrent: 2, grid: {train.optimizer.learning_rate: [2e-3, 1e30]}}"
    code, report = cli("sweep", str(based), "--set", SIGMA, "--set", grid)
    assert code == 4
    assert report["status"] == "FINISHED"
    (failed,) = report["failed"]
    assert failed["values"]["train.optimizer.learning_rate"] == 1e30
    assert "lower train.optimizer.learning_rate" in failed["error"]
    ledger = Ledger(home / "runs" / report["key"] / "ledger.jsonl")
    assert Counter(line.event for line in ledger.read()) == {
        "started": 2, "finished": 1, "failed": 1,
    }  # fmt: skip
