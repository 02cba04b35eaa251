"""Runs read true: one driver each, found by key or name, never RUNNING without a driver."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from latentlm_platform.errors import UserError
from latentlm_platform.runs import RunRecord, claimed, find_run, reap, this_process


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLM_HOME", str(tmp_path))


def saved(key: str, *, name: str = "some", **fields: Any) -> RunRecord:
    record = RunRecord(key=key, name=name, source="x.yaml", overrides=("a=1",), **fields)
    record.save()
    return record


def test_a_run_is_found_by_key_start_or_name() -> None:
    first, second = saved("abc123"), saved("abd456", name="other", started_s=5.0)
    assert find_run("abc123") == first
    assert find_run("abd") == second
    assert find_run("other") == second
    with pytest.raises(UserError, match="fits several runs"):
        find_run("ab")
    with pytest.raises(UserError, match="no run is called 'zzz'; known here: abd456"):
        find_run("zzz")


def test_a_run_without_a_driver_reads_killed() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    started = psutil.Process(child.pid).create_time()
    dead = {**this_process(), "pid": child.pid, "started_s": started}
    saved("mine", driver=this_process())
    saved("gone", driver=dead)
    assert reap() == []
    child.kill()
    child.wait()
    assert [record.key for record in reap()] == ["gone"]
    assert find_run("gone").status == "KILLED"
    assert find_run("mine").status == "RUNNING"


def test_a_reused_process_number_is_not_the_driver() -> None:
    saved("old", driver={**this_process(), "started_s": 1.0})
    assert [record.key for record in reap()] == ["old"]


def test_a_second_driver_is_refused_until_the_first_ends() -> None:
    record = saved("abc")
    with claimed(record), pytest.raises(UserError, match="already running"), claimed(record):
        pass
    with claimed(record):
        pass
