"""Records that end the process which decodes them: two in a row, and the record is a bad one.

A process cannot report its own sudden end, so it notes beforehand which row of a chunk it decodes,
in a small memory-mapped file that it holds a lock on; the kernel gives the lock back when the
process dies, on this host or another one that shares $LATENTLM_HOME. Whoever decodes the chunk next
and can lock such a marker knows that its process is dead and at which row: that is a strike. One
strike may be an out-of-memory kill or a lost node; a record with two, without a success between
them, is not decoded again. Where the file system has no locks, every process counts as living.

`<index>/<chunk>-<random>` are markers, deleted at the chunk's end; `<index>/<chunk>.strikes` has a
line a strike (the row) or success after one (`~row`). Delete the folder to try all records again.
"""

import fcntl
import mmap
import os
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latentlm_platform.home import home

STRIKES = 2
KIND = "decoder_crashed"
REASON = f"its decoder ended the process {STRIKES} times"
BETWEEN = -1  # no record is being decoded


def crashes_folder(index: str) -> Path:
    """Markers and strikes of an index, by the name of its folder."""
    return home() / "crashes" / index


class Marker:
    """Which row of a chunk this process decodes."""

    def __init__(self, folder: Path, chunk: int) -> None:
        self._strikes_path = folder / f"{chunk}.strikes"
        self._strikes = _read_strikes(self._strikes_path)
        self._path = folder / f"{chunk}-{secrets.token_hex(6)}"
        self._file = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
        _lock(self._file)
        os.ftruncate(self._file, 8)
        self._map = mmap.mmap(self._file, 8)
        self._row = memoryview(self._map).cast("q")
        self._row[0] = BETWEEN

    def is_given_up(self, row: int) -> bool:
        """Whether the row has had its strikes."""
        return row in self._strikes and self._strikes[row] >= STRIKES

    def begin(self, row: int) -> None:
        """The row is about to be decoded."""
        self._row[0] = row

    def end(self, row: int) -> None:
        """It was decoded, well or not: an earlier strike is taken back."""
        self._row[0] = BETWEEN
        if row in self._strikes:
            _append(self._strikes_path, f"~{row}")

    def close(self) -> None:
        """At the end of the chunk."""
        self._row.release()
        self._map.close()
        self._path.unlink(missing_ok=True)
        os.close(self._file)


@contextmanager
def marking(index: str, chunk: int) -> Iterator[Marker]:
    """Count what earlier processes died of in this chunk, and note what this one does."""
    folder = crashes_folder(index)
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
    for name in os.listdir(folder):  # noqa: PTH208 - a third of what Path takes, for every chunk
        if name.startswith(f"{chunk}-"):
            _count_strike(folder / name, folder / f"{chunk}.strikes")
    marker = Marker(folder, chunk)
    try:
        yield marker
    finally:
        marker.close()


def _count_strike(path: Path, strikes: Path) -> None:
    """Of a marker whose process is dead: its row, once, whoever else looks."""
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        if not _lock(file, wait=False) or os.fstat(file).st_nlink == 0:
            return
        note = os.read(file, 8)
        row = int.from_bytes(note, "little", signed=True) if len(note) == 8 else BETWEEN
        if row != BETWEEN:
            _append(strikes, str(row))
        path.unlink(missing_ok=True)
    finally:
        os.close(file)


def _lock(file: int, *, wait: bool = True) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def _read_strikes(path: Path) -> Counter[int]:
    strikes: Counter[int] = Counter()
    if not path.exists():
        return strikes
    for line in path.read_text(encoding="utf-8").split():
        if line.startswith("~"):
            strikes.pop(int(line[1:]), None)
        else:
            strikes[int(line)] += 1
    return strikes
