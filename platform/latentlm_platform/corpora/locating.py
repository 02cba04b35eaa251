"""Where a corpus lies: a folder, a file or a pattern; on local disk or any pyarrow/fsspec URI.

A listing is an Arrow table, so that millions of files are 60 bytes each and no Python objects.
"""

import fnmatch
import functools
import glob
import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ArrowException, ArrowInvalid, ArrowNotImplementedError
from pyarrow import fs as arrow_fs

from latentlm_platform.errors import UserError

UNSEEN = r"(^|/)(\.[^/]*|__MACOSX|Thumbs\.db|desktop\.ini)(/|$)"
FILES = pa.schema([("path", pa.large_string()), ("size", pa.int64()), ("modified_ns", pa.int64())])


class Meter(Protocol):
    """Counts the bytes that are read from storage."""

    bytes: int


class Location(NamedTuple):
    """The root of a corpus and how its bytes are reached."""

    filesystem: Any
    root: str
    is_local: bool
    pattern: str | None

    def fits(self, path: str) -> bool:
        """Whether a relative path is within the pattern."""
        return self.pattern is None or fnmatch.fnmatchcase(path, self.pattern)

    def open(self, path: str, meter: Meter | None = None) -> Any:
        """The file at a relative path, for reading at any offset; `meter` counts its bytes."""
        file = self.filesystem.open_input_file(f"{self.root}/{path}")
        return file if meter is None else MeteredFile(file, meter)


class MeteredFile(io.RawIOBase):
    """A file whose every read is counted."""

    def __init__(self, file: Any, meter: Meter) -> None:
        self._file, self._meter = file, meter

    def read(self, size: int = -1, /) -> bytes:
        data: bytes = self._file.read(None if size < 0 else size)
        self._meter.bytes += len(data)
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._file.seek(offset, whence)
        return self.tell()

    def tell(self) -> int:
        return int(self._file.tell())

    def size(self) -> int:
        """Bytes of the whole file."""
        return int(self._file.size())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


class Listing(NamedTuple):
    """Every file of a corpus, sorted by path, and its first-level folders.

    `files` is a table of `FILES`: the path is relative to the corpus and uses `/`.
    """

    location: Location
    files: pa.Table
    folders: frozenset[str]

    def digest(self, *facts: object) -> str:
        """sha256 of facts, folders and each file's path, size and modification time."""
        state = hashlib.sha256(repr((*facts, sorted(self.folders))).encode())
        table = self.files.combine_chunks()
        for name in ("size", "modified_ns"):
            state.update(table[name].to_numpy().tobytes())
        for chunk in table["path"].chunks:
            starts = np.frombuffer(chunk.buffers()[1], np.int64)
            starts = starts[chunk.offset : chunk.offset + len(chunk) + 1]
            state.update(np.diff(starts).tobytes())
            state.update(chunk.buffers()[2][int(starts[0]) : int(starts[-1])])
        return state.hexdigest()


def list_files(source: str) -> Listing:
    """The files under a source, hidden ones left out; UserError where nothing is there."""
    location = locate(source)
    folders: set[str] = set()
    tables = []
    try:
        for found in _find(location):
            table, below = _tabulate(found, location)
            tables.append(table)
            folders |= below
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"corpus source {source!r} cannot be reached: {error}") from None
    files = pa.concat_tables(tables) if tables else FILES.empty_table()
    if not len(files):
        raise _nothing_at(source)
    files = files.take(pc.sort_indices(files["path"])).combine_chunks()
    return Listing(location, files, frozenset(folders))


def _find(location: Location) -> Iterator[list[Any]]:
    """What lies under the root; of a local disk folder by folder, so that few objects live."""
    if not location.is_local:
        yield location.filesystem.get_file_info(
            arrow_fs.FileSelector(location.root, recursive=True)
        )
        return
    top = location.filesystem.get_file_info(arrow_fs.FileSelector(location.root))
    yield top
    for info in top:
        if info.type == arrow_fs.FileType.Directory:
            selector = arrow_fs.FileSelector(info.path, recursive=True)
            yield location.filesystem.get_file_info(selector)


def _tabulate(found: list[Any], location: Location) -> tuple[pa.Table, set[str]]:
    """(files of the corpus, first-level folders) among what was found."""
    is_file = arrow_fs.FileType.File
    files = [(i.path, i.size or 0, i.mtime_ns or 0) for i in found if i.type == is_file]
    columns = zip(*files, strict=True) if files else ((), (), ())
    arrays = [pa.array(c, f.type) for c, f in zip(columns, FILES, strict=True)]
    table = pa.table(arrays, schema=FILES)
    table = table.set_column(0, "path", _relative(table["path"], location.root))
    seen = pc.invert(pc.match_substring_regex(table["path"], UNSEEN))
    if location.pattern is not None:
        fits = [location.fits(path) for path in table["path"].to_pylist()]
        seen = pc.and_(seen, pa.array(fits, pa.bool_()))
    folders = [i.path for i in found if i.type == arrow_fs.FileType.Directory]
    below = _relative(pa.chunked_array([pa.array(folders, pa.large_string())]), location.root)
    return table.filter(seen), {
        path
        for path in below.to_pylist()
        if path and "/" not in path and not re.search(UNSEEN, path) and location.fits(path)
    }


def require_there(source: str) -> None:
    """UserError where nothing is at a source; what it holds is looked at later."""
    location = locate(source)
    found = location.filesystem.get_file_info(location.root)
    if found.type == arrow_fs.FileType.NotFound:
        raise _nothing_at(source)


def _nothing_at(source: str) -> UserError:
    return UserError(
        f"corpus source {source!r} is not there or holds no files; give a folder, a file,"
        " a URI or a name from `latentlm corpora list`"
    )


@functools.lru_cache(maxsize=16)
def locate(source: str) -> Location:
    """The location of a source: a folder, the folder of a file, or of a pattern of file names."""
    filesystem, path, is_local = _filesystem(source)
    pure = PurePosixPath(path)
    try:
        is_file = filesystem.get_file_info(path).type == arrow_fs.FileType.File
    except OSError as error:
        raise UserError(f"corpus source {source!r} cannot be reached: {error}") from None
    if is_file:
        return Location(filesystem, str(pure.parent), is_local, glob.escape(pure.name))
    if glob.has_magic(pure.name):
        return Location(filesystem, str(pure.parent), is_local, pure.name)
    return Location(filesystem, path.rstrip("/"), is_local, None)


def is_lost(error: Exception, location: Location) -> bool:
    """Whether an error means that these bytes are gone or broken, for good.

    A network that fails may work in a minute: such errors are raised and the task tried again,
    so that an outage is never recorded as a corpus of bad records.
    """
    if not isinstance(error, OSError):
        return isinstance(error, ArrowException | EOFError | UnicodeDecodeError)
    if isinstance(error, FileNotFoundError | PermissionError):
        return True
    text = str(error).lower()
    return location.is_local or "checksum" in text or "deserializ" in text or "corrupt" in text


def _filesystem(source: str) -> tuple[Any, str, bool]:
    if "://" not in source:
        return arrow_fs.LocalFileSystem(), Path(source).expanduser().absolute().as_posix(), True
    try:
        filesystem, path = arrow_fs.FileSystem.from_uri(source)
        return filesystem, path, isinstance(filesystem, arrow_fs.LocalFileSystem)
    except (ArrowInvalid, ArrowNotImplementedError):
        return (*_fsspec(source), False)
    except OSError as error:
        raise UserError(f"corpus source {source!r} cannot be reached: {error}") from None


def _fsspec(source: str) -> tuple[Any, str]:
    import fsspec  # type: ignore[import-untyped]

    try:
        filesystem, path = fsspec.core.url_to_fs(source)
    except (ValueError, ImportError, OSError) as error:
        raise UserError(f"corpus source {source!r} cannot be reached: {error}") from None
    return arrow_fs.PyFileSystem(arrow_fs.FSSpecHandler(filesystem)), path


def _relative(paths: Any, root: str) -> Any:
    """Paths (an Arrow column) below the root, whether or not they begin with a slash."""
    prefix = root.strip("/")
    inside = pc.utf8_ltrim(paths, "/")
    return pc.utf8_ltrim(pc.utf8_slice_codeunits(inside, len(prefix)), "/")
