"""Records that are a range of bytes each: whole image files, or members of a tar."""

import itertools
from collections.abc import Iterator
from typing import Any

from latentlm_platform.corpora.chunk_index import Entry
from latentlm_platform.corpora.locating import Location, is_lost
from latentlm_platform.corpora.records import Assembly, Record

MAX_RECORD_BYTES = 256 * 2**20  # larger than any image file that is not a bomb


def read_records(entries: list[Entry], location: Location, assembly: Assembly) -> Iterator[Record]:
    """One record an entry, in order; a file is opened once for all its entries in a row."""
    for path, group in itertools.groupby(entries, key=lambda entry: entry.path):
        members = list(group)
        try:
            file = location.open(path)
        except Exception as error:
            if not is_lost(error, location):
                raise
            yield from (_unreadable(entry, error, assembly) for entry in members)
            continue
        with file:
            yield from (_read_entry(entry, file, location, assembly) for entry in members)


def _read_entry(entry: Entry, file: Any, location: Location, assembly: Assembly) -> Record:
    if entry.problem_kind is not None:
        problem = (entry.problem_kind, entry.problem_reason or "")
        return assembly.lost(entry.key, problem, label=entry.label)
    if entry.size > MAX_RECORD_BYTES:
        reason = f"{entry.size} bytes; at most {MAX_RECORD_BYTES} are read for one image"
        return assembly.lost(entry.key, ("too_large", reason), label=entry.label)
    try:
        file.seek(entry.offset)
        data = file.read(entry.size)
    except Exception as error:
        if not is_lost(error, location):
            raise
        return _unreadable(entry, error, assembly)
    if len(data) < entry.size:
        reason = f"{entry.path} ends {entry.size - len(data)} bytes too early"
        return assembly.lost(entry.key, ("unreadable_file", reason), label=entry.label)
    values = [entry.label if s.kind == "label" else bytes(data) for s in assembly.sources]
    return assembly.record(entry.key, values)


def _unreadable(entry: Entry, error: Exception, assembly: Assembly) -> Record:
    problem = ("unreadable_file", f"{type(error).__name__}: {error}")
    return assembly.lost(entry.key, problem, label=entry.label)
