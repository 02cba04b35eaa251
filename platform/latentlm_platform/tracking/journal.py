"""The journal of a training: append-only JSON lines on disk, the truth that MLflow follows.

The worker that trains writes it; the driver tails it and uploads (`uploading.JournalUploader`), so
an outage of MLflow never touches a training step. A line is either an entry,
`{"step": 7, "time_ms": 1700000000000, "metrics": {"loss": 0.5}}`, or the mark of a resume,
`{"truncated_after": 6}`: entries of later steps before the mark do not count any more. Nothing is
ever rewritten, so an offset into the file stays valid for ever.
"""

import json
import math
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

FSYNC_EVERY_S = 5.0


class Entry(NamedTuple):
    """What one step measured; `time_ms` is when, in milliseconds since 1970."""

    step: int
    time_ms: int
    metrics: dict[str, float]


class Journal:
    """One training's journal; the file is created by the first write, one writer at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None
        self._synced_s = 0.0

    def write(self, *, step: int, metrics: dict[str, float]) -> None:
        """Append what `step` measured; flushed at once, on the disk within seconds."""
        stored = {name: _stored(value) for name, value in metrics.items()}
        self._append({"step": step, "time_ms": time.time_ns() // 1_000_000, "metrics": stored})

    def truncate_after(self, step: int) -> None:
        """Forget what was written of steps after `step`: the worker resumes there."""
        self._append({"truncated_after": step})
        os.fsync(self._file.fileno())

    def read_from(self, offset: int = 0) -> tuple[list[Entry], int]:
        """Entries after byte `offset` that still count, and the offset to go on from.

        From 0 it is the whole history without duplicates. A last line without its end is left
        for the next call; a damaged line is passed over.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                text = file.read()
        except FileNotFoundError:
            return [], offset
        whole = text[: text.rfind(b"\n") + 1]
        entries: list[Entry] = []
        for line in whole.splitlines():
            parsed = _parsed(line)
            if isinstance(parsed, Entry):
                entries.append(parsed)
            elif parsed is not None:
                entries = [entry for entry in entries if entry.step <= parsed]
        return entries, offset + len(whole)

    def close(self) -> None:
        """Bring everything to the disk and let go of the file; a later write opens it again."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def _append(self, line: dict[str, Any]) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _cut_torn_line(self.path)
            self._file = self.path.open("ab")
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._file.flush()
        if time.monotonic() - self._synced_s > FSYNC_EVERY_S:
            os.fsync(self._file.fileno())
            self._synced_s = time.monotonic()


def _stored(value: float) -> float | str:
    """JSON has no NaN and no infinity: they are kept as the strings nan, inf and -inf."""
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _parsed(line: bytes) -> Entry | int | None:
    """An entry, the step of a resume mark, or None for a line that says neither."""
    try:
        fields = json.loads(line)
        if "truncated_after" in fields:
            return int(fields["truncated_after"])
        metrics = {str(name): float(value) for name, value in fields["metrics"].items()}
        return Entry(int(fields["step"]), int(fields["time_ms"]), metrics)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _cut_torn_line(path: Path) -> None:
    """A writer killed in mid-line left a line without its end: the next one must not join it."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        text = file.read()
        file.truncate(text.rfind(b"\n") + 1)
