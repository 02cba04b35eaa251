"""Files of a corpus in groups that are worth a task each: a large file alone, small neighbours."""

from collections.abc import Iterator
from typing import NamedTuple

from latentlm_platform.corpora.locating import Listing
from latentlm_platform.corpora.records import PartSource

GROUP_BYTES = 64 * 2**20
GROUP_FILES = 256


class FileGroup(NamedTuple):
    """What one task indexes: some files of a source, for the parts that are wanted of them."""

    source: str
    paths: list[str]
    parts: tuple[PartSource, ...]


def group_files(
    listing: Listing, source: str, parts: tuple[PartSource, ...]
) -> Iterator[FileGroup]:
    """The files in their order."""
    paths: list[str] = []
    together = 0
    for path, size in zip(*(listing.files[c].to_pylist() for c in ("path", "size")), strict=True):
        if paths and (together + size > GROUP_BYTES or len(paths) == GROUP_FILES):
            yield FileGroup(source, paths, parts)
            paths, together = [], 0
        paths.append(path)
        together += size
    yield FileGroup(source, paths, parts)
