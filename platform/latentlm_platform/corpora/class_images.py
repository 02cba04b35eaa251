"""Class-image corpora: folder trees, Parquet and WebDataset tars, as chunks of records.

`open_corpus` lists the files once and indexes where every record lies; a worker then reads one
chunk at a time, opening each of its files once. A record that cannot be read is a record with a
problem: a chunk always holds as many records as the index says.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from latentlm_platform.corpora import (
    byte_ranges,
    class_folders,
    parquet_footers,
    parquet_rows,
    tar_shards,
)
from latentlm_platform.corpora.chunk_index import (
    Naming,
    StoredIndex,
    group_records,
    index_path,
    load_index,
    read_entries,
    write_index,
)
from latentlm_platform.corpora.locating import Listing, list_files, locate
from latentlm_platform.corpora.parquet_footers import Columns
from latentlm_platform.corpora.records import (
    Assembly,
    Labels,
    PartSource,
    Record,
    class_image_parts,
)
from latentlm_platform.errors import UserError
from latentlm_platform.experiment.sections import Corpus

Layout = Literal["folder", "parquet", "webdataset"]
SUFFIXES: dict[str, Layout] = {".parquet": "parquet", ".tar": "webdataset"}


@dataclass(frozen=True, eq=False)
class CorpusIndex:
    """A corpus's chunks. Small: it says where the chunk table lies, so it can go to every task."""

    source: str
    layout: Layout
    digest: str  # sha256 of layout, columns, and each file's path, size and modification time
    chunk_sizes: np.ndarray[Any, np.dtype[np.int64]]
    class_names: tuple[str, ...]
    labels_by_name: bool
    columns: Columns
    parts: tuple[PartSource, ...]
    table: Path

    @property
    def record_count(self) -> int:
        """Records of all chunks, the bad ones too."""
        return int(self.chunk_sizes.sum())

    def read_chunk(self, chunk: int) -> Iterator[Record]:
        """The `chunk_sizes[chunk]` records of a chunk, always in the same order."""
        entries, location = read_entries(self.table, chunk), locate(self.source)
        assembly = Assembly(self.parts, Labels(self.class_names, self.labels_by_name))
        if self.layout == "parquet":
            return parquet_rows.read_records(entries, location, assembly, columns=self.columns)
        return byte_ranges.read_records(entries, location, assembly)


def open_corpus(source: str, *, corpus: Corpus) -> CorpusIndex:
    """Index a folder, file, pattern (`data/train-*.parquet`) or URI; UserError if it cannot be.

    The index is written once and found again as long as no file changes.
    """
    listing = list_files(source)
    layout = _guess_layout(listing, source) if corpus.layout == "auto" else corpus.layout
    listing = _select(listing, layout, source)
    digest = _digest(listing, layout, corpus)
    path = index_path(digest, chunk_records=corpus.chunk_records)
    stored = load_index(path) or _write(path, listing, layout, source=source, corpus=corpus)
    _check_classes(stored.naming, source, layout, classes=corpus.classes)
    return CorpusIndex(
        source=source,
        layout=layout,
        digest=digest,
        chunk_sizes=stored.chunk_sizes,
        class_names=stored.naming.class_names or tuple(map(str, range(corpus.classes))),
        labels_by_name=stored.naming.by_name,
        columns=Columns(corpus.image_column, corpus.label_column),
        parts=class_image_parts(corpus),
        table=stored.path,
    )


def _guess_layout(listing: Listing, source: str) -> Layout:
    suffixes = Counter(PurePosixPath(file.path).suffix.lower() for file in listing.files)
    tables: set[Layout] = {SUFFIXES[suffix] for suffix in suffixes if suffix in SUFFIXES}
    packed = sorted(suffix for suffix in suffixes if suffix in (".tgz", ".gz", ".zst", ".zip"))
    images = any(
        PurePosixPath(file.path).suffix and class_folders.looks_like_image(file.path)
        for file in listing.files
    )
    if len(tables) + images > 1:
        found = ", ".join(sorted([*tables, *(["image files"] if images else [])]))
        raise UserError(
            f"the layout of {source!r} cannot be guessed: it holds {found};"
            " set corpus.layout to folder, parquet or webdataset"
        )
    if tables:
        return tables.pop()
    if not images and packed:
        raise UserError(
            f"{source!r} holds {packed[0]} files, which cannot be read by offset; unpack them"
            " to plain .tar files, Parquet or a folder for each class"
        )
    return "folder"


def _select(listing: Listing, layout: Layout, source: str) -> Listing:
    """Of tables and tars only the files with their extension; of folders everything."""
    if layout == "folder":
        return listing
    files = [
        file
        for file in listing.files
        if SUFFIXES.get(PurePosixPath(file.path).suffix.lower()) == layout
    ]
    if not files:
        suffix = next(suffix for suffix, name in SUFFIXES.items() if name == layout)
        raise UserError(
            f"{source!r} holds no {suffix} files, which corpus.layout {layout} expects;"
            " set corpus.layout: auto or another source"
        )
    return listing._replace(files=files)


def _digest(listing: Listing, layout: Layout, corpus: Corpus) -> str:
    columns = () if layout == "folder" else (corpus.image_column, corpus.label_column)
    state = sha256(repr((layout, *columns, *sorted(listing.folders))).encode())
    for file in listing.files:
        state.update(repr(tuple(file)).encode())
    return state.hexdigest()


def _write(
    path: Path, listing: Listing, layout: Layout, *, source: str, corpus: Corpus
) -> StoredIndex:
    size = corpus.chunk_records
    if layout == "folder":
        names = class_folders.name_classes(listing.files, listing.folders, source=source)
        chunks = group_records(class_folders.list_entries(listing.files), size)
        return write_index(path, chunks, lambda: Naming(names, by_name=True))
    if layout == "webdataset":
        survey = tar_shards.TarSurvey(listing.location, corpus)
        chunks = group_records(survey.list_entries(listing.files), size)
        return write_index(path, chunks, survey.naming)
    tables = parquet_footers.survey_files(listing, corpus=corpus)
    chunks = parquet_footers.list_chunks(tables, chunk_records=size)
    name = partial(
        parquet_footers.name_classes, tables, listing.location, label_column=corpus.label_column
    )
    return write_index(path, chunks, name)


def _check_classes(naming: Naming, source: str, layout: Layout, *, classes: int) -> None:
    names = naming.class_names
    if names is None or len(names) == classes:
        return
    what = "class folders" if layout == "folder" else "classes"
    shown = ", ".join(names[:5]) + (", …" if names[5:] else "")
    raise UserError(
        f"{source!r} has {len(names)} {what} ({shown}) but corpus.classes is {classes};"
        f" set corpus.classes: {len(names)}"
    )
