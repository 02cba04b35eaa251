"""The runs of this installation: a folder each, whose `run.json` says how it stands.

A run is RUNNING only while its driver lives; a dead driver's run reads KILLED as soon as anyone
looks, here and in MLflow, and can be resumed.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import psutil

from latentlm_platform.errors import UserError
from latentlm_platform.home import runs_folder

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class RunRecord:
    """What is known of a run; `key` names its folder."""

    key: str
    name: str
    source: str
    overrides: tuple[str, ...]
    status: Status = "RUNNING"
    stage: str = ""
    attempt: int = 1
    until: str | None = None
    trained: str = ""  # the run whose model this one evaluates
    driver: dict[str, Any] = field(default_factory=dict)
    tracking_uri: str = ""
    run_id: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    error: str = ""
    started_s: float = 0.0
    ended_s: float = 0.0

    @property
    def folder(self) -> Path:
        return runs_folder() / self.key

    @property
    def alive(self) -> bool:
        """Whether its driver still works at it, as far as this machine can tell."""
        if self.status != "RUNNING":
            return False
        if self.driver.get("host") != socket.gethostname():
            return True
        try:
            process = psutil.Process(self.driver["pid"])
            return abs(process.create_time() - self.driver["started_s"]) < 1.0
        except psutil.NoSuchProcess:
            return False

    def save(self) -> None:
        """Write `run.json`, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"run.json.{os.getpid()}.partial"
        partial.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        partial.rename(self.folder / "run.json")

    def changed(self, **changes: Any) -> "RunRecord":
        """A copy with some fields changed, saved."""
        record = replace(self, **changes)
        record.save()
        return record


def this_process() -> dict[str, Any]:
    """Who drives a run: enough to tell later whether it still lives."""
    process = psutil.Process()
    return {"host": socket.gethostname(), "pid": process.pid, "started_s": process.create_time()}


def read_run(key: str) -> RunRecord | None:
    """The run of this exact key, or None."""
    path = runs_folder() / key / "run.json"
    if not path.exists():
        return None
    fields = json.loads(path.read_text(encoding="utf-8"))
    return RunRecord(**fields | {"overrides": tuple(fields["overrides"])})


def read_runs() -> list[RunRecord]:
    """Every run, newest first."""
    keys = [path.parent.name for path in runs_folder().glob("*/run.json")]
    found = [record for record in map(read_run, keys) if record is not None]
    return sorted(found, key=lambda record: record.started_s, reverse=True)


def find_run(given: str, *, having: str | None = None) -> RunRecord:
    """The run that `given` names: its key, the start of its key, or its name.

    Of several with that name the newest, and if possible one that has the artifact `having`.
    """
    everything = read_runs()
    matches = [r for r in everything if given in (r.key, r.run_id)]
    matches = matches or [r for r in everything if r.key.startswith(given)]
    named = [r for r in everything if r.name == given]
    matches = matches or [r for r in named if having in r.artifacts][:1] or named[:1]
    if len(matches) == 1:
        return matches[0]
    if matches:
        keys = ", ".join(record.key for record in matches)
        raise UserError(f"{given!r} fits several runs ({keys}); give more of the key")
    known = ", ".join(f"{r.key} ({r.name})" for r in everything[:5]) or "none yet"
    raise UserError(f"no run is called {given!r}; known here: {known}; see `latentlm list`")


def reap() -> list[RunRecord]:
    """Runs whose driver has died without a word: marked KILLED, here and in MLflow."""
    dead = [r for r in read_runs() if r.status == "RUNNING" and not r.alive]
    for record in dead:
        if record.run_id:
            from latentlm_platform.tracking.reaper import kill_orphans

            kill_orphans(record.tracking_uri, [record.run_id])
        record.changed(status="KILLED", error="the driver ended without a word")
    return dead


@contextmanager
def claimed(record: RunRecord) -> Iterator[None]:
    """Drive a run alone: a second driver, even one started at the same moment, is refused."""
    record.folder.mkdir(parents=True, exist_ok=True)
    with (record.folder / ".driver.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"run {record.key} ({record.name}) is already running; watch it with"
                f" `latentlm status {record.key}` or end it with `latentlm stop {record.key}`"
            ) from error
        yield


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; another run that shares the artifact waits its turn."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another run works at {folder}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def now_s() -> float:
    """Seconds since 1970."""
    return time.time()
