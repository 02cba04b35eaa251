"""Laws of the order: every record once an epoch, whatever the workers; chunks opened by one."""

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlm_platform.batches.lanes import (
    WHOLE_CHUNKS_A_LANE,
    LaneOrder,
    Piece,
    Place,
    lanes_of,
)

Record = tuple[int, int]
Window = list[Record]
SHAPES = {
    "one chunk": [40],
    "fewer chunks than lanes": [3, 50, 7],
    "as many": [9] * 8,
    "many": [20] * 100,
    "uneven": np.random.default_rng(0).integers(1, 90, 61).tolist(),
    "with empty ones": [0, 12, 0, 0, 31, 5, 0, 1] * 6,
    "one large": [500, *[3] * 40],
}


def order_of(sizes: list[int], *, lanes: int = 8, window: int = 2, seed: int = 0) -> LaneOrder:
    array = np.array(sizes, np.int64)
    return LaneOrder(array, seed=seed, lanes=lanes, window_chunks=window * lanes)


def windows(order: LaneOrder, lane: int, epoch: int) -> list[Window]:
    """The records of a lane's epoch in order, window by window."""
    found = []
    while pieces := order.pieces(lane, epoch, len(found)):
        records = [(p.chunk, row) for p in pieces for row in range(p.first, p.last)]
        found.append([records[i] for i in order.shuffled(lane, epoch, len(found))])
    return found


def records(order: LaneOrder, lane: int, epoch: int) -> list[Record]:
    return [record for window in windows(order, lane, epoch) for record in window]


def whole(sizes: list[int]) -> list[Record]:
    return [(chunk, row) for chunk, size in enumerate(sizes) for row in range(size)]


def check_epochs(sizes: list[int], order: LaneOrder) -> None:
    for epoch in (0, 1, 5):
        found = [r for lane in range(order.lanes) for r in records(order, lane, epoch)]
        assert sorted(found) == whole(sizes)


@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("lanes", [1, 3, 8])
def test_an_epoch_of_all_lanes_holds_every_record_once(sizes: list[int], lanes: int) -> None:
    check_epochs(sizes, order_of(sizes, lanes=lanes))


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=40),
    st.integers(1, 8),
    st.integers(1, 5),
    st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_it_does_for_any_corpus(sizes: list[int], lanes: int, window: int, seed: int) -> None:
    check_epochs(sizes, order_of(sizes, lanes=lanes, window=window, seed=seed))


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_workers_divide_the_lanes_among_them(workers: int) -> None:
    owned = [lane for rank in range(workers) for lane in lanes_of(rank, workers=workers, lanes=8)]
    assert owned == list(range(8))


@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
def test_a_lane_goes_on_from_any_place(sizes: list[int]) -> None:
    """Its order is its own: it needs no other lane, and nothing of what came before."""
    order = order_of(sizes)
    stream = order.windows_from(3, Place())
    unbroken = [next(stream) for _ in range(12)]
    assert [epoch for epoch, _, _ in unbroken] == sorted(epoch for epoch, _, _ in unbroken)
    for number, (epoch, window, pieces) in enumerate(unbroken):
        another = order_of(sizes).windows_from(3, Place(epoch, window, 1))
        assert [next(another) for _ in range(3)] == unbroken[number : number + 3] or number > 9
        assert pieces == order_of(sizes).pieces(3, epoch, window)
        assert all(piece.size for piece in pieces)
        behind = order_of(sizes).windows_from(3, Place(epoch, window + 1))
        if number < 11:
            assert next(behind) == unbroken[number + 1]


@pytest.mark.parametrize("name", ["many", "uneven"])
def test_with_enough_chunks_each_belongs_to_one_lane(name: str) -> None:
    sizes = SHAPES[name]
    order = order_of(sizes)
    assert len(sizes) >= WHOLE_CHUNKS_A_LANE * 8
    for epoch in range(20):
        opened: Counter[int] = Counter()
        for lane in range(8):
            stream = order.windows_from(lane, Place(epoch))
            while (found := next(stream))[0] == epoch:
                opened.update(piece.chunk for piece in found[2])
        assert opened == dict.fromkeys(range(len(sizes)), 1)


@pytest.mark.parametrize("name", ["one chunk", "fewer chunks than lanes", "as many"])
def test_with_few_chunks_every_lane_has_its_share(name: str) -> None:
    order = order_of(SHAPES[name])
    for epoch in range(5):
        shares = [len(records(order, lane, epoch)) for lane in range(8)]
        assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize(("name", "chunks"), [("many", 1.0), ("uneven", 10.0)])
def test_no_lane_runs_ahead_of_another(name: str, chunks: float) -> None:
    """After 60 epochs lanes were dealt alike, to a chunk where all are alike: the deal goes round.

    Shares that stayed where they are would be tens of chunks apart. Uneven chunks are rounded anew
    in each epoch, which adds up as chance does: slowly.
    """
    sizes, epochs = SHAPES[name], 60
    order = order_of(sizes)
    dealt = np.zeros(8, np.int64)
    for epoch in range(epochs):
        dealt += [
            sum(piece.size for w in windows_of(order, lane, epoch) for piece in w)
            for lane in range(8)
        ]
        assert np.ptp(dealt) <= chunks * max(sizes)
    assert dealt.sum() == epochs * sum(sizes)
    assert np.ptp(dealt) < 0.05 * dealt.mean()


def test_shares_are_fair_to_half_a_chunk() -> None:
    sizes = SHAPES["uneven"]
    order = order_of(sizes)
    fair = sum(sizes) * np.arange(1, 9) / 8
    for epoch in range(6):
        shares = [len(records(order, (share - epoch) % 8, epoch)) for share in range(8)]
        assert np.abs(np.cumsum(shares) - fair).max() <= max(sizes) / 2


def windows_of(order: LaneOrder, lane: int, epoch: int) -> list[list[Piece]]:
    found: list[list[Piece]] = []
    while pieces := order.pieces(lane, epoch, len(found)):
        found.append(pieces)
    return found


def test_the_deal_goes_round() -> None:
    """The share that is a chunk larger than others is another lane's in each epoch."""
    order = order_of([10] * 33)
    largest = [
        max(range(8), key=lambda lane, e=epoch: len(records(order, lane, e)))  # type: ignore[misc]
        for epoch in range(8)
    ]
    assert sorted(largest) == list(range(8))


def test_a_window_mixes_only_its_chunks() -> None:
    order = order_of([10] * 64, window=3)
    seen: set[int] = set()
    for window in windows(order, lane=2, epoch=1):
        chunks = [chunk for chunk, _ in window]
        held = set(chunks)
        assert len(held) in (2, 3)  # 8 chunks a lane: 3, 3 and 2
        assert not held & seen
        seen |= held
        turns = sum(one != other for one, other in pairwise(chunks))
        assert turns > 2 * len(held)  # not chunk by chunk
    assert len(seen) == 8


def test_epochs_seeds_and_lanes_differ() -> None:
    order = order_of([16] * 40)
    other = order_of([16] * 40, seed=1)
    found: list[Any] = [records(order, 0, 0), records(order, 0, 1), records(other, 0, 0)]
    assert all(one != another for n, one in enumerate(found) for another in found[n + 1 :])
    shuffles = [
        order.shuffled(lane, epoch, w) for lane in (0, 1) for epoch in (0, 1) for w in (0, 1)
    ]
    assert len({tuple(shuffle) for shuffle in shuffles}) == 8
    assert records(order_of([16] * 40), 0, 0) == found[0]
    chunks = [{chunk for chunk, _ in records(order, *at)} for at in ((1, 0), (0, 1))]
    assert chunks[0] != chunks[1]  # the same share of two epochs


def test_what_a_worker_asks_for_does_not_grow_with_its_steps() -> None:
    order = order_of([100] * 800)
    assert order.chunks_for(10**9, lanes=8) == 800
    assert order.chunks_for(10**9, lanes=2) == 200
    assert 10 <= order.chunks_for(100, lanes=8) <= 30
    few = order_of([0, 5, 0])
    assert few.chunks_for(10**9, lanes=8) == 1


def test_memory_of_twenty_thousand_chunks() -> None:
    """Two epochs are the most that are held at once, beside the chunk sizes."""
    sizes = np.full(20_000, 500, np.int64)
    order = LaneOrder(sizes, seed=0, lanes=64, window_chunks=128)
    for epoch in (4, 6, 5, 5, 4, 6, 9, 10, 11, 10, 11):
        for lane in (0, 63):
            assert order.pieces(lane, epoch, 0)
        held = sum(array.nbytes for deal in order._deals.values() for array in deal)
        assert held + sizes.nbytes <= 64 * len(sizes)
    assert set(order._deals) == {10, 11}  # lanes cross over one by one: neither is made again
