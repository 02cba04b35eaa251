"""Real stores that hold runs of the shape that the platform writes, and MLflow's pages of them.

`uri` is a small SQLite store, `pages` MLflow's server on SQLite as `latentlm ui` starts it, with
runs of every track, `postgres_pages` one on PostgreSQL, `browser` headless Chromium.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from latentlm_dashboards.runs import connect
from making_companions import postgresql_programs, start_chromium
from making_tracked_runs import write_every_track

CFG_SCALES = (1.0, 1.5, 2.0, 3.0)
START_S = 240.0


@dataclass(frozen=True)
class Pages:
    """MLflow's pages: where, the store behind them, what `latentlm ui` printed and reported."""

    url: str
    uri: str
    experiment: str
    printed: str
    report: dict[str, Any]

    @property
    def client(self) -> Any:
        return connect(self.uri)

    def tags(self) -> dict[str, str]:
        tags: dict[str, str] = self.client.get_experiment_by_name(self.experiment).tags
        return tags


@pytest.fixture(scope="session")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two runs, `small` and `wide`, that differ in width and in accuracy."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = connect(uri)
    experiment = client.create_experiment("latentlm", artifact_location=folder.as_uri())
    for name, key, width in (("small", "3f9a1111", 64), ("wide", "81c03333", 128)):
        write_run(client, experiment, name=name, key=key, width=width)
    return uri


@pytest.fixture
def client(uri: str) -> Any:
    return connect(uri)


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    home = tmp_path_factory.mktemp("sqlite_pages")
    with _pages(f"sqlite:///{home}/mlflow.db", home) as pages:
        yield pages


@pytest.fixture(scope="session")
def postgres_pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    home = tmp_path_factory.mktemp("postgres_pages")
    with _postgres(home) as uri, _pages(uri, home) as pages:
        yield pages


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = start_chromium(
        tmp_path_factory.mktemp("profile"),
        "--window-size=1700,2200",  # charts below the fold are not drawn
        logs=("browser",),
    )
    driver.set_page_load_timeout(120)
    driver.set_script_timeout(120)
    yield driver
    driver.quit()


def write_run(client: Any, experiment: str, *, name: str, key: str, width: int) -> str:
    """One parent with a codec, a model and an evaluation for each CFG scale."""

    def start(kind: str, title: str, parent: str | None) -> str:
        family = {"mlflow.parentRunId": parent} if parent else {}
        tags = {"latentlm.kind": kind, "latentlm.key": key, **family}
        made: str = client.create_run(experiment, run_name=title, tags=tags).info.run_id
        return made

    run = start("run", name, None)
    client.log_param(run, "model.width", width)
    client.log_param(run, "train.steps", 100)
    for metric, value in (("", 0.9), ("_low", 0.88), ("_high", 0.92)):
        client.log_metric(run, f"generated_accuracy{metric}", value + width / 12800)
    for kind in ("codec", "model"):
        child = start(kind, kind, run)
        for step in (1, 2):
            client.log_metric(child, "loss", 1 / step, step=step)
    for scale in CFG_SCALES:
        child = start("evaluation", f"{name} cfg {scale}", run)
        client.log_param(child, "cfg_scale", scale)
        client.log_param(child, "corpus.kind", "class_images")
        client.log_metric(child, "generated_accuracy", 0.9 - (scale - 2) ** 2 / 10)
        client.log_metric(child, "frechet_efficientnet_lite0", 20 + scale)
    return run


@contextlib.contextmanager
def _pages(uri: str, home: Path) -> Iterator[Pages]:
    """`latentlm ui` on a store with runs of every track."""
    client = connect(uri)
    folder = home / "mlartifacts"
    experiment = client.create_experiment("latentlm", artifact_location=folder.as_uri())
    write_every_track(client, experiment)
    report, port = home / "ui.json", free_port()
    command = [sys.executable, "-m", "latentlm_platform.cli", "ui", "--uri", uri]
    with (home / "ui.txt").open("wb") as output:
        server = subprocess.Popen(
            [*command, "--port", str(port), "--json", str(report)],
            stdout=output,
            stderr=output,
            env={**os.environ, "LATENTLM_HOME": str(home), "PYTHONUNBUFFERED": "1"},
        )
    try:
        deadline_s = time.monotonic() + START_S
        while not report.exists() and server.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.2)
        printed = (home / "ui.txt").read_text()
        assert report.exists(), printed
        found = json.loads(report.read_text())
        yield Pages(found["url"], uri, "latentlm", printed, found)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


@contextlib.contextmanager
def _postgres(folder: Path) -> Iterator[str]:
    """PostgreSQL of its own on a loopback port; as an unprivileged user where we are root."""
    programs = postgresql_programs()
    root, data, port = os.geteuid() == 0, folder / "data", free_port()
    data.mkdir()
    if root:
        shutil.chown(data, "nobody")
        for part in (folder, *folder.parents):
            if not part.stat().st_mode & 0o001:  # pytest's own folders are closed to others
                part.chmod(part.stat().st_mode | 0o011)
    how: Any = {"stdout": subprocess.DEVNULL, "cwd": "/", "timeout": 120}
    how |= {"user": "nobody", "extra_groups": []} if root else {}
    initdb = [programs / "initdb", "-D", data, "-U", "latentlm", "-A", "trust", "-N"]
    subprocess.run(initdb, check=True, **how)
    options = f"-h 127.0.0.1 -p {port} -k '' -c fsync=off"
    control = [programs / "pg_ctl", "-D", data, "-l", data / "log", "-w"]
    subprocess.run([*control, "-o", options, "start"], check=True, **how)
    try:
        yield f"postgresql+psycopg2://latentlm@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=False, **how)


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
