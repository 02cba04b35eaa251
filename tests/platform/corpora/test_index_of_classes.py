"""What an index says of labels does not depend on how many classes were expected of it."""

from pathlib import Path

import numpy as np
import pytest

from latentlm_platform.corpora.splits import open_splits
from latentlm_platform.experiment.sections import Corpus
from making_corpora import make_tar


def held_out(source: Path, *expected: int) -> list[int]:
    """The held-out records, after the corpus was opened with each of these numbers of classes."""
    for classes in expected:
        corpus = Corpus(
            source=str(source),
            classes=classes,
            image_size=8,
            held_out_fraction=0.2,
            chunk_records=8,
        )
        splits = open_splits(corpus, seed=0)
    chunks = range(len(splits.held_out.chunk_sizes))
    return [int(n) for chunk in chunks for n in splits.held_out.ids_of(chunk)]


def test_a_mistaken_number_of_classes_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "tars"
    source.mkdir()
    members = [
        (f"{n:04}.{name}", data)
        for n in range(100)
        for name, data in (("png", b"x"), ("cls", str(n % 10).encode()))
    ]
    make_tar(source / "a.tar", members)
    monkeypatch.setenv("LATENTLM_HOME", str(tmp_path / "alone"))
    alone = held_out(source, 10)
    monkeypatch.setenv("LATENTLM_HOME", str(tmp_path / "mistaken"))
    assert held_out(source, 2, 10) == alone
    labels = np.array(alone) % 10  # record n has class n mod 10
    assert np.bincount(labels, minlength=10).tolist() == [2] * 10
