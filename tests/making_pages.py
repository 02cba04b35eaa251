"""MLflow's pages as `latentlm ui` serves them, and a PostgreSQL of one's own."""

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

from latentlm_dashboards.runs import connect
from making_companions import postgresql_programs

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


@contextlib.contextmanager
def served(uri: str, home: Path) -> Iterator[Pages]:
    """`latentlm ui` on that store, until the end."""
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
def postgresql(folder: Path) -> Iterator[str]:
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
