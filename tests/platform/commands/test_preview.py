"""`latentlm preview` on small corpora of a real experiment file."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentlm.media import encode_png
from latentlm_platform import cli

QUICKSTART = Path(__file__).parents[3] / "experiments" / "quickstart.yaml"
CLASSES = ("bird", "cat", "dog")
IMAGES = 30


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATENTLM_HOME", str(tmp_path / "home"))
    root = tmp_path / "corpus"
    for number in range(IMAGES):
        path = root / CLASSES[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(np.full((20, 30, 3), 40 + number % 3 * 60, np.uint8)))
    (root / "cat" / "note.txt").write_text("no image")
    return root


def preview(corpus: Path, *arguments: str) -> int:
    source = [f"corpus.source={corpus}", "corpus.classes=3", "corpus.chunk_records=8"]
    sets = [part for value in source for part in ("--set", value)]
    return cli.main(["preview", str(QUICKSTART), *sets, *arguments])


def test_report_and_picture(
    corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "pictures" / "sample.png"
    assert preview(corpus, "--json", "-", "--out", str(picture)) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["class_counts"] == dict.fromkeys(CLASSES, 10)
    assert report["bad_records"] == {"not_an_image": 1}
    assert [bad["key"] for bad in report["bad_examples"]] == ["cat/note.txt"]
    assert report["records"] == report["sampled_records"] == IMAGES + 1
    assert report["picture"] == str(picture)
    levels = set(np.unique(np.asarray(Image.open(picture).convert("L"))))
    assert {40, 100, 160, 255} <= levels  # an image of each class, on white


def test_sampled_chunks_are_said(corpus: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert preview(corpus, "--chunks", "2") == 0
    said = capfd.readouterr().out
    assert "31 records; " in said
    assert "read in 2 of 4 chunks" in said
    assert "home/previews/" in said


def test_wrong_number_of_classes_is_one_sentence(
    corpus: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert preview(corpus, "--set", "corpus.classes=4") == 2
    assert "has 3 class folders (bird, cat, dog) but corpus.classes is 4" in capfd.readouterr().err


def test_picture_that_cannot_be_written(corpus: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert preview(corpus, "--out", str(corpus / "cat" / "note.txt" / "x.png")) == 2
    assert "cannot be written" in capfd.readouterr().err
