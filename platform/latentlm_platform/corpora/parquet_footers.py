"""What Parquet files hold, read from their footers: columns, row groups, class names and labels.

An image column holds bytes (or {bytes, path}, as Hugging Face's datasets writes it), a label column
numbers or names, a text column text. A file whose footer is broken is one bad record.
"""

import base64
import difflib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from latentlm_platform.corpora.chunk_index import ChunkRows, Entry, Naming, entry_table
from latentlm_platform.corpora.file_groups import FileGroup
from latentlm_platform.corpora.locating import Location, is_lost, locate
from latentlm_platform.corpora.records import PartSource
from latentlm_platform.errors import UserError

MAGIC = b"PAR1"
MAX_FOOTER_BYTES = 256 * 2**20
ARROW_SCHEMA = re.compile(rb"ARROW:schema.{1,8}?([A-Za-z0-9+/=]{16,})", re.DOTALL)
EXTENSION_MARK = b"ARROW:extension:name"
LARGEST = 8  # chunk_records of one row group that are still one chunk
NAMES = pa.dictionary(pa.int32(), pa.string())


class TableFile(NamedTuple):
    """A Parquet file's footer, and the label of each row; or what is broken.

    `labels` is an Arrow dictionary array, null where a row has none; `labels_are_text` is None
    where the corpus has no labels.
    """

    path: str
    group_rows: tuple[int, ...] = ()
    labels: Any = None
    labels_are_text: bool | None = None
    class_names: tuple[str, ...] | None = None
    broken: str | None = None


def survey_files(files: FileGroup) -> list[TableFile]:
    """Read footers and label columns; UserError where a column is not what the parts want."""
    location = locate(files.source)
    return [_survey_file(path, location, files.parts) for path in files.paths]


def _survey_file(path: str, location: Location, parts: tuple[PartSource, ...]) -> TableFile:
    label = next((part.column for part in parts if part.kind == "label"), None)
    try:
        with location.open(path) as file:
            _refuse_extensions(path, read_footer(file))
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            schema, metadata = parquet.schema_arrow, parquet.metadata
            group_rows = tuple(
                metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)
            )
            for part in parts:
                _check_column(path, schema, part)
            if label is None:
                return TableFile(path, group_rows, pa.nulls(sum(group_rows), NAMES))
            kind = schema.field(label).type
            labels = [
                _read_labels(parquet, group, label, location) for group in range(len(group_rows))
            ]
    except UserError:
        raise
    except Exception as error:
        if not is_lost(error, location):
            raise
        return TableFile(path, broken=f"{type(error).__name__}: {error}")
    return TableFile(
        path,
        group_rows,
        _joined(labels),
        labels_are_text=_is_text(kind),
        class_names=_schema_names(schema, label),
    )


class TableSurvey:
    """Goes through surveyed files once; afterwards it knows how their classes are named."""

    def __init__(self, tables: Iterable[TableFile], *, chunk_records: int) -> None:
        self.tables, self.chunk_records = tables, chunk_records
        self._first: TableFile | None = None
        self._broken: TableFile | None = None

    def list_chunks(self) -> Iterator[ChunkRows]:
        """Chunks of whole row groups, file by file."""
        for table in self.tables:
            if table.broken is None:
                self._first = self._first or table
            else:
                self._broken = self._broken or table
            yield from list_chunks(table, chunk_records=self.chunk_records)

    def name_classes(self, labels: list[Any]) -> Naming:
        """Text labels are the names, sorted; beside numbers the names may be in the schema."""
        if self._first is None:
            assert self._broken is not None  # a listing is never empty
            raise UserError(
                f"{self._broken.path} is no readable Parquet file: {self._broken.broken}"
            )
        if self._first.labels_are_text:
            names = {str(label) for label in labels if label is not None}
            return Naming(tuple(sorted(names)), by_name=True)
        return Naming(self._first.class_names, by_name=False)


def list_chunks(table: TableFile, *, chunk_records: int) -> Iterator[ChunkRows]:
    """A file's chunks: one or more whole row groups, small neighbours joined up to `chunk_records`.

    Only a group of more than 8 × `chunk_records` rows is cut, into even parts of at most that:
    reading a part decodes what lies before it in its group.
    """
    if table.broken is not None:
        entry = Entry(table.path, None, [], None, "unreadable_file", table.broken)
        yield ChunkRows(_batch(entry), 1, pa.nulls(1, NAMES))
    for start, stop in _row_ranges(table.group_rows, chunk_records):
        entry = Entry(table.path, None, [start, stop - start])
        yield ChunkRows(_batch(entry), stop - start, table.labels.slice(start, stop - start))


def _batch(entry: Entry) -> pa.RecordBatch:
    (batch,) = entry_table([entry]).to_batches()
    return batch


def _read_labels(parquet: Any, group: int, column: str, location: Location) -> Any:
    """The labels of a row group; without any where the column is broken: its rows are read later
    and are bad records then."""
    try:
        return parquet.read_row_group(group, columns=[column]).column(0)
    except Exception as error:
        if not is_lost(error, location):
            raise
        return pa.chunked_array([pa.nulls(parquet.metadata.row_group(group).num_rows, NAMES)])


def _joined(columns: list[Any]) -> Any:
    """Columns as one dictionary array, whose dictionary holds each label once."""
    known: dict[Any, int] = {}
    places = [pa.array([], pa.int32())]
    for column in columns:
        for chunk in column.chunks:
            encoded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
            met = [known.setdefault(v, len(known)) for v in encoded.dictionary.to_pylist()]
            places.append(pa.array(met, pa.int32()).take(encoded.indices))
    return pa.DictionaryArray.from_arrays(pa.concat_arrays(places), pa.array(list(known)))


def read_footer(file: Any) -> bytes:
    """The footer's bytes and no more; ArrowInvalid where there is none."""
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


def _check_column(path: str, schema: Any, part: PartSource) -> None:
    setting, name = f"corpus.{part.kind}_column", part.column
    if name not in schema.names:
        near = difflib.get_close_matches(name, schema.names, 1, cutoff=0.3)
        hint = f"; nearest is {near[0]!r}" if near else ""
        raise UserError(
            f"{path} has no column {name!r}{hint}; its columns are"
            f" {', '.join(schema.names[:12])}: set {setting}"
        )
    kind = schema.field(name).type
    fits, expected = _fits(kind, part)
    if not fits:
        raise UserError(f"column {name!r} of {path} is {kind}; expected {expected}: set {setting}")


def _fits(kind: Any, part: PartSource) -> tuple[bool, str]:
    """Whether a column's type can be read as the part, and what can."""
    if part.kind == "text":
        return _is_text(kind), "text"
    if part.kind == "label":
        numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        return numbers or _is_text(kind), "whole numbers or class names"
    if pa.types.is_struct(kind) and "bytes" in [field.name for field in kind]:
        kind = kind.field("bytes").type
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return is_bytes, f"the bytes of {part.kind} files (binary, or a struct with `bytes`)"


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


def _row_ranges(group_rows: tuple[int, ...], chunk_records: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows: whole groups, small neighbours together; a huge group in even parts."""
    start = stop = 0
    for rows in group_rows:
        if stop > start and stop - start + rows > chunk_records:
            yield from _even_parts(start, stop, LARGEST * chunk_records)
            start = stop
        stop += rows
    yield from _even_parts(start, stop, LARGEST * chunk_records)


def _even_parts(start: int, stop: int, most: int) -> Iterator[tuple[int, int]]:
    parts = -(-(stop - start) // most)
    edges = [start + (stop - start) * part // parts for part in range(parts)] + [stop]
    yield from itertools.pairwise(edges) if parts else ()
