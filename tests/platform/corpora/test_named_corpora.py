"""Public corpora by name: conversion of small files of the real formats, and what is refused."""

import gzip
import json
import shutil
import struct
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from latentlm_platform import cli
from latentlm_platform.commands import evaluators
from latentlm_platform.corpora import fashion_mnist, noto_emoji
from latentlm_platform.corpora.corpus_index import open_corpus
from latentlm_platform.corpora.debian_packages import unpack_package
from latentlm_platform.corpora.named import CORPORA, ensure, fetch, is_fetched, read_card, resolve
from latentlm_platform.corpora.records import Decoded, decode_record
from latentlm_platform.corpora.split_files import GROUP_ROWS, Image, write_split
from latentlm_platform.errors import UserError
from latentlm_platform.experiment.sections import Corpus

COUNTS = {"train": 700, "t10k": 30}
PACKAGE = "dataset-fashion-mnist"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATENTLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def write_dataset(root: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A small dataset in the layout of the Debian package."""
    random = np.random.default_rng(0)
    written = {}
    for prefix, count in COUNTS.items():
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = random.integers(0, 10, count, dtype=np.uint8)
        folder = root / fashion_mnist.FOLDER
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels)
        written[prefix] = (images, labels)
    licence = root / "usr/share/doc" / PACKAGE / "copyright"
    licence.parent.mkdir(parents=True)
    licence.write_text("the licence")
    return written


@pytest.fixture
def apt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A real .deb of the small dataset, and an apt-get that hands it out."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("needs dpkg-deb")
    root, programs = tmp_path / "package", tmp_path / "programs"
    written = write_dataset(root)
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN/control").write_text(
        f"Package: {PACKAGE}\nVersion: 1.0\nArchitecture: all\n"
        "Maintainer: a <a@b>\nDescription: x\n"
    )
    deb = tmp_path / f"{PACKAGE}_1.0_all.deb"
    subprocess.run(["dpkg-deb", "-b", str(root), str(deb)], check=True, capture_output=True)
    programs.mkdir()
    script = f"#!/bin/sh\ncase \"$*\" in *'download {PACKAGE}') cp {deb} . ;; *) exit 100 ;; esac\n"
    (programs / "apt-get").write_text(script)
    (programs / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    return written


def corpus(**fields: Any) -> Corpus:
    return Corpus(**{"source": "x", "classes": 10, "image_size": 28, "channels": 1, **fields})


def test_fetched_corpus_is_the_dataset(
    apt: dict[str, tuple[np.ndarray, np.ndarray]], home: Path
) -> None:
    source = ensure("fashion_mnist/train", progress=lambda _: None)
    images, labels = apt["train"]
    index = open_corpus(source, corpus=corpus())
    records = [r for c in range(len(index.chunk_sizes)) for r in index.read_chunk(c)]
    signals = [decode_record(record, corpus=corpus()) for record in records]
    good = [signal for signal in signals if isinstance(signal, Decoded)]
    assert np.array_equal(np.stack([signal.pixels[..., 0] for signal in good]), images)
    assert [signal.label for signal in good] == labels.tolist()
    assert index.class_names == fashion_mnist.CLASS_NAMES
    assert open_corpus(resolve("fashion_mnist/test"), corpus=corpus()).record_count == 30


def test_card_says_where_it_came_from(apt: object, home: Path) -> None:
    said: list[str] = []
    card = fetch("fashion_mnist", progress=said.append)
    assert card == read_card("fashion_mnist")
    assert card["licence"] == "MIT (Expat)"
    assert any("MIT (Expat)" in line for line in said)
    (package,) = card["packages"]
    assert package["version"] == "1.0"
    assert len(package["sha256"]) == 64
    assert {split: facts["records"] for split, facts in card["splits"].items()} == {
        "train": 700,
        "test": 30,
    }
    folder = home / "corpora" / "fashion_mnist"
    assert (folder / f"LICENCE.{PACKAGE}.txt").read_text() == "the licence"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["fashion_mnist"]


def test_fetching_twice_keeps_the_first(apt: object, home: Path) -> None:
    first = fetch("fashion_mnist", progress=lambda _: None)
    said: list[str] = []
    assert fetch("fashion_mnist", progress=said.append) == first
    assert said == []


def test_failed_download_leaves_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("apt-get", "dpkg-deb"):
        (programs / name).write_text("#!/bin/sh\necho 'E: no network' >&2; exit 100\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    with pytest.raises(UserError, match=r"could not be downloaded: E: no network"):
        fetch("fashion_mnist", progress=lambda _: None)
    assert not is_fetched("fashion_mnist")
    assert list((home / "corpora").iterdir()) == []


def test_incomplete_folder_is_replaced(apt: object, home: Path) -> None:
    (home / "corpora/fashion_mnist/train").mkdir(parents=True)
    fetch("fashion_mnist", progress=lambda _: None)
    assert is_fetched("fashion_mnist")


def test_machine_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no apt-get; .*your own images"):
        unpack_package(PACKAGE, into=tmp_path, work=tmp_path / "work")


def test_names_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("fashion_mnist/test").endswith("home/corpora/fashion_mnist/test")
    for source in ("/data/images", "s3://fashion_mnist/train", "pictures"):
        assert resolve(source) == source
    (tmp_path / "fashion_mnist" / "train").mkdir(parents=True)
    assert resolve("fashion_mnist/train") == "fashion_mnist/train"


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("fashion-mnist/train", "did you mean fashion_mnist/train?"),
        ("fashion_mnist/tran", "write fashion_mnist/train"),
        ("fashion_mnist", "write fashion_mnist/train or fashion_mnist/test"),
    ],
)
def test_wrong_names_get_the_nearest(source: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(source)
    assert hint in str(caught.value)


def test_unknown_name_to_fetch() -> None:
    with pytest.raises(UserError, match=r"did you mean noto_emoji_groups\?"):
        fetch("noto_emoji")


@pytest.mark.parametrize("damage", ["cut", "kind", "count"])
def test_damaged_idx_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.gz"
    write_idx(path, np.zeros((3, 2, 2), np.uint8))
    data = bytearray(gzip.decompress(path.read_bytes()))
    changed = {
        "cut": data[:-1],
        "kind": b"\0\0\x0d" + data[3:],
        "count": data[:7] + b"\4" + data[8:],
    }
    path.write_bytes(gzip.compress(bytes(changed[damage])))
    with pytest.raises(UserError, match="not a whole IDX file"):
        fashion_mnist.read_idx(path)


def test_splits_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    images = [Image(str(n), np.full((4, 4, 1), n % 256, np.uint8), n % 2) for n in range(1100)]
    facts = [write_split(tmp_path / f, images, class_names=("a", "b")) for f in ("x", "y")]
    assert facts[0] == facts[1]
    metadata = pq.read_metadata(tmp_path / "x/00000.parquet")
    groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    assert groups == [GROUP_ROWS, GROUP_ROWS, 1100 - 2 * GROUP_ROWS]
    stats = [(tmp_path / folder / "00000.parquet").stat().st_mtime_ns for folder in ("x", "y")]
    assert stats[0] == stats[1]


def test_emoji_list_is_read_without_skin_tones() -> None:
    text = """# group: Smileys & Emotion
1F600                                      ; fully-qualified     # 😀 E1.0 grinning face
263A                                       ; unqualified         # ☺ E0.6 smiling face
# group: People & Body
1F44B                                      ; fully-qualified     # 👋 E0.6 waving hand
1F44B 1F3FB                    ; fully-qualified     # 👋🏻 E1.0 waving hand: light skin tone
# group: Component
1F9B0                                      ; component           # 🦰 E11.0 red hair
# group: Flags
1F1E6 1F1E8                                ; fully-qualified     # 🇦🇨 E2.0 flag: Ascension Island
"""
    listed = noto_emoji.read_list(text)
    assert [(emoji.name, emoji.group) for emoji in listed] == [
        ("grinning face", "Smileys & Emotion"),
        ("waving hand", "People & Body"),
        ("flag: Ascension Island", "Flags"),
    ]
    assert listed[2].text == "🇦🇨"


def test_emoji_splits_are_a_fixed_share() -> None:
    splits = Counter(noto_emoji.Emoji("", f"name {n}", "Flags").split for n in range(4000))
    assert 0.13 < splits["test"] / 4000 < 0.17
    golden = {
        "grinning face": "test",
        "waving hand": "train",
        "red heart": "train",
        "pizza": "test",
    }
    assert {name: noto_emoji.Emoji("", name, "Flags").split for name in golden} == golden


def test_every_corpus_names_its_licence_and_origin() -> None:
    for entry in CORPORA.values():
        assert entry.licence
        assert entry.origin.startswith("https://")
        assert entry.splits
        assert entry.packages


def test_corpora_command(apt: object, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["corpora", "list", "--json", "-"]) == 0
    assert json.loads(capfd.readouterr().out)["fashion_mnist"]["fetched"] is False
    assert cli.main(["corpora", "fetch", "fashion_mnist", "--json", "-"]) == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out)["fashion_mnist"]["splits"]["train"]["records"] == 700
    assert "train 700, test 30 records" in captured.err
    assert cli.main(["corpora", "list", "--json", "-"]) == 0
    assert json.loads(capfd.readouterr().out)["fashion_mnist"]["fetched"] is True
    assert cli.main(["corpora", "fetch"]) == 2
    assert "needs a name: fashion_mnist" in capfd.readouterr().err


class TestEvaluators:
    def test_list_tells_what_is_installed(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "pycocoevalcap.py").write_text("")
        monkeypatch.syspath_prepend(str(tmp_path))
        assert cli.main(["evaluators", "list", "--json", "-"]) == 0
        report = json.loads(capfd.readouterr().out)
        assert set(report) == set(evaluators.EVALUATORS)
        assert report["pycocoevalcap"]["installed"] is True

    def test_fetch_asks_pip_for_no_dependencies(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
        python.chmod(0o755)
        monkeypatch.setattr("sys.executable", str(python))
        assert cli.main(["evaluators", "fetch", "distillmos"]) == 0
        call = (tmp_path / "calls").read_text().split()
        assert call[:4] == ["-m", "pip", "install", "--no-deps"]
        assert call[-2:] == ["distillmos==0.9.1", "xls-r-sqa==0.1.0"]
        python.write_text("#!/bin/sh\necho 'ERROR: no network' >&2; exit 1\n")
        assert cli.main(["evaluators", "fetch", "distillmos"]) == 1
        assert "pip could not install distillmos: ERROR: no network" in capfd.readouterr().err

    def test_wrong_names(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["evaluators", "fetch", "distilmos"]) == 2
        assert "did you mean distillmos?" in capfd.readouterr().err
        assert cli.main(["evaluators", "fetch"]) == 2
        assert "needs a name" in capfd.readouterr().err
