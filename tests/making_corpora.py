"""Small corpora of every layout for tests, and what is read back from them."""

import io
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from latentlm.media import encode_png
from latentlm_platform.corpora.corpus_index import CorpusIndex, open_corpus
from latentlm_platform.corpora.records import BadRecord, Decoded, Record, decode_record
from latentlm_platform.experiment.sections import Corpus

CLASSES = ("bird", "cat", "dog")
SIZE = 8


def corpus(**fields: Any) -> Corpus:
    given_fields: dict[str, Any] = {
        "source": "x",
        "classes": len(CLASSES),
        "image_size": SIZE,
        "chunk_records": 4,
    }
    return Corpus(**{**given_fields, **fields})


def png(number: int) -> bytes:
    """An image that tells its number: every pixel has that value."""
    return encode_png(np.full((SIZE, SIZE, 3), number, np.uint8))


def noise() -> bytes:
    """An image that does not compress, so that a cut goes through its pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return encode_png(pixels)


def opened(source: object, **fields: object) -> CorpusIndex:
    return open_corpus(str(source), corpus=corpus(**fields))


def decoded(index: CorpusIndex) -> list[Decoded | BadRecord]:
    """Every record, after the laws that hold for every corpus."""
    found = []
    for chunk, size in enumerate(index.chunk_sizes):
        records = list(index.read_chunk(chunk))
        assert len(records) == size
        assert records == list(index.read_chunk(chunk))
        found += [decode_record(record, corpus=corpus()) for record in records]
    assert len(found) == index.record_count
    assert len({record.key for record in found}) == len(found)
    return found


def kinds(index: CorpusIndex) -> Counter[str]:
    return Counter(r.kind if isinstance(r, BadRecord) else "good" for r in decoded(index))


def labels(index: CorpusIndex) -> dict[int, int]:
    """Image number → class, of the good records."""
    good = [record for record in decoded(index) if isinstance(record, Decoded)]
    return {int(record.pixels[0, 0, 0]): record.label for record in good}


def make_folders(root: Path, *, count: int = 12) -> Path:
    for number in range(count):
        path = root / CLASSES[number % 3] / ("nested/deep" if number % 2 else "") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return root


def make_parquet(path: Path, table: pa.Table | None = None, *, group_rows: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = plain_table(12) if table is None else table
    pq.write_table(
        table, path, row_group_size=group_rows, compression="none", write_page_checksum=True
    )
    return path


def plain_table(count: int) -> pa.Table:
    images = [png(number) for number in range(count)]
    return pa.table({"image": images, "label": [number % 3 for number in range(count)]})


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def make_tar(path: Path, members: list[tuple[str, bytes]] | None = None) -> Path:
    if members is None:
        members = [
            member
            for number in range(12)
            for member in (
                (f"{number:04}.png", png(number)),
                (f"{number:04}.cls", str(number % 3).encode()),
            )
        ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            add(tar, name, data)
    return path


def image_bytes(record: Record) -> bytes:
    """The stored image of a good record."""
    (data,) = (part.value for part in record.parts if part.kind == "image")
    assert isinstance(data, bytes)
    return data


EXPECTED = {number: number % 3 for number in range(12)}


def write_class_folders(
    root: Path, *, classes: int, images_a_class: int, size: int = 16, seed: int = 0
) -> Path:
    """A folder tree of small grey images: class c is a bright bar at height c, with noise."""
    generator = np.random.default_rng(seed)
    for label in range(classes):
        folder = root / f"class-{label}"
        folder.mkdir(parents=True)
        for number in range(images_a_class):
            pixels = generator.integers(0, 60, (size, size, 1), dtype=np.uint8)
            top = label * size // classes
            pixels[top : top + size // classes] += 180
            (folder / f"{number:04d}.png").write_bytes(encode_png(pixels))
    return root
