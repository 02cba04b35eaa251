"""Held-out records: the right number, of every class, all over the corpus, always the same."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlm_platform.corpora import division
from latentlm_platform.corpora.division import divide
from latentlm_platform.corpora.splits import open_splits
from making_corpora import corpus, make_parquet, png


def held_out(labels: list[int], *, seed: int = 0, fraction: float) -> np.ndarray:
    blocks = list(divide(np.array(labels, np.int32), seed=seed, fraction=fraction))
    return np.concatenate(blocks) if blocks else np.empty(0, bool)


@given(
    st.lists(st.integers(-1, 4), max_size=300),
    st.integers(0, 2**40),
    st.floats(0, 0.9),
)
@settings(max_examples=200, deadline=None)
def test_every_class_gives_its_share(labels: list[int], seed: int, fraction: float) -> None:
    held = held_out(labels, seed=seed, fraction=fraction)
    assert held.sum() == round(len(labels) * fraction)
    for label in set(labels):
        of_class = np.array(labels) == label
        assert abs(held[of_class].sum() - fraction * of_class.sum()) <= 1


@given(st.integers(1, 400), st.floats(0.01, 0.9), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_one_of_each_stretch(count: int, fraction: float, seed: int) -> None:
    places = np.flatnonzero(held_out([7] * count, seed=seed, fraction=fraction))
    edges = np.arange(len(places) + 1) * count // max(1, len(places))
    assert ((places >= edges[:-1]) & (places < edges[1:])).all()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.random.default_rng(0).integers(-1, 5, 1000).tolist()
    whole = held_out(labels, fraction=0.1)
    monkeypatch.setattr(division, "BLOCK_RECORDS", 64)
    assert np.array_equal(held_out(labels, fraction=0.1), whole)


def test_another_seed_holds_out_others_without_a_pattern() -> None:
    seeds = [held_out([0] * 4000, seed=seed, fraction=0.05) for seed in range(20)]
    assert 0 < (seeds[0] & seeds[1]).sum() < 30  # 200 of 4000 twice: 10 in common by chance
    places = np.concatenate([np.flatnonzero(held) % 20 for held in seeds])
    counts = np.bincount(places, minlength=20)  # each place of a stretch as often as another
    assert counts.min() > 150
    assert counts.max() < 260


def test_a_hundred_small_files_hold_out_forty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTLM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(division, "BLOCK_RECORDS", 64)  # several, and chunks across their edges
    for file in range(100):
        table = pa.table({"image": [png(file)] * 8, "label": [file % 3] * 8})
        make_parquet(tmp_path / "c" / f"{file:03}.parquet", table)
    settings = corpus(source=str(tmp_path / "c"), held_out_fraction=0.05, chunk_records=8)
    train, held = open_splits(settings, seed=3)
    assert len(held.chunk_sizes) == 100
    assert held.chunk_sizes.sum() == 40
    assert np.array_equal(train.chunk_sizes + held.chunk_sizes, train.index.chunk_sizes)
    for split in (train, held):
        sizes = [len(split.rows_of(chunk)) for chunk in range(100)]
        assert sizes == split.chunk_sizes.tolist()
    ids = np.concatenate([s.ids_of(chunk) for chunk in range(100) for s in (train, held)])
    assert np.array_equal(np.sort(ids), np.arange(800))
    assert np.bincount(held.index.labels[np.concatenate([held.ids_of(c) for c in range(100)])]
                       ).tolist() == [14, 13, 13]  # fmt: skip


def test_sorted_classes_in_one_chunk_and_unknown_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTLM_HOME", str(tmp_path / "home"))
    labels = [0] * 40 + [1] * 20 + [2] * 20 + [9] * 10 + [None] * 10
    table = pa.table({"image": [png(1)] * 100, "label": labels})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=30)
    settings = corpus(source=str(tmp_path), held_out_fraction=0.1, chunk_records=100)
    index = open_splits(settings, seed=0).train.index
    found = np.unique(index.labels, return_counts=True)
    assert [f.tolist() for f in found] == [[-1, 0, 1, 2, 9], [10, 40, 20, 20, 10]]
    held = open_splits(settings, seed=0).held_out
    assert np.bincount(index.labels[held.ids_of(0)] + 1).tolist() == [1, 4, 2, 2, *[0] * 6, 1]
