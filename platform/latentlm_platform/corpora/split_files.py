"""Splits of a fetched corpus as Parquet: key, PNG bytes and class of each image."""

import json
import os
from collections.abc import Iterable
from hashlib import file_digest
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from latentlm.media import Pixels, encode_png

GROUP_ROWS = 512
MODIFIED_SECONDS = 1_577_836_800  # one time for every machine: the corpus digest holds it


class Image(NamedTuple):
    """One image of a corpus on its way to disk."""

    key: str
    pixels: Pixels
    label: int


def write_split(
    folder: Path, images: Iterable[Image], *, class_names: tuple[str, ...]
) -> dict[str, Any]:
    """Write FOLDER/00000.parquet; its record count and sha256. Same images, same bytes.

    Class names go into the schema as Hugging Face's datasets writes them, and pages carry
    checksums, so that a flipped bit is an error and not another image.
    """
    folder.mkdir(parents=True)
    path = folder / "00000.parquet"
    label = {"names": list(class_names), "_type": "ClassLabel"}
    features = {"key": {"_type": "Value", "dtype": "string"}, "image": {"_type": "Image"}}
    about = {"info": {"features": {**features, "label": label}}}
    schema = pa.schema(
        [("key", pa.string()), ("image", pa.binary()), ("label", pa.int32())],
        metadata={"huggingface": json.dumps(about)},
    )
    count = 0
    with pq.ParquetWriter(path, schema, compression="none", write_page_checksum=True) as writer:
        for group in _groups(images):
            rows = [(image.key, encode_png(image.pixels), image.label) for image in group]
            arrays = [
                pa.array(column, field.type)
                for column, field in zip(zip(*rows, strict=True), schema, strict=True)
            ]
            writer.write_table(pa.table(arrays, schema=schema), row_group_size=GROUP_ROWS)
            count += len(rows)
    os.utime(path, (MODIFIED_SECONDS, MODIFIED_SECONDS))
    with path.open("rb") as file:
        return {"records": count, "sha256": file_digest(file, "sha256").hexdigest()}


def _groups(images: Iterable[Image]) -> Iterable[list[Image]]:
    group: list[Image] = []
    for image in images:
        group.append(image)
        if len(group) == GROUP_ROWS:
            yield group
            group = []
    if group:
        yield group
