"""Provenance against what git and the interpreter say themselves."""

import platform
import subprocess
from pathlib import Path

import pytest

from latentlm_platform.tracking import provenance


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "code.py").write_text("a = 1\n")
    for command in (
        ["init", "-q"],
        ["add", "code.py"],
        ["-c", "user.name=x", "-c", "user.email=x@x", "commit", "-q", "-m", "first"],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    return tmp_path


def test_a_clean_tree(repository: Path) -> None:
    found = provenance.collect(repository)
    head = subprocess.check_output(["git", "-C", str(repository), "rev-parse", "HEAD"], text=True)
    assert (found.commit, found.dirty, found.diff) == (head.strip(), False, "")
    assert found.python == platform.python_version()
    assert found.packages["ray"] == "2.60.0"
    assert found.memory_bytes > 2**28
    assert found.cores >= 1
    assert "ray==2.60.0" in found.text()
    assert found.tags()["latentlm.git_dirty"] == "false"


def test_changes_and_untracked_files_are_told(repository: Path) -> None:
    (repository / "code.py").write_text("a = 2\n")
    (repository / "new.py").write_text("secret\n")
    found = provenance.collect(repository)
    assert found.dirty
    assert "-a = 1\n+a = 2\n" in found.diff
    assert "# untracked: new.py" in found.diff
    assert "secret" not in found.diff


def test_a_huge_difference_is_cut_and_says_so(repository: Path) -> None:
    (repository / "code.py").write_text("ä" * 2_000_000)
    diff = provenance.collect(repository).diff
    assert 0.9 * provenance.DIFF_BYTES < len(diff.encode()) <= provenance.DIFF_BYTES
    assert "# cut:" in diff


def test_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = provenance.collect(tmp_path)
    assert (found.commit, found.dirty, found.diff, found.gpus) == (None, False, "", ())
    assert found.tags()["latentlm.git_commit"] == "none"
