"""Folder trees: the first level names the class, everything below it is an image of that class."""

import hashlib
from collections.abc import Iterator
from pathlib import PurePosixPath

from latentlm_platform.corpora.chunk_index import Entry
from latentlm_platform.corpora.locating import StoredFile
from latentlm_platform.errors import UserError

IMAGE_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jfif", ""]
)


def looks_like_image(path: str) -> bool:
    """By name: an image's extension, or none (files named by their hash)."""
    return PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES


def name_classes(
    files: list[StoredFile], folders: frozenset[str], *, source: str
) -> tuple[str, ...]:
    """The class folders, sorted; UserError for one without an image, or for none at all.

    `folders` are the first-level folders, also those that hold nothing.
    """
    images = {f.path.split("/")[0] for f in files if "/" in f.path and looks_like_image(f.path)}
    if not images:
        raise UserError(
            f"{source!r} holds no images in class folders;"
            " expected CLASS/IMAGE files such as cat/0001.jpg, Parquet files or WebDataset tars"
        )
    held = {file.path.split("/")[0] for file in files if "/" in file.path}
    empty = sorted((folders | held) - images)
    if empty:
        raise UserError(
            f"class folder {empty[0]!r} of {source!r} holds no images"
            f"{f' (and {len(empty) - 1} more)' if empty[1:] else ''};"
            " put images into it or remove it"
        )
    return tuple(sorted(images))


def list_entries(files: list[StoredFile]) -> Iterator[Entry]:
    """One entry a file, in an order that mixes the classes (by the hash of the path).

    Files beside the class folders have no class: images among them are bad records, others
    (README.md, LICENSE) are no records.
    """
    records = [file.path for file in files if _is_record(file.path)]
    sizes = {file.path: file.size for file in files}
    for path in sorted(records, key=lambda path: hashlib.sha256(path.encode()).digest()):
        label = path.split("/")[0] if "/" in path else None
        yield Entry(path, path, 0, sizes[path], label)


def _is_record(path: str) -> bool:
    return "/" in path or (bool(PurePosixPath(path).suffix) and looks_like_image(path))
