"""The ledger of a sweep: one JSON line for everything that happened to a point, only ever appended.

Trials write it themselves, so that what is finished is on record before anyone is told. It and
MLflow's child runs are the truth about a sweep; Ray Tune's own state is never read again.
"""

import fcntl
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from latentlm_platform.runs import now_s

Event = Literal["started", "finished", "failed", "stopped"]
ENDED: tuple[Event, ...] = ("finished", "failed", "stopped")


@dataclass(frozen=True)
class Line:
    """What happened to a point; `trial` is the key of the trial that covers it.

    finished: all was measured. failed: an error that comes again. stopped: ended early for being
    worse than others. A point whose last line is its start was interrupted and goes on, unless it
    was finished before. `draw` is what a search algorithm chose, whole.
    """

    event: Event
    point: str
    trial: str
    values: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    run_id: str = ""
    seconds: float = 0.0
    error: str = ""
    draw: dict[str, Any] = field(default_factory=dict)
    at_s: float = 0.0


def ledger_of(folder: Path) -> "Ledger":
    """The ledger in a sweep's folder."""
    return Ledger(folder / "ledger.jsonl")


class Ledger:
    """A file of lines that several processes append to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, lines: Iterable[Line]) -> None:
        """Write lines together, on the disk when this returns; a torn line before them is ended."""
        texts = [json.dumps(asdict(line) | {"at_s": now_s()}, ensure_ascii=False) for line in lines]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                torn = file.read(1) != b"\n"
            file.write(b"\n" * (size > 0 and torn))
            file.write("".join(f"{text}\n" for text in texts).encode())
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[Line]:
        """Every whole line, oldest first; what a crash tore is passed over."""
        if not self.path.exists():
            return []
        lines = []
        for text in self.path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                lines.append(Line(**json.loads(text)))
            except (json.JSONDecodeError, TypeError):
                continue
        return lines

    def ends(self) -> dict[str, Line]:
        """Point → how it ended, if it did and was not begun again after it failed."""
        ends: dict[str, Line] = {}
        for line in self.read():
            if line.event in ENDED:
                ends[line.point] = line
            elif line.point in ends and ends[line.point].event != "finished":
                del ends[line.point]
        return ends

    def draws(self) -> int:
        """How many draws of a search algorithm have ended; a draw that comes twice counts twice."""
        times: dict[str, dict[str, int]] = {}
        for line in self.read():
            if line.event in ENDED:
                of_trial = times.setdefault(line.trial, {})
                of_trial[line.point] = of_trial.get(line.point, 0) + 1
        return sum(max(of_trial.values()) for of_trial in times.values())
