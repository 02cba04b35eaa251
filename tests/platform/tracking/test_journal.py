"""The journal keeps what was written, through kills and resumes."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latentlm_platform.tracking.journal import Journal


def steps(journal: Journal) -> list[int]:
    return [entry.step for entry in journal.read_from(0)[0]]


def test_what_is_written_is_read_back_in_pieces(tmp_path: Path) -> None:
    writer, reader = Journal(tmp_path / "deep" / "j.jsonl"), Journal(tmp_path / "deep" / "j.jsonl")
    assert reader.read_from(0) == ([], 0)
    writer.write(step=1, metrics={"loss": 0.1})
    first, offset = reader.read_from(0)
    writer.write(step=2, metrics={"loss": 1 / 3})
    second, end = reader.read_from(offset)
    assert [entry.metrics for entry in first + second] == [{"loss": 0.1}, {"loss": 1 / 3}]
    assert reader.read_from(end) == ([], end)
    assert abs(second[0].time_ms / 1000 - time.time()) < 60


def test_values_that_are_not_finite_survive_as_standard_json(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.write(step=1, metrics={"a": math.nan, "b": math.inf, "c": -math.inf})
    assert '"nan"' in journal.path.read_text()
    assert "NaN" not in journal.path.read_text()
    values = journal.read_from(0)[0][0].metrics
    assert math.isnan(values["a"])
    assert (values["b"], values["c"]) == (math.inf, -math.inf)


def test_a_resume_leaves_no_duplicates(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    for step in (1, 2, 3, 4):
        journal.write(step=step, metrics={"loss": float(step)})
    journal.close()
    resumed = Journal(journal.path)
    resumed.truncate_after(2)
    resumed.write(step=3, metrics={"loss": 30.0})
    assert steps(resumed) == [1, 2, 3]
    assert resumed.read_from(0)[0][-1].metrics == {"loss": 30.0}


def test_a_torn_line_is_neither_read_nor_joined_to_the_next(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.write(step=1, metrics={"loss": 1.0})
    journal.close()
    with journal.path.open("ab") as file:
        file.write(b'{"step": 2, "time_ms": 5, "metr')
    entries, offset = journal.read_from(0)
    assert [entry.step for entry in entries] == [1]
    journal.write(step=2, metrics={"loss": 2.0})
    assert [entry.step for entry in journal.read_from(offset)[0]] == [2]


@pytest.mark.parametrize("line", ["", "{}", "[]", "3", '{"step": "x"}', '{"metrics": 3}', "\xff"])
def test_a_damaged_line_costs_only_itself(tmp_path: Path, line: str) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.write(step=1, metrics={"loss": 1.0})
    with journal.path.open("a", encoding="latin-1") as file:
        file.write(line + "\n")
    journal.write(step=2, metrics={"loss": 2.0})
    assert steps(journal) == [1, 2]


def test_kill_9_loses_at_most_the_line_being_written(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    code = (
        "import sys; from pathlib import Path\n"
        "from latentlm_platform.tracking.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for step in range(10**9):\n"
        "    journal.write(step=step, metrics={'loss': 1.0}); print(step, flush=True)\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert worker.stdout is not None
    said = [int(worker.stdout.readline()) for _ in range(200)]
    os.kill(worker.pid, signal.SIGKILL)
    said += [int(line) for line in worker.stdout if line.endswith(b"\n")]
    worker.wait()
    read = steps(Journal(path))
    assert read == list(range(len(read)))
    assert len(read) >= len(said)
