"""An index of ten million records in twenty thousand chunks, as indexing would have written it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from latentlm.media import encode_png
from latentlm_platform.corpora.chunk_index import (
    ChunkRows,
    Entry,
    StoredIndex,
    entry_table,
    write_index,
)
from latentlm_platform.corpora.division import open_division
from latentlm_platform.corpora.parquet_footers import Naming

CHUNKS, CHUNK_RECORDS, CLASSES = 20_000, 500, 1_000
FILE_CHUNKS = 100
FRACTION = 0.001


def write_large_index(folder: Path, *, one_file: bool = False) -> StoredIndex:
    """The index with its division; with `one_file` every chunk lies in `train.parquet`."""
    names = tuple(f"class-{number}" for number in range(CLASSES))
    chunks = _chunks(one_file=one_file)
    stored = write_index(folder, chunks, lambda _: Naming(names, True))
    open_division(folder, seed=0, fraction=FRACTION)
    return stored


def _chunks(*, one_file: bool) -> Iterator[ChunkRows]:
    names = pa.array([f"class-{number}" for number in range(CLASSES)])
    for chunk in range(CHUNKS):
        places = (np.arange(CHUNK_RECORDS, dtype=np.int32) + chunk * CHUNK_RECORDS) % CLASSES
        start = chunk % FILE_CHUNKS * CHUNK_RECORDS
        path = "train.parquet" if one_file else f"train-{chunk // FILE_CHUNKS:05}.parquet"
        (batch,) = entry_table([Entry(path, None, [start, CHUNK_RECORDS])]).to_batches()
        labels = pa.DictionaryArray.from_arrays(pa.array(places), names)
        yield ChunkRows(batch, CHUNK_RECORDS, labels)


def write_its_file(folder: Path, *, image_size: int) -> None:
    """`train.parquet`, which a large index of one file is of: `FILE_CHUNKS` row groups."""
    pixels = np.arange(image_size**2, dtype=np.uint8).reshape(image_size, image_size, 1)
    rows = FILE_CHUNKS * CHUNK_RECORDS
    table = pa.table(
        {
            "image": pa.array([encode_png(pixels)] * rows, pa.binary()),
            "label": pa.array([f"class-{row % CLASSES}" for row in range(rows)]),
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "train.parquet", row_group_size=CHUNK_RECORDS)
