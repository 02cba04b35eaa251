"""The files of runs: read where they lie, or fetched from a server by several threads at once.

A run's artifacts are at `file:///…`, which is read in place where this machine has it, or behind
MLflow's server or another store, which MLflow's own client fetches. What cannot be had is no error
of a report: it is left out and said.
"""

import json
import os
import re
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

THREADS = 8
GIVES_UP_AFTER = 3  # runs that cannot be read: a store that hangs would hold up all the others
SCHEME = re.compile(r"^[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
PICTURE = re.compile(r"^(?P<key>.+?)[+%]step[+%](?P<step>-?\d+)[+%]timestamp[+%](?P<time>\d+)[+%]")


class PictureFile(NamedTuple):
    """A picture that was logged under a key at a step."""

    key: str
    step: int
    path: str  # below the run's artifacts


@dataclass
class ArtifactFiles:
    """Reads artifacts by the run's artifact location; `missing` says what could not be read."""

    tracking_uri: str
    missing: dict[str, str] = field(default_factory=dict)
    opened: dict[str, Any] = field(default_factory=dict)
    listed: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def bytes_of(self, location: str, path: str) -> bytes | None:
        """The file's content; None where there is none or it cannot be read."""
        if (folder := local_folder(location)) is not None:
            return self._here(location, folder, lambda: (folder / path).read_bytes(), None)
        if path not in self.names(location, path.rpartition("/")[0]):
            return None  # by the listing, for every store has its own error for what is not there
        try:
            with tempfile.TemporaryDirectory() as folder_name:
                copy = Path(folder_name) / "file"
                # What every store implements; `download_artifacts` first asks for a listing.
                self._repository(location)._download_file(path, str(copy))
                return copy.read_bytes()
        except Exception as error:  # every kind of store has errors of its own
            self._note(location, error)
            return None

    def json_of(self, location: str, path: str) -> Any:
        """The file's JSON; None where there is none."""
        raw = self.bytes_of(location, path)
        try:
            return None if raw is None else json.loads(raw)
        except ValueError:
            return None

    def rows_of(self, location: str, path: str) -> list[dict[str, Any]]:
        """A table as MLflow's pages show it, row by row; none where there is no such file."""
        table = self.json_of(location, path)
        if not isinstance(table, dict) or not isinstance(table.get("data"), list):
            return []
        return [dict(zip(table.get("columns", []), row, strict=False)) for row in table["data"]]

    def names(self, location: str, folder: str = "") -> list[str]:
        """What is in a folder, below the run's artifacts; a server is asked once."""
        if (top := local_folder(location)) is not None:
            return self._here(location, top, lambda: _below(top, folder), [])
        if (location, folder) not in self.listed:
            if location in self.missing or len(self.missing) >= GIVES_UP_AFTER:
                self.missing.setdefault(location, "it was not asked any more")
                return []
            try:
                found = self._repository(location).list_artifacts(folder or None)
            except Exception as error:  # as above
                self._note(location, error)
                found = []
            self.listed[location, folder] = sorted(one.path for one in found)
        return self.listed[location, folder]

    def pictures(self, location: str) -> list[PictureFile]:
        """The pictures of a run by key and step; of those at one step, the newest."""
        newest: dict[tuple[str, int], tuple[int, str]] = {}
        for path in self.names(location, "images"):
            found = PICTURE.match(Path(path).name)
            if found and path.endswith(".png"):
                at = found["key"], int(found["step"])
                newest[at] = max(newest.get(at, (0, "")), (int(found["time"]), path))
        return [PictureFile(*at, path) for at, (_, path) in sorted(newest.items())]

    def _repository(self, location: str) -> Any:
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one for each file
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        if location not in self.opened:
            self.opened[location] = get_artifact_repository(
                location, tracking_uri=self.tracking_uri
            )
        return self.opened[location]

    def _here(self, location: str, top: Path, read: Callable[[], T], nothing: T) -> T:
        """What this machine has; absence is noted only where no run of the store is here."""
        try:
            return read()
        except (FileNotFoundError, NotADirectoryError):
            if not top.parent.parent.exists():
                self.missing.setdefault(location, "this machine has no such folder")
        except OSError as error:
            self._note(location, error)
        return nothing

    def _note(self, location: str, error: Exception) -> None:
        sentence = str(error).strip().splitlines()[:1] or [type(error).__name__]
        self.missing.setdefault(location, sentence[0][:160])


def _below(top: Path, folder: str) -> list[str]:
    return sorted(str(one.relative_to(top)) for one in (top / folder).iterdir())


def local_folder(location: str) -> Path | None:
    """Where on this machine artifacts lie; None for those behind a server."""
    if location.startswith("file:"):
        return Path(urllib.request.url2pathname(urllib.parse.urlparse(location).path))
    return None if SCHEME.match(location) else Path(location)


def in_parallel(work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """`work` of every item, in their order, by several threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, items))
