"""The chunk table of a corpus: an Arrow file with one record batch a chunk, read by memory map.

A chunk is a list of entries, and an entry is where records lie. The table stays on disk (in
$LATENTLM_HOME/indexes, which every node sees), so that a corpus of millions of files is not sent
to each task; the JSON beside it is written last and says that the table is whole.
"""

import functools
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from latentlm_platform.home import home

VERSION = 1  # of the table's layout; another one is another file


class Entry(NamedTuple):
    """Where records lie: the bytes of one record, or rows of a Parquet file.

    `offset` and `size` are bytes in the file; for Parquet the first row and the number of rows.
    `label` is the text that was stored; a `problem` was found already when the index was made.
    """

    path: str
    key: str
    offset: int
    size: int
    label: str | None = None
    problem_kind: str | None = None
    problem_reason: str | None = None


SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("key", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("label", pa.string()),
        ("problem_kind", pa.string()),
        ("problem_reason", pa.string()),
    ]
)


class Chunk(NamedTuple):
    """Entries that are read together, and how many records they are."""

    records: int
    entries: list[Entry]


class Naming(NamedTuple):
    """The names of the classes, where the corpus has them, and whether labels are those names."""

    class_names: tuple[str, ...] | None
    by_name: bool


class StoredIndex(NamedTuple):
    """A chunk table on disk."""

    path: Path
    chunk_sizes: np.ndarray[Any, np.dtype[np.int64]]
    naming: Naming


def index_path(digest: str, *, chunk_records: int) -> Path:
    """The file of a corpus's chunk table."""
    return home() / "indexes" / f"{digest[:32]}-{chunk_records}-v{VERSION}.arrow"


def write_index(path: Path, chunks: Iterator[Chunk], name: Callable[[], Naming]) -> StoredIndex:
    """Write the table chunk by chunk, then its description; both appear whole or not at all.

    `name` is asked when all chunks have passed: labels in tars are known only then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
    sizes = []
    try:
        with pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
            for chunk in chunks:
                columns = zip(*chunk.entries, strict=True)
                arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
                writer.write_batch(pa.record_batch(arrays, schema=SCHEMA))
                sizes.append(chunk.records)
        naming = name()
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    description = {"chunk_sizes": sizes, **naming._asdict()}
    unfinished.write_text(json.dumps(description), encoding="utf-8")
    unfinished.replace(path.with_suffix(".json"))
    return StoredIndex(path, np.array(sizes, np.int64), naming)


def load_index(path: Path) -> StoredIndex | None:
    """The index that was written before, if it is whole."""
    try:
        description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    names = description["class_names"]
    sizes = np.array(description["chunk_sizes"], np.int64)
    return StoredIndex(path, sizes, Naming(names and tuple(names), description["by_name"]))


def read_entries(path: Path, chunk: int) -> list[Entry]:
    """The entries of one chunk."""
    columns = _open_table(path).get_batch(chunk).to_pydict().values()
    return list(itertools.starmap(Entry, zip(*columns, strict=True)))


@functools.lru_cache(maxsize=8)
def _open_table(path: Path) -> Any:
    return pa.ipc.open_file(pa.memory_map(str(path)))


def group_records(entries: Iterator[Entry], size: int) -> Iterator[Chunk]:
    """Chunks of `size` entries that are one record each."""
    while group := list(itertools.islice(entries, size)):
        yield Chunk(len(group), group)
