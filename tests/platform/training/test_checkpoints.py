"""A checkpoint exists only when committed, and is used only when intact."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from latentlm_platform.training import checkpoints


def save(root: Path, step: int, *, validation_loss: float | None = None) -> checkpoints.Checkpoint:
    partial = checkpoints.partial_folder(root, step)
    (partial / "zero").mkdir(parents=True)
    (partial / "zero" / "rank_0.pt").write_bytes(os.urandom(64))
    (partial / "rank_1.pt").write_bytes(os.urandom(64))
    return checkpoints.commit(partial, {"step": step, "validation_loss": validation_loss})


def test_a_partial_folder_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 10)
    (checkpoints.partial_folder(tmp_path, 20)).mkdir()
    (checkpoints.partial_folder(tmp_path, 20) / "rank_0.pt").write_bytes(b"half")
    found, faults = checkpoints.newest_intact(tmp_path)
    assert found is not None
    assert (found.step, faults) == (10, [])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (flip, "differs"),
        (lambda path: path.write_bytes(path.read_bytes()[:10]), "differs"),
        (Path.unlink, "missing"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, harm: Callable[[Path], object], said: str
) -> None:
    save(tmp_path, 10)
    newest = save(tmp_path, 20)
    harm(newest.folder / "rank_1.pt")
    found, faults = checkpoints.newest_intact(tmp_path)
    assert found is not None
    assert found.step == 10
    assert len(faults) == 1
    assert said in faults[0]


def test_no_manifest_no_checkpoint(tmp_path: Path) -> None:
    newest = save(tmp_path, 20)
    (newest.folder / checkpoints.MANIFEST).unlink()
    assert checkpoints.newest_intact(tmp_path) == (None, [])


def test_retention_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    losses = {10: 0.5, 20: 0.1, 30: 0.4, 40: 0.3, 50: None}
    for step, loss in losses.items():
        save(tmp_path, step, validation_loss=loss)
    checkpoints.partial_folder(tmp_path, 15).mkdir()
    checkpoints.partial_folder(tmp_path, 60).mkdir()
    checkpoints.retain(tmp_path, latest=2, best=1)
    assert [c.step for c in checkpoints.committed(tmp_path)] == [20, 40, 50]
    assert {p.name for p in tmp_path.glob("*.partial")} == {"step-00000060.partial"}
