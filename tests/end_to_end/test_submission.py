"""Sweeps and experiments on a cluster that is there: a real head node, Ray Jobs, other shells.

One submitted sweep lives through everything: its driver is killed, it is submitted again, stopped,
resumed, and must come out as the same YAML does in one piece on this machine.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from latentlm_platform.tracking.journal import Journal

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[2]
SMALLER = {  # for the experiment of conftest.py
    "  steps: 40\n": "  steps: 300\n",
    "validate_every_steps: 20": "validate_every_steps: 150",
    "checkpoint: {every_steps: 10}": "checkpoint: {every_steps: 50}",
    "images: 20, cfg_scales: [1, 3]": "images: 8, exposure_bias_images: 0",
    "feature_size: 64, classifier_items: 500": "feature_size: 32, classifier_items: 100",
    "name: small": "name: single",
}
SWEEP = """
codec: {training: {workers: 1}}
latents: {actors: 1}
train: {workers: 1}
evaluate: {actors: 1}
sweep: {max_concurrent: 2, grid: {train.seed: [0, 1]}}
"""


class Shell(NamedTuple):
    """A shell with its own LATENTLM_HOME."""

    home: Path

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "latentlm_platform.cli", *arguments]
        environment = {**os.environ, "LATENTLM_HOME": str(self.home)}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True
        )

    def __call__(self, *arguments: str) -> tuple[int, Any]:
        process = self.start(*arguments, "--json", "-")
        out, err = process.communicate(timeout=900)
        print(err[-4000:])
        return process.returncode, json.loads(out)

    def record(self, key: str) -> dict[str, Any]:
        """What this home knows of a run; empty before it has begun."""
        path = self.home / "runs" / key / "run.json"
        found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
        return found

    def losses(self, stage: str) -> dict[str, dict[int, float]]:
        """Artifact's key → loss by step, of every training of this home that has begun."""
        found = {}
        for path in self.journals(stage):
            entries, _ = Journal(path).read_from(0)
            losses = {e.step: e.metrics["loss"] for e in entries if "loss" in e.metrics}
            found |= {path.parent.name: losses} if losses else {}
        return found

    def journals(self, stage: str) -> list[Path]:
        return list((self.home / "artifacts" / stage).glob("*/journal.jsonl"))

    def freeze_models(self, count: int) -> list[psutil.Process]:
        """The workers of so many models, each stopped where it stands after a checkpoint."""
        frozen: dict[str, psutil.Process] = {}

        def freeze() -> bool:
            for manifest in self.home.glob("artifacts/model/*/checkpoints/step-*/MANIFEST.json"):
                folder = manifest.parents[2]
                if folder.name not in frozen:
                    frozen[folder.name] = psutil.Process(int((folder / "worker-0.pid").read_text()))
                    frozen[folder.name].suspend()
            return len(frozen) == count

        wait_for(freeze)
        return list(frozen.values())


def wait_for(what: Any, *, timeout_s: float = 900) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def single(experiment_file: Path) -> Path:
    """The experiment of these tests, without a sweep."""
    text = experiment_file.read_text(encoding="utf-8")
    for old, new in SMALLER.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = experiment_file.with_name("single.yaml")
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def file(single: Path) -> Path:
    """Two seeds of it as a sweep."""
    path = single.with_name("sent.yaml")
    path.write_text(f"extends: [{single.name}]\nname: sent\n{SWEEP}", encoding="utf-8")
    return path


class Up(NamedTuple):
    shell: Shell
    address: str
    pid: int

    def tree(self) -> list[psutil.Process]:
        first = psutil.Process(self.pid)
        return [first, *first.children(recursive=True)]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    shell = Shell(tmp_path_factory.mktemp("cluster"))
    code, report = shell("cluster", "up", "--cpus", "6")
    assert (code, report["started"]) == (0, True), report
    head = json.loads((shell.home / "cluster" / "head.json").read_text())
    yield Up(shell, report["address"], head["pid"])
    shell("cluster", "down")


@pytest.fixture(scope="module")
def killed(up: Up, file: Path) -> dict[str, Any]:
    """The first attempt: followed from another shell while its driver is killed."""
    code, sent = up.shell("submit", str(file))
    assert (code, sent["sent"], sent["address"]) == (0, True, up.address), sent
    follower = up.shell.start("logs", "-f", "sent", "--address", up.address)
    wait_for(lambda: up.shell.losses("codec"))
    driver = up.shell.record(sent["key"])["driver"]["pid"]
    os.kill(driver, signal.SIGKILL)
    out, _ = follower.communicate(timeout=900)
    assert follower.returncode == 137
    assert f"job {sent['id']} reads FAILED, exit code 137" in out
    return {**sent, "log": out}


@pytest.fixture(scope="module")
def stopped(up: Up, file: Path, killed: dict[str, Any]) -> dict[str, Any]:
    """The second attempt: two shells submit at the same moment, a third stops it in training.

    The workers are frozen before: `stop` takes longer to start than they take to finish.
    """
    shells = [up.shell.start("submit", str(file), "--json", "-") for _ in range(2)]
    sent = [json.loads(shell.communicate(timeout=900)[0]) for shell in shells]
    assert {one["id"] for one in sent} == {f"{killed['id']}.2"}
    assert sorted(one["sent"] for one in sent) == [False, True]
    workers = up.shell.freeze_models(2)
    code, report = up.shell("stop", "sent", "--address", up.address)
    assert (code, report["status"], report["exit_code"]) == (0, "STOPPED", 130), report
    wait_for(lambda: not any(worker.is_running() for worker in workers), timeout_s=60)
    return {**report, "losses": up.shell.losses("model")}


@pytest.fixture(scope="module")
def finished(up: Up, stopped: dict[str, Any]) -> dict[str, Any]:
    """The third attempt: resumed by its key, without its file, and followed to the end."""
    code, report = up.shell("resume", stopped["key"], "--address", "local", "--follow")
    assert (code, report["status"]) == (0, "SUCCEEDED"), report
    return {**report, "code": code}


def test_only_this_machine_and_only_with_the_token(up: Up) -> None:
    token = up.shell.home / "cluster" / "token"
    assert token.stat().st_mode & 0o777 == 0o600
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        request = urllib.request.Request(f"{up.address}/api/jobs/", headers=headers)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=20)
        assert caught.value.code in (401, 403)
    listening = [
        socket.laddr.ip
        for process in up.tree()
        for socket in process.net_connections("inet")
        if socket.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 3
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    code, again = up.shell("cluster", "up")
    assert (code, again["started"], again["address"]) == (0, False, up.address)


def test_a_killed_driver_is_told_with_its_log(up: Up, killed: dict[str, Any]) -> None:
    lines = killed["log"].splitlines()
    assert len([line for line in lines if line.startswith("latentlm: run ")]) == 1
    code, status = up.shell("status", killed["id"], "--address", up.address)
    assert (code, status["exit_code"], status["key"]) == (0, 137, killed["key"])
    assert up.shell.record(killed["key"])["status"] == "KILLED"
    assert up.shell.record(killed["key"])["run_id"] == status["run_id"]
    assert f"latentlm: run {killed['key']}" in driver_log(up, status["run_id"])


def test_stopping_ends_every_trial(up: Up, stopped: dict[str, Any]) -> None:
    assert up.shell.record(stopped["key"])["status"] == "KILLED"
    assert [max(losses) < 300 for losses in stopped["losses"].values()] == [True, True]
    code, error = up.shell("stop", "sent", "--address", up.address)
    assert code == 2
    assert "is not running: it reads STOPPED" in error["error"]


def test_a_resumed_run_is_one_run_in_every_list(
    up: Up, file: Path, finished: dict[str, Any]
) -> None:
    code, jobs = up.shell("list", "--address", up.address)
    assert code == 0
    base = finished["id"].removesuffix(".3")
    assert [job["id"] for job in jobs] == [f"{base}.3", f"{base}.2", base]
    assert [job["status"] for job in jobs] == ["SUCCEEDED", "STOPPED", "FAILED"]
    code, again = up.shell("submit", str(file), "--follow")
    assert (code, again["id"]) == (0, finished["id"])
    code, status = up.shell("status", "sent", "--address", up.address)
    assert status["run_id"] == up.shell.record(finished["key"])["run_id"]
    log = driver_log(up, status["run_id"])
    for attempt in (base, f"{base}.2", f"{base}.3"):
        assert log.count(f"Running entrypoint for job {attempt}:") == 1
    code, kept = up.shell("logs", finished["key"])
    assert (code, kept["log"]) == (0, log)
    record = up.shell.record(finished["key"])
    assert record["source"] == str(up.shell.home / "submitted" / f"{base}.yaml")
    assert Path(record["source"]).is_file()


def driver_log(up: Up, run_id: str) -> str:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{up.shell.home / 'mlflow.db'}")
    run = client.get_run(run_id)
    assert run.data.tags["ray.submission_id"].startswith("sent-")
    assert len(run.data.tags["latentlm.git_commit"]) == 40
    return Path(client.download_artifacts(run_id, "driver.log")).read_text(encoding="utf-8")


def test_the_same_yaml_gives_the_same_here(
    up: Up, file: Path, finished: dict[str, Any], tmp_path: Path
) -> None:
    """Two models trained in three attempts there, and in one piece here."""
    here = Shell(tmp_path)
    code, report = here("sweep", str(file))
    assert code == 0, report
    assert report["key"] == finished["key"]
    for stage, trainings in (("codec", 1), ("model", 2)):
        there, mine = up.shell.losses(stage), here.losses(stage)
        assert there.keys() == mine.keys()
        assert len(mine) == trainings
        for key, losses in mine.items():
            assert there[key] == pytest.approx(losses, rel=1e-6)
    resumed = [lines for lines in map(truncations, up.shell.journals("model")) if lines]
    assert resumed, "no training went on from its checkpoint"
    code, again = up.shell("sweep", str(file))
    assert points(again) == pytest.approx(points(report), rel=1e-4)


def truncations(journal: Path) -> list[int]:
    """Steps after which a training went on."""
    lines = map(json.loads, journal.read_text("utf-8").splitlines())
    return [step for line in lines if (step := line.get("truncated_after"))]


def points(report: dict[str, Any]) -> dict[str, float]:
    """Key → score of every point."""
    return {one["key"]: one["metrics"]["frechet_efficientnet_lite0"] for one in report["points"]}


def test_an_experiment_is_sent_like_a_sweep(up: Up, single: Path, finished: dict[str, Any]) -> None:
    """It finds the sweep's codec and model on the cluster's storage."""
    trained = len(up.shell.losses("model"))
    overrides = [part for line in SWEEP.splitlines()[1:-1] for part in ("--set", as_set(line))]
    overrides += ["--set", "train.seed=0"]
    code, sent = up.shell("submit", str(single), *overrides, "--follow")
    assert (code, sent["status"]) == (0, "SUCCEEDED"), sent
    assert up.shell.record(sent["key"])["status"] == "FINISHED"
    assert len(up.shell.losses("model")) == trained


def as_set(line: str) -> str:
    """`a: {b: 1}` → `a.b=1`."""
    section, _, rest = line.partition(": {")
    return f"{section}.{rest.replace(': {', '.').replace(': ', '=').rstrip('}')}"


def test_a_cluster_too_small_is_the_jobs_exit_code(up: Up, single: Path) -> None:
    lanes = ("corpus.lanes=16", "codec.training.batch_size=64", "train.batch_size=64")
    sizes = (*lanes, "train.workers=16", "train.validation_items=64")
    overrides = [part for size in sizes for part in ("--set", size)]
    process = up.shell.start("submit", str(single), *overrides, "--follow")
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 3
    assert "model training needs 17 CPUs, the cluster has 6" in out, out


def test_down_ends_everything_and_only_once(up: Up) -> None:
    tree = up.tree()
    assert len(tree) > 5
    temporary = json.loads((up.shell.home / "cluster" / "head.json").read_text())["temporary"]
    code, report = up.shell("cluster", "down")
    assert (code, report["ended"]) == (0, True)
    assert not [process for process in tree if process.is_running()]
    assert not (up.shell.home / "cluster" / "token").exists()
    assert not Path(temporary).exists()
    code, report = up.shell("cluster", "down")
    assert (code, report["ended"]) == (0, False)
    code, error = up.shell("list", "--address", "local")
    assert code == 2
    assert "latentlm cluster up" in error["error"]
