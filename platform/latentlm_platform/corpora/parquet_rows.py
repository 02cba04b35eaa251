"""Rows of Parquet files as records. Row order is kept: files sorted by class are shuffled before.

A broken row group makes its rows bad records; pages are held against their checksums where the
file has them. Only row groups that hold wanted rows are read; reading part of a group decodes what
lies before it, so groups of at most 8 × `chunk_records` rows are best.
"""

import itertools
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from latentlm_platform.corpora.byte_ranges import MAX_RECORD_BYTES, too_large, unreadable
from latentlm_platform.corpora.chunk_index import Entry
from latentlm_platform.corpora.locating import Location, Meter, is_lost, locate
from latentlm_platform.corpora.parquet_footers import MAGIC, read_footer
from latentlm_platform.corpora.records import Assembly, Record

BATCH_ROWS = 64
BUFFER_BYTES = 4 * 2**20
KEPT_FOOTERS = 32
OUTSIDE = "the image lies outside of the corpus"

Int64s = npt.NDArray[np.int64]
Row = tuple[Any, ...] | Exception  # one value a column, or why the row is lost


def read_records(
    entry: Entry,
    source: str,
    assembly: Assembly,
    *,
    digest: str,
    rows: Int64s | None = None,
    meter: Meter | None = None,
) -> Iterator[Record]:
    """The entry's rows (or `rows` of them, sorted), one record each; lost ones are bad records."""
    if entry.problem_kind is not None:
        yield assembly.lost(entry.name, (entry.problem_kind, entry.problem_reason or ""))
        return
    location = locate(source)
    start, count = entry.ranges
    wanted = start + (np.arange(count) if rows is None else rows)
    found = _read_rows(entry.path, source, assembly, wanted, digest=digest, meter=meter)
    for number, row in zip(wanted.tolist(), found, strict=True):
        key = f"{entry.path}#{number}"
        if isinstance(row, Exception):
            yield assembly.lost(key, unreadable(row))
            continue
        yield assembly.record(key, [_resolved(value, location, meter) for value in row])


def _resolved(value: Any, location: Location, meter: Meter | None) -> Any:
    """A value; of {bytes, path} its bytes, or those of the file that it names, or its problem."""
    if not isinstance(value, dict):
        return value
    if value.get("bytes") is not None or not value.get("path"):
        return value.get("bytes")
    path = PurePosixPath(value["path"])
    if path.is_absolute() or ".." in path.parts or "\0" in str(path):
        return "missing_image", f"{OUTSIDE}: {str(path)[:80]!r}"
    try:
        with location.open(str(path), meter) as file:
            size = int(file.size())
            return bytes(file.read(size)) if size <= MAX_RECORD_BYTES else too_large(size)
    except FileNotFoundError:
        return "missing_image", f"there is no file {str(path)[:80]!r} in the corpus"
    except Exception as error:
        if not is_lost(error, location):
            raise
        return unreadable(error)


def _read_rows(
    path: str,
    source: str,
    assembly: Assembly,
    wanted: Int64s,
    *,
    digest: str,
    meter: Meter | None,
) -> Iterator[Row]:
    """The wanted rows of a file, exactly as many, whatever is broken."""
    location, columns = locate(source), [part.column for part in assembly.sources]
    try:
        file = location.open(path, meter)
        parquet = pq.ParquetFile(
            file,
            metadata=_footers.read(file, (digest, source, path)),
            page_checksum_verification=True,
            buffer_size=BUFFER_BYTES,
        )
    except Exception as error:
        if not is_lost(error, location):
            raise
        yield from itertools.repeat(error, len(wanted))
        return
    with file:
        for group, rows in _overlaps(parquet.metadata, wanted):
            done, lost = 0, Exception(f"row group {group} ends too early")
            try:
                for row in _read_group(parquet, group, columns, rows):
                    yield row
                    done += 1
            except Exception as error:
                if not is_lost(error, location):
                    raise
                lost = error
            yield from itertools.repeat(lost, len(rows) - done)


class _Footers:
    """Some footers that were read: of a file in small chunks they are a good part of the bytes.

    The corpus's digest stands for a file's state: another state is another key.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str, str], Any] = {}

    def read(self, file: Any, key: tuple[str, str, str]) -> Any:
        found = self._kept.get(key)
        if found is None:
            footer = read_footer(file)
            length = len(footer).to_bytes(4, "little")
            found = pq.read_metadata(pa.BufferReader(MAGIC + footer + length + MAGIC))
            if len(self._kept) >= KEPT_FOOTERS:
                self._kept.clear()
            self._kept[key] = found
        return found


_footers = _Footers()


def _overlaps(metadata: Any, wanted: Int64s) -> Iterator[tuple[int, Int64s]]:
    """(row group, wanted rows counted from its start) of every group that holds any."""
    counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    starts = np.concatenate([[0], np.cumsum(counts)])
    groups = np.searchsorted(starts, wanted, side="right") - 1
    for group in np.unique(groups).tolist():
        yield group, wanted[groups == group] - starts[group]


def _read_group(parquet: Any, group: int, columns: list[str], rows: Int64s) -> Iterator[Row]:
    position = 0
    batches = parquet.iter_batches(
        BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False
    )
    for batch in batches:
        here = rows[(rows >= position) & (rows < position + len(batch))] - position
        if len(here):
            part = batch.take(here)
            yield from zip(*(part.column(name).to_pylist() for name in columns), strict=True)
        position += len(batch)
        if position > rows[-1]:
            return
