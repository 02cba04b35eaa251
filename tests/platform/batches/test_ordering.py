"""Laws of the sample order: each sample once an epoch, whatever the workers; small windows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlm_platform.batches.ordering import SampleOrder, Share, held_out_rows

SIZES = (5, 3, 0, 7, 4, 1)


def pairs(order: SampleOrder, start: int, stop: int) -> list[tuple[int, int]]:
    rows = order.rows(start, stop)
    return list(zip(rows.chunks.tolist(), rows.rows.tolist(), strict=True))


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.integers(0, 2**31),
    st.integers(1, 5),
    st.integers(0, 4),
)
@settings(max_examples=60, deadline=None)
def test_every_epoch_holds_every_sample_once(
    sizes: list[int], seed: int, window: int, epoch: int
) -> None:
    order = SampleOrder(tuple(sizes), seed=seed, window_chunks=window)
    length = order.epoch_length
    rows = order.rows(epoch * length, (epoch + 1) * length)
    assert sorted(rows.ids.tolist()) == list(range(length))
    assert set(rows.epochs.tolist()) == {epoch}
    for chunk, row in zip(rows.chunks, rows.rows, strict=True):
        assert 0 <= row < sizes[chunk]


@given(st.integers(0, 50), st.integers(1, 60), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_any_range_is_a_cut_of_the_whole(start: int, length: int, cut: int) -> None:
    order = SampleOrder(SIZES, seed=3, window_chunks=2)
    cut = min(cut, length)
    whole = pairs(order, start, start + length)
    parts = pairs(order, start, start + cut)
    if cut < length:
        parts += pairs(order, start + cut, start + length)
    assert parts == whole


def test_epochs_and_seeds_differ() -> None:
    order = SampleOrder((50, 50), seed=0, window_chunks=2)
    assert pairs(order, 0, 100) != pairs(order, 100, 200)
    assert pairs(order, 0, 100) != pairs(SampleOrder((50, 50), seed=1, window_chunks=2), 0, 100)


def test_a_window_mixes_only_its_chunks() -> None:
    order = SampleOrder((10,) * 6, seed=0, window_chunks=2)
    for window in range(3):
        chunks = {chunk for chunk, _ in pairs(order, window * 20, (window + 1) * 20)}
        assert len(chunks) == 2


@pytest.mark.parametrize(("workers", "accumulation"), [(1, 1), (2, 1), (1, 4), (4, 2)])
def test_the_global_batch_does_not_depend_on_the_workers(workers: int, accumulation: int) -> None:
    for step in (0, 5):
        positions = [
            position
            for rank in range(workers)
            for start, stop in Share(16, rank, workers, accumulation).positions(step)
            for position in range(start, stop)
        ]
        assert sorted(positions) == list(range(step * 16, (step + 1) * 16))


def test_held_out_rows_are_a_stable_share() -> None:
    held = held_out_rows(seed=0, chunk=3, size=200, fraction=0.1)
    assert len(held) == 20
    assert np.array_equal(held, held_out_rows(seed=0, chunk=3, size=200, fraction=0.1))
    assert not np.array_equal(held, held_out_rows(seed=0, chunk=4, size=200, fraction=0.1))
