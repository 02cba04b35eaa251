"""A corpus divided: nothing lost, nothing shared, every row decoded or told to be bad."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
    assert len(train) == splits.train.chunk_sizes.sum() == 30
    assert len(held_out) == splits.held_out.chunk_sizes.sum() == 10
    assert len(set(train) | set(held_out)) == 40
    assert [sum(key.startswith(f"class-{c}/") for key in held_out) for c in (0, 1)] == [5, 5]


def test_ids_are_the_same_whichever_the_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_class_folders(tmp_path / "corpus", classes=2, images_a_class=20, size=8)
    splits = opened(tmp_path, monkeypatch)
    every = Split(splits.train.index, splits.train.corpus, "all", 0)
    of_key = {
        signal.key: number
        for chunk in range(5)
        for signal, number in zip(every.decode_chunk(chunk), every.ids_of(chunk), strict=True)
    }
    assert sorted(of_key.values()) == list(range(40))
    for split in splits:
        for chunk in range(5):
            ids = split.ids_of(chunk)
            assert [of_key[s.key] for s in split.decode_chunk(chunk)] == ids.tolist()
            assert [s.key for s in split.decode_chunk(chunk, rows=slice(2))] == [
                s.key for s in split.decode_chunk(chunk)[:2]
            ]


def test_a_split_travels_light(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_class_folders(tmp_path / "corpus", classes=2, images_a_class=200, size=8)
    train = opened(tmp_path, monkeypatch, chunk_records=1).train
    assert train.chunk_sizes.sum() == 300
    assert [len(train.rows_of(chunk)) for chunk in range(400)] == train.chunk_sizes.tolist()
    sent = pickle.dumps(train)
    assert len(sent) < 2500
    assert np.array_equal(pickle.loads(sent).chunk_sizes, train.chunk_sizes)


def test_bad_records_keep_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_class_folders(tmp_path / "corpus", classes=2, images_a_class=20, size=8)
    for number in (3, 7):
        (folder / "class-0" / f"{number:04d}.png").write_bytes(b"no image")
    train = opened(tmp_path, monkeypatch).train
    signals = [train.decode_chunk(chunk) for chunk in range(len(train.chunk_sizes))]
    assert [len(s) for s in signals] == train.chunk_sizes.tolist()
    bad = [s for chunk in signals for s in chunk if isinstance(s, BadRecord)]
    assert {(s.kind, s.group) for s in bad} == {("not_an_image", "class-0")}
    assert survey(train) == (30, bad)


def test_held_out_classes_must_be_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_class_folders(tmp_path / "corpus", classes=2, images_a_class=4, size=8)
    other = write_class_folders(tmp_path / "other", classes=2, images_a_class=4, size=8)
    (other / "class-1").rename(other / "class-9")
    with pytest.raises(UserError, match=r"class-9.*both must be the same"):
        opened(tmp_path, monkeypatch, held_out_source=str(other))


def test_a_held_out_source_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_class_folders(tmp_path / "corpus", classes=2, images_a_class=8, size=8)
    other = write_class_folders(tmp_path / "other", classes=2, images_a_class=4, size=8)
    splits = opened(tmp_path, monkeypatch, held_out_source=str(other))
    assert (splits.train.chunk_sizes.sum(), splits.held_out.chunk_sizes.sum()) == (16, 8)
    assert not list((tmp_path / "home").rglob("held_out-*"))
