"""What Parquet files of images hold, read from their footers: columns, row groups, class names.

The image column holds bytes (or {bytes, path}, as Hugging Face's datasets writes it), the label
column numbers or names. A file whose footer is broken is one bad record.
"""

import base64
import difflib
import itertools
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from latentlm_platform.corpora.chunk_index import Chunk, Entry, Naming
from latentlm_platform.corpora.locating import Listing, Location, is_lost
from latentlm_platform.errors import UserError
from latentlm_platform.experiment.sections import Corpus

READERS = 8
MAGIC = b"PAR1"
MAX_FOOTER_BYTES = 256 * 2**20
ARROW_SCHEMA = re.compile(rb"ARROW:schema.{1,8}?([A-Za-z0-9+/=]{16,})", re.DOTALL)
EXTENSION_MARK = b"ARROW:extension:name"


class Columns(NamedTuple):
    """The two columns that are read."""

    image: str
    label: str


class TableFile(NamedTuple):
    """A Parquet file's footer: rows of each group, the label's type, or what is broken."""

    path: str
    group_rows: tuple[int, ...] = ()
    labels_are_text: bool = False
    class_names: tuple[str, ...] | None = None
    broken: str | None = None


def survey_files(listing: Listing, *, corpus: Corpus) -> list[TableFile]:
    """Read every footer; UserError where a file has not the columns that the corpus names."""
    columns = Columns(corpus.image_column, corpus.label_column)
    with ThreadPoolExecutor(READERS) as pool:
        paths = [file.path for file in listing.files]
        tables = list(pool.map(lambda p: _survey_file(p, listing.location, columns), paths))
    if all(table.broken is not None for table in tables):
        raise UserError(f"{tables[0].path} is no readable Parquet file: {tables[0].broken}")
    return tables


def list_chunks(tables: list[TableFile], *, chunk_records: int) -> Iterator[Chunk]:
    """Chunks of about `chunk_records` rows that cross row groups only to join small ones."""
    for table in tables:
        if table.broken is not None:
            entry = Entry(table.path, table.path, 0, 1, None, "unreadable_file", table.broken)
            yield Chunk(1, [entry])
        for start, stop in _row_ranges(table.group_rows, chunk_records):
            yield Chunk(stop - start, [Entry(table.path, table.path, start, stop - start)])


def name_classes(tables: list[TableFile], location: Location, *, label_column: str) -> Naming:
    """Text labels are the names, sorted; beside numbers the names may be in the file's schema."""
    readable = [table for table in tables if table.broken is None]
    if not readable[0].labels_are_text:
        return Naming(readable[0].class_names, by_name=False)
    names: set[str] = set()
    for table in readable:
        names.update(_distinct_labels(table, location, label_column))
    return Naming(tuple(sorted(names)), by_name=True)


def _survey_file(path: str, location: Location, columns: Columns) -> TableFile:
    try:
        with location.open(path) as file:
            _refuse_extensions(path, _read_footer(file))
            table = pq.ParquetFile(file)
            schema, metadata = table.schema_arrow, table.metadata
            group_rows = tuple(
                metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)
            )
    except UserError:
        raise
    except Exception as error:
        if not is_lost(error, location):
            raise
        return TableFile(path, broken=f"{type(error).__name__}: {error}")
    _check_columns(path, schema, columns)
    return TableFile(
        path,
        group_rows,
        labels_are_text=_is_text(schema.field(columns.label).type),
        class_names=_schema_names(schema, columns.label),
    )


def _read_footer(file: Any) -> bytes:
    size = file.size()
    file.seek(max(0, size - 8))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != MAGIC or not 0 < length <= min(size - 12, MAX_FOOTER_BYTES):
        raise pa.ArrowInvalid("no Parquet footer at the end: the file was cut, or is no Parquet")
    file.seek(size - 8 - length)
    footer: bytes = file.read(length)
    file.seek(0)
    return footer


def _refuse_extensions(path: str, footer: bytes) -> None:
    """Before pyarrow reads the schema: a registered extension type may unpickle its metadata."""
    found = ARROW_SCHEMA.search(footer)
    encoded = found.group(1) if found else b""
    schema = base64.b64decode(encoded + b"=" * (-len(encoded) % 4))
    if EXTENSION_MARK in schema:
        raise UserError(
            f"{path} has columns of an Arrow extension type (such as pickled Python objects),"
            " which are never loaded; write the file again with plain bytes and integers"
        )


def _check_columns(path: str, schema: Any, columns: Columns) -> None:
    for setting, name in (("image_column", columns.image), ("label_column", columns.label)):
        if name not in schema.names:
            near = difflib.get_close_matches(name, schema.names, 1, cutoff=0.3)
            hint = f"; nearest is {near[0]!r}" if near else ""
            raise UserError(
                f"{path} has no column {name!r}{hint}; its columns are"
                f" {', '.join(schema.names[:12])}: set corpus.{setting}"
            )
    kind = schema.field(columns.image).type
    if pa.types.is_struct(kind) and "bytes" in [field.name for field in kind]:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(
            f"column {columns.image!r} of {path} is {kind}; expected the bytes of image files"
            " (binary, or a struct with `bytes`): set corpus.image_column"
        )
    kind = schema.field(columns.label).type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or _is_text(kind)):
        raise UserError(
            f"column {columns.label!r} of {path} is {kind}; expected whole numbers or class names:"
            " set corpus.label_column"
        )


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _schema_names(schema: Any, label_column: str) -> tuple[str, ...] | None:
    """Class names as Hugging Face's datasets writes them beside integer labels."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        names = features[label_column]["names"]
        return tuple(str(name) for name in names)
    except (KeyError, TypeError, ValueError):
        return None


def _distinct_labels(table: TableFile, location: Location, label_column: str) -> set[str]:
    names: set[str] = set()
    with location.open(table.path) as file:
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        for group in range(len(table.group_rows)):
            try:
                column = parquet.read_row_group(group, columns=[label_column]).column(0)
                names.update(str(name) for name in column.unique().to_pylist() if name is not None)
            except Exception as error:  # its rows become bad records when they are read
                if not is_lost(error, location):
                    raise
    return names


def _row_ranges(group_rows: tuple[int, ...], chunk_records: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows: a large group in even parts, small neighbours together."""
    start = stop = 0
    for rows in group_rows:
        if stop > start and stop - start + rows > chunk_records:
            yield from _even_parts(start, stop, chunk_records)
            start = stop
        stop += rows
    yield from _even_parts(start, stop, chunk_records)


def _even_parts(start: int, stop: int, chunk_records: int) -> Iterator[tuple[int, int]]:
    parts = -(-(stop - start) // chunk_records)
    edges = [start + (stop - start) * part // parts for part in range(parts)] + [stop]
    yield from itertools.pairwise(edges) if parts else ()
