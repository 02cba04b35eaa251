"""WebDataset tars: the members of one key are a record, as `0001.jpg`, `0001.txt` and `0001.cls`.

Only headers and labels are read to make the index, and the rest later by its offset: nothing is
unpacked to disk, so that a member called `../../x` is a key and nothing else. Keys are grouped over
the whole tar, so that members in any order make whole records.
"""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from latentlm_platform.corpora.chunk_index import Entry, Naming, entry_table
from latentlm_platform.corpora.file_groups import FileGroup
from latentlm_platform.corpora.locating import Location, is_lost, locate
from latentlm_platform.corpora.records import PartSource

EXTENSIONS = {
    "label": ("cls",),
    "text": ("txt",),
    "image": ("jpg", "jpeg", "png", "webp"),
    "sound": ("flac", "wav", "mp3", "ogg"),
}
MAX_HEADER_BYTES = 2**20
MAX_LABEL_BYTES = 4096
REMOTE_BUFFER_BYTES = 4 * 2**20  # headers lie between images: reading on beats asking again
BLOCK = tarfile.BLOCKSIZE
REGULAR = (ord("0"), 0)


def list_entries(tars: FileGroup) -> pa.Table:
    """One entry a key, tar by tar; what is broken is an entry with its problem."""
    location, places = locate(tars.source), _places(tars.parts)
    return entry_table(e for path in tars.paths for e in _list_tar(path, location, places))


def name_classes(labels: list[Any]) -> Naming:
    """Labels are numbers, or names if most of the different ones are not numbers."""
    numbers = [label for label in labels if label.removeprefix("-").isdecimal()]
    if len(numbers) * 2 >= len(labels):
        return Naming(None, by_name=False)
    return Naming(tuple(sorted(labels)), by_name=True)


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member: the base name divides at its first dot."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


class _Places(NamedTuple):
    """Which part a member's extension says it is: the part's place among the ranges, or a label."""

    of_extension: dict[str, int]
    kinds: tuple[str, ...]  # of the parts that are bytes


LABEL = -1


def _places(parts: tuple[PartSource, ...]) -> _Places:
    stored = [part for part in parts if part.kind != "label"]
    known: dict[str, int] = {}
    for place, part in [*enumerate(stored), *((LABEL, p) for p in parts if p.kind == "label")]:
        known |= dict.fromkeys((*EXTENSIONS[part.kind], part.column), place)
    return _Places(known, tuple(part.kind for part in stored))


def _list_tar(path: str, location: Location, places: _Places) -> Iterator[Entry]:
    keys: dict[str, _Record] = {}
    broken = None
    try:
        with _HeaderSource(path, location) as source:
            broken = _collect(source, keys, places)
    except Exception as error:
        if not isinstance(error, tarfile.TarError | ValueError) and not is_lost(error, location):
            raise
        broken = f"{type(error).__name__}: {error}"
    for key, record in keys.items():
        yield record.entry(path, key, places)
    if broken is not None:
        yield Entry(path, "", [], None, "unreadable_file", broken)


def _collect(source: "_HeaderSource", keys: dict[str, "_Record"], places: _Places) -> str | None:
    """Fill `keys` from the headers; returns what is wrong with the tar itself."""
    with tarfile.open(fileobj=source, mode="r:", errors="backslashreplace") as tar:
        for member in _members(tar, source):
            key, extension = split_name(member.name)
            record = keys.get(key)
            if record is None:
                record = keys[key] = _Record(len(places.kinds))
            place = places.of_extension.get(extension)
            if place == LABEL:
                record.add_label(member, source)
            elif place is not None:
                record.add_part(member, place, places.kinds[place])
        source.seek(tar.offset)
        end = source.read(BLOCK)
    if not end:
        return "the tar ends without its end mark: it was cut, or not closed"
    if end.strip(b"\0"):
        return f"no tar header at byte {tar.offset}; what follows is lost"
    return None


class _Member(NamedTuple):
    name: str
    offset: int
    size: int
    is_bytes: bool = True


def _members(tar: Any, source: "_HeaderSource") -> Iterator[_Member]:
    """Every member but folders. Plain headers, nearly all of them, are read without tarfile."""
    while True:
        known = tar.firstmember is not None or tar.pax_headers  # which tarfile has to apply
        plain = None if known else _plain_member(source, tar.offset)
        if plain is not None:
            tar.offset = plain.offset + -(-plain.size // BLOCK) * BLOCK
            yield plain
            continue
        member = tar.next()
        if member is None:
            return
        tar.members = []  # else it keeps every member
        if not member.isdir():
            is_bytes = member.isreg() and not member.issparse()
            yield _Member(member.name, member.offset_data, member.size, is_bytes)


def _plain_member(source: "_HeaderSource", offset: int) -> _Member | None:
    """A regular file whose name and size stand in the header itself; None for all else."""
    source.seek(offset)
    header = source.read(BLOCK)
    if len(header) < BLOCK or header[156] not in REGULAR or header[124] & 0x80:
        return None
    try:
        checksum = int(header[148:156].strip(b" \0"), 8)
        size = int(header[124:136].strip(b" \0") or b"0", 8)
    except ValueError:
        return None
    if sum(header) - sum(header[148:156]) + 8 * ord(" ") != checksum:
        return None
    name = header[:100].partition(b"\0")[0]
    if header[345]:
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    if name.endswith(b"/"):  # an old way to write a folder
        return None
    return _Member(name.decode("utf-8", "backslashreplace"), offset + BLOCK, size)


class _Record:
    """What a key was seen with."""

    __slots__ = ("label", "problem", "ranges")

    def __init__(self, parts: int) -> None:
        self.ranges = [-1, 0] * parts
        self.label: str | None = None
        self.problem: tuple[str, str] | None = None

    def add_part(self, member: _Member, place: int, kind: str) -> None:
        if self.ranges[2 * place] >= 0:
            self.problem = ("duplicate_key", f"more than one {kind} has this key")
        elif not member.is_bytes:
            self.problem = (f"missing_{kind}", f"the {kind} is a link or a sparse file, not bytes")
        self.ranges[2 * place : 2 * place + 2] = [member.offset, member.size]

    def add_label(self, member: _Member, source: "_HeaderSource") -> None:
        if self.label is not None:
            self.problem = ("duplicate_key", "more than one class has this key")
            return
        if not member.is_bytes or member.size > MAX_LABEL_BYTES:
            self.problem = ("unreadable_label", f"the class is a member of {member.size} bytes")
            return
        source.seek(member.offset)
        self.label = source.read(member.size).decode("utf-8", "replace").strip()

    def entry(self, path: str, key: str, places: _Places) -> Entry:
        missing = [kind for kind, offset in zip(places.kinds, self.ranges[::2], strict=True)
                   if offset < 0]  # fmt: skip
        problem = self.problem
        if problem is None and missing:
            problem = (f"missing_{missing[0]}", f"no {missing[0]} has this key")
        if problem is not None:
            return Entry(path, key, [], self.label, *problem)
        return Entry(path, key, self.ranges, self.label)


class _HeaderSource(io.BufferedReader):
    """A tar's bytes for reading headers: a header of gigabytes is refused, not read."""

    def __init__(self, path: str, location: Location) -> None:
        if location.is_local:
            super().__init__(io.FileIO(Path(location.root, path)))
        else:
            super().__init__(location.open(path), REMOTE_BUFFER_BYTES)

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)
