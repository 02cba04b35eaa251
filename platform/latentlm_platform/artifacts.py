"""What stages leave behind: a folder by key, complete when its `artifact.json` exists.

A key hashes all that the artifact was computed from, so equal work is done once: runs that share a
codec share its folder.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from latentlm_platform.home import artifacts_folder
from latentlm_platform.runs import exclusive

KEY_DIGITS = 16
ARTIFACT_VERSION = 2  # raise it with any change to what a stage computes from equal settings


@dataclass(frozen=True)
class Artifact:
    """A finished stage: what it measured, what it was made from, and the run that tells of it."""

    stage: str
    key: str
    metrics: dict[str, float] = field(default_factory=dict)
    lineage: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    run_id: str = ""
    seconds: float = 0.0

    @property
    def folder(self) -> Path:
        return artifacts_folder(self.stage) / self.key

    def save(self) -> None:
        """Mark the artifact complete."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"artifact.json.{os.getpid()}.partial"
        partial.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        partial.rename(self.folder / "artifact.json")


def key_of(*parts: Any) -> str:
    """A short hash of JSON-serialisable parts, the same for the same contents."""
    text = json.dumps([ARTIFACT_VERSION, *parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


def read_artifact(stage: str, key: str) -> Artifact | None:
    """The finished artifact of this key, or None."""
    path = artifacts_folder(stage) / key / "artifact.json"
    if not path.exists():
        return None
    return Artifact(**json.loads(path.read_text(encoding="utf-8")))


@contextmanager
def building(stage: str, key: str) -> Iterator[Artifact | None]:
    """Hold the artifact's folder: yields it where it is finished, None where it is to be made."""
    with exclusive(artifacts_folder(stage) / key):
        yield read_artifact(stage, key)
