"""Records whose parts are ranges of bytes: whole image files, or members of a tar."""

import itertools
from collections.abc import Iterator
from typing import Any

from latentlm_platform.corpora.chunk_index import Entry
from latentlm_platform.corpora.locating import Location, Meter, is_lost
from latentlm_platform.corpora.records import Assembly, Record

MAX_RECORD_BYTES = 256 * 2**20  # larger than any image file that is not a bomb


def read_records(
    entries: list[Entry], location: Location, assembly: Assembly, *, meter: Meter | None = None
) -> Iterator[Record]:
    """One record an entry, in order; a file is opened once for all its entries in a row."""
    for path, group in itertools.groupby(entries, key=lambda entry: entry.path):
        members = list(group)
        try:
            file = location.open(path, meter)
        except Exception as error:
            if not is_lost(error, location):
                raise
            problem = unreadable(error)
            yield from (assembly.lost(e.name, problem, label=e.label) for e in members)
            continue
        with file:
            yield from (_read_entry(entry, file, location, assembly) for entry in members)


def unreadable(error: Exception) -> tuple[str, str]:
    """The problem of a record whose bytes cannot be read."""
    return "unreadable_file", f"{type(error).__name__}: {error}"


def too_large(size: int) -> tuple[str, str]:
    """The problem of a record that is not read into memory."""
    return "too_large", f"{size} bytes; at most {MAX_RECORD_BYTES} are read for one image"


def _read_entry(entry: Entry, file: Any, location: Location, assembly: Assembly) -> Record:
    """The record of an entry whose file is open."""
    if entry.problem_kind is not None:
        problem = (entry.problem_kind, entry.problem_reason or "")
        return assembly.lost(entry.name, problem, label=entry.label)
    ranges = zip(entry.ranges[::2], entry.ranges[1::2], strict=True)
    values: list[object] = []
    for source in assembly.sources:
        if source.kind == "label":
            values.append(entry.label)
            continue
        found = _read_range(entry.path, file, location, *next(ranges))
        if isinstance(found, tuple):
            return assembly.lost(entry.name, found, label=entry.label)
        values.append(found)
    return assembly.record(entry.name, values)


def _read_range(
    path: str, file: Any, location: Location, offset: int, size: int
) -> bytes | tuple[str, str]:
    """The bytes, or the problem of the record."""
    if size > MAX_RECORD_BYTES:
        return too_large(size)
    try:
        file.seek(offset)
        data = file.read(size)
    except Exception as error:
        if not is_lost(error, location):
            raise
        return unreadable(error)
    if len(data) < size:
        return "unreadable_file", f"{path} ends {size - len(data)} bytes too early"
    return bytes(data)
