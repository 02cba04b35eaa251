"""A record that kills its decoder costs that record; one death alone costs nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from latentlm_platform.corpora import crashes, splits
from latentlm_platform.corpora.records import BadRecord, Decoded
from latentlm_platform.corpora.splits import Split
from making_corpora import corpus, make_folders, opened

DEADLY = 5
SCRIPT = """
import os, signal, sys
import latentlm.media as media
from latentlm_platform.corpora import records
from making_corpora import corpus, opened, png
from latentlm_platform.corpora.splits import Split

real = media.decode_image
deadly = {png(int(n)) for n in sys.argv[2].split(",")}

def decode(data, **settings):
    if data in deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(data, **settings)

records.decode_image = decode
index = opened(sys.argv[1], chunk_records=12)
split = Split(index, corpus(), "all", 0)
for signal in split.decode_chunk(0):
    print(signal.key, getattr(signal, "kind", "good"))
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATENTLM_HOME", str(tmp_path / "home"))
    return make_folders(tmp_path / "c")


def decode(source: Path, *deadly: int) -> tuple[int, dict[str, str]]:
    """(exit status, key → kind) of a process that decodes the corpus and dies of some records."""
    paths = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(source), ",".join(map(str, deadly))],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())


def test_two_deaths_and_the_record_is_bad(source: Path) -> None:
    assert decode(source, DEADLY)[0] == -signal.SIGKILL
    assert decode(source, DEADLY)[0] == -signal.SIGKILL
    status, kinds = decode(source, DEADLY)
    assert status == 0
    assert kinds.pop(f"dog/nested/deep/{DEADLY}.png") == crashes.KIND
    assert set(kinds.values()) == {"good"}
    assert len(kinds) == 11
    split = Split(opened(source, chunk_records=12), corpus(), "all", 0)
    (bad,) = [s for s in split.decode_chunk(0) if isinstance(s, BadRecord)]
    assert (bad.kind, bad.group) == (crashes.KIND, "dog")
    assert not list(crashes.crashes_folder(split.index.folder.name).glob("*-*"))


def test_one_death_costs_nothing_and_is_forgotten(source: Path) -> None:
    for _ in range(2):  # as often as the node is lost: each time another process decodes it well
        assert decode(source, DEADLY)[0] == -signal.SIGKILL
        assert set(decode(source, 99)[1].values()) == {"good"}


def test_several_records_of_a_chunk(source: Path) -> None:
    deaths = 0
    while decode(source, 2, 7)[0]:
        deaths += 1
    assert deaths == 4
    assert list(decode(source, 99)[1].values()).count(crashes.KIND) == 2


def test_living_processes_and_pauses_are_no_strikes(source: Path) -> None:
    split = Split(opened(source, chunk_records=12), corpus(), "all", 0)
    name = split.index.folder.name
    with crashes.marking(name, 0) as marker:
        marker.begin(DEADLY)  # as another process would that lives
        for _ in range(3):
            assert all(isinstance(s, Decoded) for s in split.decode_chunk(0))
    folder = crashes.crashes_folder(name)
    dead = folder / "0-dead"
    for note in (b"", crashes.BETWEEN.to_bytes(8, "little", signed=True)):
        dead.write_bytes(note)
        assert all(isinstance(s, Decoded) for s in split.decode_chunk(0))
        assert not dead.exists()
    assert list(folder.iterdir()) == []


def test_an_exception_is_no_death(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = Split(opened(source, chunk_records=12), corpus(), "all", 0)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(splits, "decode_record", fail)
        for _ in range(3):
            with pytest.raises(RuntimeError):
                split.decode_chunk(0)
    assert all(isinstance(s, Decoded) for s in split.decode_chunk(0))
