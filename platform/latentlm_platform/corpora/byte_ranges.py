"""Records that are a range of bytes each: whole image files, or members of a tar."""

import itertools
from collections.abc import Iterator
from typing import Any

from latentlm_platform.corpora.chunk_index import Entry
from latentlm_platform.corpora.locating import Location, is_lost
from latentlm_platform.corpora.records import Labels, RawRecord

MAX_RECORD_BYTES = 256 * 2**20  # larger than any image file that is not a bomb


def read_records(entries: list[Entry], location: Location, labels: Labels) -> Iterator[RawRecord]:
    """One record an entry, in order; a file is opened once for all its entries in a row."""
    for path, group in itertools.groupby(entries, key=lambda entry: entry.path):
        members = list(group)
        try:
            file = location.open(path)
        except Exception as error:
            if not is_lost(error, location):
                raise
            yield from (_unreadable(entry, error) for entry in members)
            continue
        with file:
            yield from (_read_entry(entry, file, location, labels) for entry in members)


def _read_entry(entry: Entry, file: Any, location: Location, labels: Labels) -> RawRecord:
    if entry.problem_kind is not None:
        return RawRecord(entry.key, problem=(entry.problem_kind, entry.problem_reason or ""))
    if entry.size > MAX_RECORD_BYTES:
        reason = f"{entry.size} bytes; at most {MAX_RECORD_BYTES} are read for one image"
        return RawRecord(entry.key, problem=("too_large", reason))
    try:
        file.seek(entry.offset)
        data = file.read(entry.size)
    except Exception as error:
        if not is_lost(error, location):
            raise
        return _unreadable(entry, error)
    if len(data) < entry.size:
        reason = f"{entry.path} ends {entry.size - len(data)} bytes too early"
        return RawRecord(entry.key, problem=("unreadable_file", reason))
    return labels.record(entry.key, data=bytes(data), label=entry.label)


def _unreadable(entry: Entry, error: Exception) -> RawRecord:
    return RawRecord(entry.key, problem=("unreadable_file", f"{type(error).__name__}: {error}"))
