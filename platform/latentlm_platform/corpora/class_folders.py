"""Folder trees: the first level names the class, everything below it is an image of that class."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentlm_platform.corpora.chunk_index import SCHEMA
from latentlm_platform.corpora.keyed_numbers import keyed_numbers
from latentlm_platform.errors import UserError

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "jfif")
WITH_EXTENSION = rf"(?i)[^/]\.({'|'.join(EXTENSIONS)})$"
IMAGE = rf"{WITH_EXTENSION}|(^|/)[^/.]+$"  # or no extension: files named by their hash


def hold_images(paths: Any) -> bool:
    """Whether any of the paths (an Arrow column) has an image's extension."""
    return bool(pc.any(pc.match_substring_regex(paths, WITH_EXTENSION)).as_py())


def name_classes(paths: Any, folders: frozenset[str], *, source: str) -> tuple[str, ...]:
    """The class folders, sorted; UserError for one without an image, or for none at all.

    `folders` are the first-level folders, also those that hold nothing.
    """
    inside = paths.filter(pc.match_substring(paths, "/"))
    images = set(_first_level(inside.filter(pc.match_substring_regex(inside, IMAGE))))
    if not images:
        raise UserError(
            f"{source!r} holds no images in class folders;"
            " expected CLASS/IMAGE files such as cat/0001.jpg, Parquet files or WebDataset tars"
        )
    empty = sorted((folders | set(_first_level(inside))) - images)
    if empty:
        raise UserError(
            f"class folder {empty[0]!r} of {source!r} holds no images"
            f"{f' (and {len(empty) - 1} more)' if empty[1:] else ''};"
            " put images into it or remove it"
        )
    return tuple(sorted(images))


def list_entries(files: pa.Table) -> pa.Table:
    """One entry a file, in an order that mixes the classes, keyed by the file's place in the list.

    Files beside the class folders have no class: images among them are bad records, others
    (README.md, LICENSE) are no records.
    """
    paths = files["path"]
    inside = pc.match_substring(paths, "/")
    files = files.filter(pc.or_(inside, pc.match_substring_regex(paths, WITH_EXTENSION)))
    order = np.argsort(keyed_numbers(0, np.arange(len(files))), kind="stable")
    files = files.take(order).combine_chunks()
    paths = files["path"].cast(pa.string())
    folder = pc.replace_substring_regex(paths, "/.*$", "")
    label = pc.if_else(pc.match_substring(paths, "/"), folder, None)
    ranges = np.stack([np.zeros(len(files), np.int64), files["size"].to_numpy()], axis=1)
    starts = np.arange(0, 2 * len(files) + 1, 2, dtype=np.int32)
    nothing = pa.nulls(len(files), pa.string())
    columns = {
        "path": paths,
        "key": nothing,
        "ranges": pa.ListArray.from_arrays(starts, ranges.reshape(-1)),
        "label": label,
        "problem_kind": nothing,
        "problem_reason": nothing,
    }
    return pa.table(columns, schema=SCHEMA)


def _first_level(paths: Any) -> list[str]:
    names: list[str] = pc.unique(pc.replace_substring_regex(paths, "/.*$", "")).to_pylist()
    return names
