"""Tracking against a real SQLite store, read back with MLflow's own client."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from latentlm_platform.corpora.bad_records import BadRecords
from latentlm_platform.corpora.records import BadRecord
from latentlm_platform.errors import UserError
from latentlm_platform.tracking.client import Tracker
from latentlm_platform.tracking.journal import Journal
from latentlm_platform.tracking.outbox import Outbox
from latentlm_platform.tracking.protocol import flatten
from latentlm_platform.tracking.uploading import JournalUploader


class Flaky:
    """The tracker's real client behind a line that is cut for `failures` calls of `name`."""

    def __init__(self, client: Any, *, name: str, failures: int, after: bool = False) -> None:
        self.client, self.name, self.failures, self.after = client, name, failures, after

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.client, name)
        if name != self.name or not self.failures:
            return call
        self.failures -= 1

        def cut(*arguments: Any, **named: Any) -> None:
            if self.after:  # the store did it, the answer was lost
                call(*arguments, **named)
            raise ConnectionError("the line is cut")

        return cut


def history(tracker: Tracker, run_id: str, key: str) -> list[tuple[int, float]]:
    rows = tracker.client.get_metric_history(run_id, key)
    return sorted((row.step, row.value) for row in rows)


def test_a_run_and_its_child_as_mlflow_holds_them(tracker: Tracker, tmp_path: Path) -> None:
    run = tracker.start_run("r", tags={"latentlm.kind": "run"}, parameters={"a": {"b": 1e-4}})
    child = tracker.start_run("c", parent=run, tags={"long": "x" * 9000})
    many = {f"p{i}": "y" * 7000 for i in range(250)}
    child.log_parameters(many)
    child.log_metrics({"loss": 0.5, "bad": math.inf}, step=3)
    (tmp_path / "f.txt").write_text("hello")
    child.log_file(tmp_path / "f.txt", "folder")
    child.log_text("text", "notes/t.txt")
    child.log_picture(np.zeros((8, 8, 1), np.uint8), "samples", 3)
    child.log_table([{"seed": 1}, {"seed": 2, "prompt": "x"}], "table.json")
    child.log_corpus("toy", digest="d" * 64, source="/data/toy", profile={"images": 3})
    child.finish("FAILED")
    run.finish("FINISHED")
    assert tracker.close() is None

    stored, parent = tracker.client.get_run(child.run_id), tracker.client.get_run(run.run_id)
    assert (stored.info.status, parent.info.status) == ("FAILED", "FINISHED")
    assert parent.data.params == {"a.b": "0.0001"}
    assert stored.data.tags["mlflow.parentRunId"] == run.run_id
    assert stored.data.tags["latentlm.non_finite_values"] == "1"
    assert len(stored.data.params) == 250
    assert {len(value) for value in stored.data.params.values()} == {6000}
    assert stored.data.metrics["loss"] == 0.5
    assert math.isnan(stored.data.metrics["bad"])
    assert stored.inputs.dataset_inputs[0].dataset.digest == "d" * 36
    names = {file.path for file in tracker.client.list_artifacts(child.run_id)}
    assert names == {"folder", "notes", "images", "table.json"}
    announced = json.loads(stored.data.tags["mlflow.loggedArtifacts"])
    assert announced == [{"path": "table.json", "type": "table"}]
    table = Path(tracker.client.download_artifacts(child.run_id, "table.json", str(tmp_path)))
    assert pd.read_json(table, orient="split").to_dict("list")["seed"] == [1, 2]
    assert f"/#/experiments/{tracker.experiment_id}/runs/{run.run_id}" in run.url("http://h:1/")


def test_bad_records_of_an_earlier_attempt_are_replaced(tracker: Tracker) -> None:
    run = tracker.start_run("repaired")
    bad = [BadRecord("a", "truncated_image", "half"), BadRecord("b", "too_large", "much")]
    BadRecords.listed(bad, split="train").log(run)
    data = tracker.client.get_run(run.run_id).data
    assert data.metrics == {
        "bad_records": 2, "bad_records_truncated_image": 1, "bad_records_too_large": 1,
    }  # fmt: skip
    time.sleep(0.01)
    BadRecords.of().log(run)
    assert set(tracker.client.get_run(run.run_id).data.metrics.values()) == {0}
    table = tracker.client.download_artifacts(run.run_id, "bad_records.json")
    assert json.loads(Path(table).read_text())["data"] == []


def test_a_reopened_run_goes_on_under_its_id(tracker: Tracker) -> None:
    run = tracker.start_run("r")
    run.finish("KILLED")
    again = tracker.reopen(run.run_id)
    assert tracker.client.get_run(run.run_id).info.status == "RUNNING"
    again.finish("FINISHED")
    assert tracker.client.get_run(run.run_id).info.status == "FINISHED"
    with pytest.raises(UserError, match="MLflow"):
        tracker.reopen("0" * 32)


def test_calls_wait_in_order_for_the_store_to_come_back() -> None:
    outbox, arrived, down = Outbox(), [], [True]

    def call(number: int) -> Callable[[], None]:
        def do() -> None:
            if down[0]:
                raise ConnectionError("away")
            arrived.append(number)

        return do

    for number in range(3):
        outbox.send(f"call {number}", call(number))
    assert outbox.flush(timeout_s=0) == 3
    down[0] = False
    assert outbox.flush(timeout_s=0) == 0
    assert arrived == [0, 1, 2]
    assert outbox.refused == []


def test_a_child_begun_in_an_outage_is_complete_after_it(tracker: Tracker) -> None:
    run = tracker.start_run("r")
    tracker.client = Flaky(tracker.client, name="create_run", failures=2)
    child = tracker.start_run("c", parent=run, parameters={"cfg_scale": 2.0})
    child.log_metrics({"accuracy": 0.9})
    child.finish("FINISHED")
    assert child.run_id == ""
    assert tracker.close(timeout_s=30) is None
    stored = tracker.client.get_run(child.run_id)
    assert (stored.info.status, stored.data.metrics) == ("FINISHED", {"accuracy": 0.9})
    assert stored.data.params == {"cfg_scale": "2.0"}


def test_what_mlflow_refuses_is_reported_once_and_never_raised(tracker: Tracker) -> None:
    run = tracker.start_run("r", parameters={"a": 1})
    run.log_parameters({"a": 2})
    run.log_file(Path("/nowhere/at/all"))
    run.log_metrics({"fine": 1.0})
    assert tracker.client.get_run(run.run_id).data.metrics == {"fine": 1.0}
    sentence = tracker.close(timeout_s=5)
    assert sentence is not None
    assert "lacks 2 records" in sentence


@pytest.mark.parametrize("answer_lost", [False, True])
def test_the_journal_reaches_mlflow_once_through_outages_and_resumes(
    tracker: Tracker, tmp_path: Path, answer_lost: bool
) -> None:
    run = tracker.start_run("r")
    journal = Journal(tmp_path / "j.jsonl")
    for step in range(2500):
        journal.write(step=step, metrics={"loss": float(step)})
    tracker.client = Flaky(tracker.client, name="log_batch", failures=2, after=answer_lost)
    first = JournalUploader(journal, run, every_s=0.01)
    first.start()
    assert first.close(timeout_s=60)

    journal.truncate_after(2000)  # a worker restarted, then the driver did
    for step in range(2001, 2600):
        journal.write(step=step, metrics={"loss": float(step)})
    second = JournalUploader(journal, tracker.reopen(run.run_id), every_s=0.01)
    second.start()
    assert second.close(timeout_s=60)
    expected = [(entry.step, entry.metrics["loss"]) for entry in journal.read_from(0)[0]]
    assert len(expected) == 2600
    assert history(tracker, run.run_id, "loss") == expected
    assert tracker.close() is None


def test_an_uploader_that_never_gets_through_ends_in_time_and_says_so(
    tracker: Tracker, tmp_path: Path
) -> None:
    run = tracker.start_run("r")
    journal = Journal(tmp_path / "j.jsonl")
    journal.write(step=1, metrics={"loss": 1.0})
    tracker.client = Flaky(tracker.client, name="log_batch", failures=10**9)
    uploader = JournalUploader(journal, run, every_s=0.01)
    uploader.start()
    assert not uploader.close(timeout_s=0.5)
    sentence = tracker.close(timeout_s=0)
    assert sentence is not None
    assert "the line is cut" in sentence


def test_system_metrics_are_taken(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    run = tracker.start_run("r")
    with run.system_metrics():
        time.sleep(1.5)
    found = tracker.client.get_run(run.run_id).data.metrics
    assert found["system/system_memory_usage_megabytes"] > 0


def test_flatten() -> None:
    nested = {"a": {"b": {"c": [1, 2]}, "d": None}, "e": "text", "f": True, "g": {}}
    flat = flatten(nested)
    assert flat == {"a.b.c": "[1, 2]", "a.d": "null", "e": "text", "f": "true", "g": "{}"}
    assert json.loads(flat["a.b.c"]) == [1, 2]
