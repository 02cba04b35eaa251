"""WebDataset tars: the members of one key are a record, as `0001.jpg` and `0001.cls`.

Only headers and labels are read to make the index, and images later by their offset: nothing is
unpacked to disk, so that a member called `../../x` is a key and nothing else. Keys are grouped over
the whole tar, so that members in any order make whole records.
"""

import io
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from latentlm_platform.corpora.chunk_index import Entry, Naming
from latentlm_platform.corpora.locating import Location, StoredFile, is_lost
from latentlm_platform.experiment.sections import Corpus

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
LABEL_EXTENSION = "cls"
MAX_HEADER_BYTES = 2**20
MAX_LABEL_BYTES = 4096
REMOTE_BUFFER_BYTES = 4 * 2**20  # headers lie between images: reading on beats asking again
READERS = 8


@dataclass
class TarSurvey:
    """Goes through tars once; afterwards it knows the labels that it met."""

    location: Location
    corpus: Corpus
    labels: set[str] = field(default_factory=set)

    def list_entries(self, files: list[StoredFile]) -> Iterator[Entry]:
        """One entry a key, tar by tar; what is broken is an entry with its problem."""
        with ThreadPoolExecutor(READERS) as pool:
            for entries in pool.map(self._list_tar, files):
                self.labels.update(entry.label for entry in entries if entry.label is not None)
                yield from entries

    def naming(self) -> Naming:
        """Labels are numbers, or names if most of the different ones are not numbers."""
        numbers = {label for label in self.labels if _is_number(label)}
        if len(numbers) * 2 >= len(self.labels):
            return Naming(None, by_name=False)
        return Naming(tuple(sorted(self.labels)), by_name=True)

    def _list_tar(self, file: StoredFile) -> list[Entry]:
        keys: dict[str, _Members] = {}
        broken = None
        try:
            with self.location.open(file.path) as raw:
                source = _HeaderSource(raw, is_local=self.location.is_local)
                broken = self._collect(source, file, keys)
        except Exception as error:
            if not isinstance(error, tarfile.TarError | ValueError) and not is_lost(
                error, self.location
            ):
                raise
            broken = f"{type(error).__name__}: {error}"
        entries = [members.entry(file, key) for key, members in keys.items()]
        if broken is not None:
            key = f"{file.path}#"
            entries.append(Entry(file.path, key, 0, 0, None, "unreadable_file", broken))
        return entries

    def _collect(
        self, source: "_HeaderSource", file: StoredFile, keys: dict[str, "_Members"]
    ) -> str | None:
        """Fill `keys` from the headers; returns what is wrong with the tar itself."""
        with tarfile.open(fileobj=source, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps every member
                if member.isdir():
                    continue
                key, extension = split_name(member.name)
                found = keys.setdefault(key, _Members())
                if extension in IMAGE_EXTENSIONS or extension == self.corpus.image_column:
                    found.add_image(member)
                elif extension in (LABEL_EXTENSION, self.corpus.label_column):
                    found.add_label(member, source)
            source.seek(tar.offset)
            end = source.read(tarfile.BLOCKSIZE)
        if not end:
            return "the tar ends without its end mark: it was cut, or not closed"
        if end.strip(b"\0"):
            return f"no tar header at byte {tar.offset}; what follows is lost"
        return None


@dataclass
class _Members:
    """What a key was seen with."""

    image: tarfile.TarInfo | None = None
    label: str | None = None
    problem: tuple[str, str] | None = None

    def add_image(self, member: tarfile.TarInfo) -> None:
        if self.image is not None:
            self.problem = ("duplicate_key", "more than one image has this key")
        elif not member.isreg() or member.issparse():
            self.problem = ("missing_image", "the image is a link or a sparse file, not bytes")
        self.image = member

    def add_label(self, member: tarfile.TarInfo, source: "_HeaderSource") -> None:
        if self.label is not None:
            self.problem = ("duplicate_key", "more than one class has this key")
            return
        if not member.isreg() or member.size > MAX_LABEL_BYTES:
            self.problem = ("unreadable_label", f"the class is a member of {member.size} bytes")
            return
        source.seek(member.offset_data)
        self.label = source.read(member.size).decode("utf-8", "replace").strip()

    def entry(self, file: StoredFile, key: str) -> Entry:
        name = f"{file.path}#{key}"
        if self.problem is not None:
            return Entry(file.path, name, 0, 0, None, *self.problem)
        if self.image is None:
            return Entry(file.path, name, 0, 0, None, "missing_image", "no image has this key")
        return Entry(file.path, name, self.image.offset_data, self.image.size, self.label)


class _HeaderSource(io.BufferedReader):
    """A tar's bytes for reading headers: a header of gigabytes is refused, not read."""

    def __init__(self, raw: Any, *, is_local: bool) -> None:
        super().__init__(raw, io.DEFAULT_BUFFER_SIZE if is_local else REMOTE_BUFFER_BYTES)

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member: the base name divides at its first dot."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _is_number(label: str) -> bool:
    return label.removeprefix("-").isdecimal()
