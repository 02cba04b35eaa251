"""A corpus's index: how its records are found in folder trees, Parquet files and WebDataset tars.

`open_corpus` lists the files and indexes where every record lies, once; a worker then reads one
chunk at a time, opening each of its files once. A record that cannot be read is a record with a
problem: a chunk always holds as many records as the index says.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import pyarrow.compute as pc

from latentlm_platform.corpora import (
    byte_ranges,
    class_folders,
    parquet_footers,
    parquet_rows,
    tar_shards,
)
from latentlm_platform.corpora.chunk_index import (
    Int32s,
    Int64s,
    Naming,
    StoredIndex,
    group_records,
    index_folder,
    load_index,
    map_array,
    read_entries,
    write_index,
)
from latentlm_platform.corpora.file_groups import group_files
from latentlm_platform.corpora.locating import Listing, Meter, list_files, locate
from latentlm_platform.corpora.records import (
    Assembly,
    Labels,
    PartSource,
    Record,
    class_image_parts,
)
from latentlm_platform.corpora.spreading import spread
from latentlm_platform.errors import UserError
from latentlm_platform.experiment.sections import Corpus

Layout = Literal["folder", "parquet", "webdataset"]
SUFFIXES: dict[str, Layout] = {".parquet": "parquet", ".tar": "webdataset"}


@dataclass(frozen=True, eq=False)
class CorpusIndex:
    """A corpus's chunks. Small: it says where the index lies, so it can go to every task."""

    source: str
    layout: Layout
    digest: str  # sha256 of layout, parts, and each file's path, size and modification time
    folder: Path
    record_count: int  # of all chunks, the bad ones too
    class_names: tuple[str, ...]
    labels_by_name: bool
    parts: tuple[PartSource, ...]

    @property
    def chunk_sizes(self) -> Int64s:
        """Records of each chunk, by memory map."""
        return map_array(self.folder / "chunk_sizes.npy")

    @property
    def labels(self) -> Int32s:
        """The class of each record of the corpus, −1 where it has none; by memory map."""
        return map_array(self.folder / "labels.npy")

    def read_chunk(
        self, chunk: int, rows: Int64s | None = None, meter: Meter | None = None
    ) -> Iterator[Record]:
        """The `chunk_sizes[chunk]` records of a chunk, or those in `rows` (sorted), in order.

        Only the bytes of those rows are read where the layout allows it; `meter` counts them.
        """
        labels = Labels.of(self.class_names, classes=0, by_name=self.labels_by_name)
        assembly = Assembly(self.parts, labels)
        if self.layout != "parquet":
            entries = read_entries(self.folder, chunk, rows)
            return byte_ranges.read_records(entries, locate(self.source), assembly, meter=meter)
        (entry,) = read_entries(self.folder, chunk)
        return parquet_rows.read_records(
            entry, self.source, assembly, digest=self.digest, rows=rows, meter=meter
        )


def open_corpus(
    source: str, *, corpus: Corpus, parts: tuple[PartSource, ...] | None = None
) -> CorpusIndex:
    """Index a folder, file, pattern (`data/train-*.parquet`) or URI; UserError if it cannot be.

    The index is written once and found again as long as no file changes. `parts` are what its
    records are made of: by default those of class images.
    """
    parts = class_image_parts(corpus) if parts is None else parts
    listing = list_files(source)
    layout = _guess_layout(listing, source) if corpus.layout == "auto" else corpus.layout
    listing = _select(listing, layout, source)
    digest = listing.digest(layout, parts)
    folder = index_folder(digest, chunk_records=corpus.chunk_records)
    stored = load_index(folder) or _write(folder, listing, layout, source, corpus, parts)
    if any(part.kind == "label" for part in parts):
        _check_classes(stored.naming, source, layout, classes=corpus.classes)
    names = stored.naming.class_names or tuple(map(str, range(corpus.classes)))
    return CorpusIndex(
        source, layout, digest, folder, stored.records, names, stored.naming.by_name, parts
    )


def _guess_layout(listing: Listing, source: str) -> Layout:
    paths = listing.files["path"]
    named = paths.filter(pc.match_substring_regex(paths, r"\.[^./]*$"))
    endings = pc.replace_substring_regex(named, r"^.*(\.[^./]*)$", r"\1")
    suffixes = {ending.lower() for ending in pc.unique(endings).to_pylist()}
    tables: set[Layout] = {SUFFIXES[suffix] for suffix in suffixes if suffix in SUFFIXES}
    packed = sorted(suffix for suffix in suffixes if suffix in (".tgz", ".gz", ".zst", ".zip"))
    images = class_folders.hold_images(paths)
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
    suffix = next(suffix for suffix, name in SUFFIXES.items() if name == layout)
    fits = pc.ends_with(pc.utf8_lower(listing.files["path"]), suffix)
    files = listing.files.filter(fits)
    if not len(files):
        raise UserError(
            f"{source!r} holds no {suffix} files, which corpus.layout {layout} expects;"
            " set corpus.layout: auto or another source"
        )
    return listing._replace(files=files)


def _write(
    folder: Path,
    listing: Listing,
    layout: Layout,
    source: str,
    corpus: Corpus,
    parts: tuple[PartSource, ...],
) -> StoredIndex:
    size = corpus.chunk_records
    if layout == "folder":
        names = class_folders.name_classes(listing.files["path"], listing.folders, source=source)
        chunks = group_records([class_folders.list_entries(listing.files)], size)
        return write_index(folder, chunks, lambda _: Naming(names, by_name=True))
    groups = group_files(listing, source, parts)
    if layout == "webdataset":
        chunks = group_records(spread(tar_shards.list_entries, groups), size)
        return write_index(folder, chunks, tar_shards.name_classes)
    tables = chain.from_iterable(spread(parquet_footers.survey_files, groups))
    survey = parquet_footers.TableSurvey(tables, chunk_records=size)
    return write_index(folder, survey.list_chunks(), survey.name_classes)


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
