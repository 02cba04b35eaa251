"""Where a corpus lies: a folder, a file or a pattern; on local disk or any pyarrow/fsspec URI."""

import fnmatch
import functools
import glob
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pyarrow import ArrowException, ArrowInvalid, ArrowNotImplementedError
from pyarrow import fs as arrow_fs

from latentlm_platform.errors import UserError

UNSEEN = ("__MACOSX", "Thumbs.db", "desktop.ini")


class StoredFile(NamedTuple):
    """A file of the corpus; `path` is relative to the corpus and uses `/`."""

    path: str
    size: int
    modified_ns: int


class Location(NamedTuple):
    """The root of a corpus and how its bytes are reached."""

    filesystem: Any
    root: str
    is_local: bool
    pattern: str | None

    def holds(self, path: str) -> bool:
        """Whether a relative path belongs to the corpus: not hidden, and within the pattern."""
        if any(part.startswith(".") or part in UNSEEN for part in path.split("/")):
            return False
        return self.pattern is None or fnmatch.fnmatchcase(path, self.pattern)

    def open(self, path: str) -> Any:
        """The file at a relative path, for reading at any offset."""
        return self.filesystem.open_input_file(f"{self.root}/{path}")


class Listing(NamedTuple):
    """Every file of a corpus, sorted by path, and its first-level folders."""

    location: Location
    files: list[StoredFile]
    folders: frozenset[str]


def list_files(source: str) -> Listing:
    """The files under a source, hidden ones left out; UserError where nothing is there."""
    location = locate(source)
    try:
        found = location.filesystem.get_file_info(
            arrow_fs.FileSelector(location.root, recursive=True)
        )
    except FileNotFoundError:
        found = []
    except OSError as error:
        raise UserError(f"corpus source {source!r} cannot be reached: {error}") from None
    below = [(info, _relative(info.path, location.root)) for info in found]
    files = [
        StoredFile(path, int(info.size or 0), int(info.mtime_ns or 0))
        for info, path in below
        if info.type == arrow_fs.FileType.File and location.holds(path)
    ]
    if not files:
        raise UserError(
            f"corpus source {source!r} is not there or holds no files; give a folder, a file,"
            " a URI or a name from `latentlm corpora list`"
        )
    folders = {path for info, path in below if info.type == arrow_fs.FileType.Directory}
    first_level = frozenset(path for path in folders if "/" not in path and location.holds(path))
    return Listing(location, sorted(files), first_level)


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


def _relative(path: str, root: str) -> str:
    return path.lstrip("/").removeprefix(root.strip("/")).lstrip("/")
