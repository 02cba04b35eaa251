"""The index of a corpus on disk: its chunk table, the records of each chunk, each record's class.

A folder of $LATENTLM_HOME/indexes, which every node sees: `chunks.arrow` (one record batch a chunk,
read by range), `chunk_sizes.npy` (int64), `labels.npy` (int32 a record, −1 where it has no class),
both memory-mapped, and `index.json`, written last: it says that the index is whole. So an index
costs a process next to nothing, whatever the size of the corpus.
"""

import functools
import itertools
import json
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latentlm_platform.corpora.records import whole_number
from latentlm_platform.home import home

CODES = range(2**31)  # what a label code may be: int32
VERSION = 3  # of the layout; another one is another folder
BLOCK_RECORDS = 2**20

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


class Entry(NamedTuple):
    """Where records lie: the bytes of one record's parts, or rows of a Parquet file.

    `ranges` holds offset and size of each part that is bytes, in the order of the corpus's parts;
    for Parquet the first row and the number of rows. `key` names a record in a tar; elsewhere the
    path does. `label` is the text that was stored; a `problem` was found when the index was made.
    """

    path: str
    key: str | None
    ranges: list[int]
    label: str | None = None
    problem_kind: str | None = None
    problem_reason: str | None = None

    @property
    def name(self) -> str:
        """The record's key in the corpus."""
        return self.path if self.key is None else f"{self.path}#{self.key}"


SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("key", pa.string()),
        ("ranges", pa.list_(pa.int64())),
        ("label", pa.string()),
        ("problem_kind", pa.string()),
        ("problem_reason", pa.string()),
    ]
)


class ChunkRows(NamedTuple):
    """A chunk on its way to disk: entries (`SCHEMA`), its records, their stored labels (Arrow)."""

    entries: pa.RecordBatch
    records: int
    labels: Any


class Naming(NamedTuple):
    """The names of the classes, where the corpus has them, and whether labels are those names."""

    class_names: tuple[str, ...] | None
    by_name: bool


class StoredIndex(NamedTuple):
    """An index on disk: its folder, how classes are named, how many records there are."""

    folder: Path
    naming: Naming
    records: int


def index_folder(digest: str, *, chunk_records: int) -> Path:
    """The folder of a corpus's index."""
    return home() / "indexes" / f"{digest[:32]}-{chunk_records}-v{VERSION}"


def entry_table(entries: Iterable[Entry]) -> pa.Table:
    """Entries as a table of `SCHEMA`."""
    columns = list(zip(*entries, strict=True)) or [()] * len(SCHEMA)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
    return pa.table(arrays, schema=SCHEMA)


def group_records(tables: Iterable[pa.Table], size: int) -> Iterator[ChunkRows]:
    """Chunks of `size` entries that are one record each, across the tables."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) < size:
            continue
        joined = pa.concat_tables(waiting)
        whole = len(joined) // size * size
        for start in range(0, whole, size):
            yield _one_record_each(joined.slice(start, size))
        waiting = [joined.slice(whole)]
    rest = pa.concat_tables([*waiting, SCHEMA.empty_table()])
    if len(rest):
        yield _one_record_each(rest)


def _one_record_each(table: pa.Table) -> ChunkRows:
    (entries,) = table.combine_chunks().to_batches()
    return ChunkRows(entries, len(table), entries.column("label"))


def write_index(
    folder: Path,
    chunks: Iterable[ChunkRows],
    name: Callable[[list[Any]], Naming],
) -> StoredIndex:
    """Write the chunks as they come, then the description; a crash leaves nothing that counts.

    `name` is asked, with the different labels that were met, when all chunks have passed.
    """
    working = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.unfinished")
    working.mkdir(parents=True)
    try:
        sizes: list[int] = []
        codes = _Codes(working / "codes")
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.ipc.new_file(str(working / "chunks.arrow"), SCHEMA, options=options) as writer:
            for chunk in chunks:
                writer.write_batch(chunk.entries)
                codes.add(chunk.labels)
                sizes.append(chunk.records)
        naming = name(list(codes.known))
        np.save(working / "chunk_sizes.npy", np.array(sizes, np.int64))
        codes.save(working / "labels.npy", naming)
        description = {"records": sum(sizes), **naming._asdict()}
        (working / "index.json").write_text(json.dumps(description), encoding="utf-8")
        folder.mkdir(exist_ok=True)
        for file in ("chunks.arrow", "chunk_sizes.npy", "labels.npy", "index.json"):
            (working / file).replace(folder / file)
    finally:
        shutil.rmtree(working, ignore_errors=True)
    for opened in (_open_table, map_array):
        opened.cache_clear()
    return StoredIndex(folder, naming, sum(sizes))


class _Codes:
    """The label of every record, as its place among the labels met so far; written as they come."""

    def __init__(self, path: Path) -> None:
        self.known: dict[Any, int] = {}
        self._path = path
        self._file = path.open("wb")
        self._last: Any = None  # the chunks of one file share their dictionary
        self._numbers = np.empty(0, np.int32)

    def add(self, labels: Any) -> None:
        if not pa.types.is_dictionary(labels.type):
            labels = labels.dictionary_encode()
        if self._last is None or not labels.dictionary.equals(self._last):
            met = [self.known.setdefault(x, len(self.known)) for x in labels.dictionary.to_pylist()]
            self._last, self._numbers = labels.dictionary, np.array([*met, -1], np.int32)
        places = labels.indices.fill_null(len(self._last)).to_numpy(zero_copy_only=False)
        self._file.write(self._numbers[places].tobytes())

    def save(self, path: Path, naming: Naming) -> None:
        """Class numbers as an array on disk; −1 for a label that names no class.

        How many classes an experiment expects does not count: the index outlives its mistakes.
        """
        self._file.close()
        places = {name: place for place, name in enumerate(naming.class_names or ())}
        numbers = [places.get(str(x)) if naming.by_name else whole_number(x) for x in self.known]
        table = np.array([n if n in CODES else -1 for n in numbers] + [-1], np.int32)
        count = self._path.stat().st_size // 4
        found = np.memmap(self._path, np.int32, "r") if count else np.empty(0, np.int32)
        kept = np.lib.format.open_memmap(path, "w+", np.int32, (count,))
        for start in range(0, count, BLOCK_RECORDS):
            block = slice(start, start + BLOCK_RECORDS)
            kept[block] = table[found[block]]
        self._path.unlink()


def load_index(folder: Path) -> StoredIndex | None:
    """The index that was written before, if it is whole."""
    try:
        description = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    names = description["class_names"]
    naming = Naming(names and tuple(names), description["by_name"])
    return StoredIndex(folder, naming, description["records"])


def read_entries(folder: Path, chunk: int, rows: Int64s | None = None) -> list[Entry]:
    """The entries of one chunk, or those in `rows` of it."""
    batch = _open_table(folder / "chunks.arrow").get_batch(chunk)
    if rows is not None:
        batch = batch.take(pa.array(rows))
    return list(itertools.starmap(Entry, zip(*batch.to_pydict().values(), strict=True)))


@functools.lru_cache(maxsize=64)
def map_array(path: Path) -> npt.NDArray[Any]:
    """An .npy file by memory map: pages of it come and go, this process holds none."""
    mapped = np.load(path, mmap_mode="r")
    return np.asarray(mapped)


@functools.lru_cache(maxsize=8)
def _open_table(path: Path) -> Any:
    return pa.ipc.open_file(pa.memory_map(str(path)))
