"""A corpus divided: nothing lost, nothing shared, unreadable images replaced the same way."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentlm_platform.batches.ordering import SampleOrder
from latentlm_platform.corpora.records import BadRecord
from latentlm_platform.corpora.splits import Split, Splits, open_splits, survey
from latentlm_platform.errors import UserError
from latentlm_platform.experiment.sections import Corpus
from making_corpora import write_class_folders


def opened(root: Path, monkeypatch: pytest.MonkeyPatch, **fields: object) -> Splits:
    monkeypatch.setenv("LATENTLM_HOME", str(root / "home"))
    settings: dict[str, Any] = {
        "classes": 2,
        "image_size": 8,
        "channels": 1,
        "chunk_records": 8,
    } | fields
    corpus = Corpus(source=str(root / "corpus"), held_out_fraction=0.25, **settings)
    return open_splits(corpus, seed=0)


def keys(split: Split) -> list[str]:
    return [s.key for chunk in range(len(split.chunk_sizes)) for s in split.decode_chunk(chunk)]


def test_train_and_held_out_part_the_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_class_folders(tmp_path / "corpus", classes=2, images_a_class=20, size=8)
    splits = opened(tmp_path, monkeypatch)
    train, held_out = keys(splits.train), keys(splits.held_out)
    assert len(train) == sum(splits.train.chunk_sizes) == 30
    assert len(held_out) == sum(splits.held_out.chunk_sizes) == 10
    assert len(set(train) | set(held_out)) == 40


def test_an_unreadable_image_is_replaced_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_class_folders(tmp_path / "corpus", classes=2, images_a_class=20, size=8)
    for number in (3, 7):
        (folder / "class-0" / f"{number:04d}.png").write_bytes(b"no image")
    train = opened(tmp_path, monkeypatch).train
    order = SampleOrder(tuple(train.chunk_sizes.tolist()), seed=0, window_chunks=2)
    whole = train.decode_rows(order.rows(0, 30))
    assert len(whole.pixels) == len(whole.labels) == 30
    halves = [train.decode_rows(order.rows(a, b)) for a, b in ((0, 11), (11, 30))]
    assert np.array_equal(np.concatenate([h.pixels for h in halves]), whole.pixels)
    chunks = range(len(train.chunk_sizes))
    signals = [s for chunk in chunks for s in train.decode_chunk(chunk)]
    bad = [s for s in signals if isinstance(s, BadRecord)]
    seen, surveyed = survey(train)
    assert (seen, surveyed) == (30, bad)


def test_a_chunk_without_a_good_image_is_stood_in_for_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_class_folders(tmp_path / "corpus", classes=2, images_a_class=20, size=8)
    train = opened(tmp_path, monkeypatch).train
    for signal in train.decode_chunk(1):
        (folder / signal.key).write_bytes(b"no image")
    train = opened(tmp_path, monkeypatch).train
    assert all(isinstance(signal, BadRecord) for signal in train.decode_chunk(1))
    rows = SampleOrder(
        tuple(train.chunk_sizes.tolist()), seed=0, window_chunks=1, shuffled=False
    ).rows(6, 12)
    assert set(rows.chunks.tolist()) == {1}
    assert len(train.decode_rows(rows).pixels) == 6


def test_a_corpus_without_a_good_image_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_class_folders(tmp_path / "corpus", classes=2, images_a_class=8, size=8)
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no image")
    train = opened(tmp_path, monkeypatch).train
    order = SampleOrder(tuple(train.chunk_sizes.tolist()), seed=0, window_chunks=1)
    with pytest.raises(UserError, match="can be read"):
        train.decode_rows(order.rows(0, 4))


def test_held_out_classes_must_be_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_class_folders(tmp_path / "corpus", classes=2, images_a_class=4, size=8)
    other = write_class_folders(tmp_path / "other", classes=2, images_a_class=4, size=8)
    (other / "class-1").rename(other / "class-9")
    with pytest.raises(UserError, match=r"class-9.*both must be the same"):
        opened(tmp_path, monkeypatch, held_out_source=str(other))
