"""Checkpoints of all ranks, committed by a manifest; one that is not committed does not exist.

Every rank writes its files into `step-N.partial/`; when all are there, the first rank hashes them,
writes `MANIFEST.json` and renames the folder to `step-N`. DeepSpeed's `latest` file is no commit
marker (it appears before the other ranks' shards) and is never read.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from latentlm_platform.batches.lane import Cursor

MANIFEST = "MANIFEST.json"
LANES_FILE = "lanes.json"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: `facts` are step, samples consumed, world size, validation loss…"""

    folder: Path
    facts: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.facts["step"])


def partial_folder(root: Path, step: int) -> Path:
    """Where the ranks write before the commit."""
    return root / f"step-{step:08d}.partial"


def commit(partial: Path, facts: dict[str, Any]) -> Checkpoint:
    """Hash what all ranks wrote, write the manifest and give the folder its final name."""
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    hashes = {str(path.relative_to(partial)): _digest(path) for path in files}
    _write_durably(partial / MANIFEST, json.dumps({"facts": facts, "files": hashes}, indent=1))
    final = partial.with_suffix("")
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    _sync(final.parent)
    return Checkpoint(final, facts)


def committed(root: Path) -> list[Checkpoint]:
    """Every committed checkpoint below `root`, oldest first; contents are not verified yet."""
    found = []
    for manifest in root.glob(f"step-*/{MANIFEST}"):
        if manifest.parent.suffix == ".partial":
            continue
        try:
            facts = json.loads(manifest.read_text(encoding="utf-8"))["facts"]
            found.append(Checkpoint(manifest.parent, facts))
        except (ValueError, KeyError):
            continue
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def newest_intact(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose files match its manifest, and why newer ones were passed over."""
    faults: list[str] = []
    for checkpoint in reversed(committed(root)):
        fault = find_fault(checkpoint)
        if fault is None:
            return checkpoint, faults
        faults.append(f"{checkpoint.folder.name}: {fault}")
    return None, faults


def find_fault(checkpoint: Checkpoint) -> str | None:
    """The first file that is missing or differs from the manifest, in words."""
    manifest = json.loads((checkpoint.folder / MANIFEST).read_text(encoding="utf-8"))
    for name, digest in manifest["files"].items():
        path = checkpoint.folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _digest(path) != digest:
            return f"{name} differs from what was saved"
    return None


def gather_cursors(mine: dict[int, Cursor]) -> list[dict[str, Any]]:
    """The state of every lane's cursor, on every rank, in the order of the lanes."""
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, {lane: cursor.state() for lane, cursor in mine.items()})
    states = {lane: state for part in parts for lane, state in part.items()}
    return [states[lane] for lane in sorted(states)]


def write_cursors(partial: Path, states: list[dict[str, Any]]) -> None:
    """Put the cursors of all lanes into a checkpoint that is being made."""
    (partial / LANES_FILE).write_text(json.dumps(states), encoding="utf-8")


def read_cursors(found: Checkpoint, lanes: Iterable[int]) -> dict[int, Cursor]:
    """The cursors of some lanes, whoever owned them when the checkpoint was made."""
    states = json.loads((found.folder / LANES_FILE).read_text(encoding="utf-8"))
    return {lane: Cursor.of(states[lane]) for lane in lanes}


def retain(root: Path, *, latest: int, best: int) -> None:
    """Delete all but the newest `latest` and the `best` by validation loss; and old partials."""
    checkpoints = committed(root)
    scored = [c for c in checkpoints if c.facts.get("validation_loss") is not None]
    scored.sort(key=lambda checkpoint: float(checkpoint.facts["validation_loss"]))
    kept = {c.folder for c in checkpoints[-latest:]} | {c.folder for c in scored[:best]}
    for checkpoint in checkpoints:
        if checkpoint.folder not in kept:
            shutil.rmtree(checkpoint.folder)
    newest = checkpoints[-1].step if checkpoints else -1
    for partial in root.glob("step-*.partial"):
        if int(partial.stem.removeprefix("step-")) <= newest:
            shutil.rmtree(partial, ignore_errors=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
