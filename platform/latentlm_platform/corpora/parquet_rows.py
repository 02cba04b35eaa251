"""Rows of Parquet files as records. Row order is kept: files sorted by class are shuffled before.

A broken row group makes its rows bad records; pages are held against their checksums where the
file has them. Reading part of a row group decodes what lies before it, so groups of about
`chunk_records` rows are best.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq

from latentlm_platform.corpora.chunk_index import Entry
from latentlm_platform.corpora.locating import Location, is_lost
from latentlm_platform.corpora.parquet_footers import Columns
from latentlm_platform.corpora.records import Assembly, Record

BATCH_ROWS = 64
BUFFER_BYTES = 4 * 2**20

Row = tuple[Any, Any]  # (image, label), or (the exception, None) for a row that is lost


def read_records(
    entries: list[Entry], location: Location, assembly: Assembly, *, columns: Columns
) -> Iterator[Record]:
    """The rows of each entry, one record a row; rows that cannot be read are bad records."""
    for entry in entries:
        if entry.problem_kind is not None:
            yield Record(entry.key, problem=(entry.problem_kind, entry.problem_reason or ""))
            continue
        stop = entry.offset + entry.size
        rows = _read_rows(entry.path, location, columns, start=entry.offset, stop=stop)
        for row, (image, label) in enumerate(rows, start=entry.offset):
            key = f"{entry.path}#{row}"
            if isinstance(image, Exception):
                reason = f"{type(image).__name__}: {image}"
                yield Record(key, problem=("unreadable_file", reason))
            else:
                data = image.get("bytes") if isinstance(image, dict) else image
                values = [label if s.kind == "label" else data for s in assembly.sources]
                yield assembly.record(key, values)


def _read_rows(
    path: str, location: Location, columns: Columns, *, start: int, stop: int
) -> Iterator[Row]:
    """Rows [start, stop), exactly as many, whatever is broken."""
    try:
        file = location.open(path)
        parquet = pq.ParquetFile(file, page_checksum_verification=True, buffer_size=BUFFER_BYTES)
    except Exception as error:
        if not is_lost(error, location):
            raise
        yield from itertools.repeat((error, None), stop - start)
        return
    with file:
        for group, first, last in _overlaps(parquet.metadata, start, stop):
            done, lost = 0, Exception(f"row group {group} ends too early")
            try:
                for row in _read_group(parquet, group, columns, first=first, last=last):
                    yield row
                    done += 1
            except Exception as error:
                if not is_lost(error, location):
                    raise
                lost = error
            yield from itertools.repeat((lost, None), last - first - done)


def _overlaps(metadata: Any, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(row group, first row in it, end in it) of every group that rows [start, stop) touch."""
    group_start = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        first, last = max(start - group_start, 0), min(stop - group_start, rows)
        if first < last:
            yield group, first, last
        group_start += rows


def _read_group(
    parquet: Any, group: int, columns: Columns, *, first: int, last: int
) -> Iterator[Row]:
    position = 0
    batches = parquet.iter_batches(
        BATCH_ROWS, row_groups=[group], columns=list(columns), use_threads=False
    )
    for batch in batches:
        begin, end = max(first - position, 0), min(last - position, len(batch))
        if begin < end:
            part = batch.slice(begin, end - begin)
            images, labels = (part.column(name).to_pylist() for name in columns)
            yield from zip(images, labels, strict=True)
        position += len(batch)
        if position >= last:
            return
