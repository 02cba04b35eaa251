"""Where lanes take chunks from: asked for as they are needed, in legs, each taken once a wish."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentlm_platform.batches.documents import Composer
from latentlm_platform.batches.lane import Cursor, Lane, LaneSource
from latentlm_platform.batches.lanes import LaneOrder
from latentlm_platform.batches.shelves import (
    SHORTEST_LEG,
    CachedShelf,
    StreamedShelf,
    WriteThroughShelf,
    open_encoded,
    order_of,
    wishes,
)
from latentlm_platform.errors import UserError
from latentlm_platform.latents.cache import LatentCache
from latentlm_platform.latents.encoded import EncodedChunk
from making_chunks import BAD, WIDTH, MemoryShelf, image, shown, source_of, text
from making_corpora import corpus

COMPOSER = Composer(48, 300)
LANES = 4
SIZES = {
    "even": [10] * 40,
    "uneven": np.random.default_rng(0).integers(1, 40, 50).tolist(),
    "very uneven": (np.random.default_rng(1).lognormal(2, 1.2, 60).astype(int) + 1).tolist(),
    "few": [3, 90, 1],
}


def source(sizes: Sequence[int], **settings: Any) -> LaneSource:
    random = np.random.default_rng(0)
    chunks: list[Any] = [
        [
            BAD
            if random.random() < 0.1
            else (text(*random.integers(0, 200, random.integers(1, 12)).tolist()), image(4))
            for _ in range(size)
        ]
        for size in sizes
    ]
    return source_of(chunks, lanes=LANES, **settings)


@dataclass
class Graph:
    """What Ray Data would do, here: makes chunks when asked for, and counts."""

    chunks: list[EncodedChunk]
    cache: LatentCache | None = None
    legs: list[int] = field(default_factory=list)
    made: list[int] = field(default_factory=list)

    def streamed(self, wished: Sequence[Any]) -> Iterator[Any]:
        self.legs.append(len(wished))
        for wish in wished:
            self.made.append(wish.chunk)
            yield self.chunks[wish.chunk].arrays()

    def written(self, items: Sequence[tuple[int, ...]]) -> Iterator[Any]:
        assert self.cache is not None
        self.legs.append(len(items))
        for split, chunk in items:
            assert split == 0
            self.made.append(chunk)
            keys = [""] * len(self.chunks[chunk])
            self.cache.write_chunk("train", chunk, self.chunks[chunk], keys=keys)
            self.cache.write_report("train", chunk, {"bad": {}})
            yield {}


def memory(one: LaneSource) -> list[EncodedChunk]:
    assert isinstance(one.shelf, MemoryShelf)
    return one.shelf.chunks


def lanes(one: LaneSource, cursors: dict[int, Cursor], shelf: Any) -> list[Lane]:
    own = replace(one, shelf=shelf)
    return [Lane([own], COMPOSER, lane=lane, cursor=cursor) for lane, cursor in cursors.items()]


def start(*which: int) -> dict[int, Cursor]:
    return {lane: Cursor.start(1) for lane in which or range(LANES)}


def rows(of: list[Lane], count: int) -> list[Any]:
    return [[shown(d) for d in lane.next_row()] for _ in range(count) for lane in of]


def streamed(one: LaneSource, cursors: dict[int, Cursor]) -> tuple[Graph, StreamedShelf]:
    graph = Graph(memory(one))
    wished = wishes(one.order, cursors, number=0)
    return graph, StreamedShelf(wished, graph.streamed, open_encoded, leg=1)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_streamed_chunks_give_the_same_rows_and_none_piles_up(sizes: list[int]) -> None:
    one = source(sizes)
    (graph, shelf), most = streamed(one, start()), 0
    wanted, found = lanes(one, start(), one.shelf), lanes(one, start(), shelf)
    while wanted[0].cursor().places[0].epoch < 7:
        assert rows(found, 1) == rows(wanted, 1)
        most = max(most, len(shelf._waiting))
    opened = sum(one.shelf.taken.values())  # type: ignore[attr-defined]
    assert opened <= len(graph.made) <= opened + most + 1
    # lanes pack at their own pace, so that some chunks wait: a few, not those of whole epochs
    assert most <= len(sizes) / 2 + 2 * LANES
    assert most < len(graph.made) / 8


def test_a_cursor_in_the_middle_of_everything() -> None:
    """Chunks of documents that waited are asked for first, and let go when these are made."""
    ours = [source(SIZES["uneven"]), source(SIZES["very uneven"], seed=1)]
    before = [Lane(ours, COMPOSER, lane=n, cursor=Cursor.start(2)) for n in range(LANES)]
    rows(before, 30)
    states = json.dumps([lane.cursor().state() for lane in before])
    cursors = {n: Cursor.of(state) for n, state in enumerate(json.loads(states))}
    assert all({ref.source for ref in c.waiting} == {0, 1} for c in cursors.values())
    streams = [
        StreamedShelf(
            wishes(one.order, cursors, number=number),
            Graph(memory(one)).streamed,
            open_encoded,
            leg=1,
        )
        for number, one in enumerate(ours)
    ]
    own = [replace(one, shelf=shelf) for one, shelf in zip(ours, streams, strict=True)]
    resumed = [Lane(own, COMPOSER, lane=n, cursor=cursor) for n, cursor in cursors.items()]
    for one, shelf, number in zip(ours, streams, (0, 1), strict=True):
        for lane, epoch, chunk in shelf._waiting:  # only what a window has yet to take
            place = cursors[lane].places[number]
            window = one.order.pieces(lane, place.epoch, place.window)
            assert (epoch, chunk) in {(place.epoch, piece.chunk) for piece in window}
    assert rows(resumed, 40) == rows(before, 40)


def test_a_chunk_that_lanes_share_is_made_once_for_all() -> None:
    """Where chunks are made whole: every leg asks for each chunk of an epoch once."""
    one = source(SIZES["few"])
    graph = Graph(memory(one))
    wished = wishes(one.order, start(), number=0)
    shelf = StreamedShelf(wished, graph.streamed, open_encoded, leg=1, whole=True)
    wanted, found = lanes(one, start(), one.shelf), lanes(one, start(), shelf)
    while wanted[0].cursor().places[0].epoch < 9:
        assert rows(found, 1) == rows(wanted, 1)
    opened = sum(one.shelf.taken.values())  # type: ignore[attr-defined]
    assert opened > 45  # pieces; of 3 chunks in about 9 epochs
    assert len(graph.made) < 0.8 * opened


def test_reading_is_planned_in_legs() -> None:
    one = source(SIZES["even"])
    graph, shelf = streamed(one, start())
    assert not graph.legs  # nothing before it is wanted
    rows(lanes(one, start(), shelf), 1)
    assert graph.legs == [SHORTEST_LEG]
    assert len(graph.made) <= 5 * LANES
    leg = one.order.chunks_for(10**9, lanes=2)
    assert leg == 20  # an epoch's share, however long the run


def test_a_worker_asks_for_its_own_lanes_alone() -> None:
    one = source(SIZES["even"])
    epochs: dict[int, list[int]] = {}
    for own in ((0, 1), (2, 3)):
        for wish in itertools.islice(wishes(one.order, start(*own), number=0), 60):
            assert wish.lane in own
            assert (wish.first, wish.last) == (0, 10)
            epochs.setdefault(wish.epoch, []).append(wish.chunk)
    assert sorted(epochs[0]) == list(range(40))


class TestWriteThrough:
    """The first epoch fills the cache while it is read; then nothing is encoded any more."""

    @pytest.fixture
    def cache(self, tmp_path: Path) -> LatentCache:
        return LatentCache(tmp_path, WIDTH)

    def open(
        self, one: LaneSource, cache: LatentCache, cursors: dict[int, Cursor]
    ) -> tuple[Graph, list[Lane]]:
        graph = Graph(memory(one), cache)
        wished = wishes(one.order, cursors, number=0)
        return graph, lanes(one, cursors, WriteThroughShelf(wished, graph.written, cache, leg=1))

    @pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
    def test_each_chunk_is_encoded_once(self, cache: LatentCache, sizes: list[int]) -> None:
        one = source(sizes)
        graph, found = self.open(one, cache, start())
        wanted = lanes(one, start(), one.shelf)
        while min(lane.cursor().places[0].epoch for lane in found) < 1:
            assert rows(found, 1) == rows(wanted, 1)
        assert sorted(graph.made) == list(range(len(sizes)))
        assert rows(found, 30) == rows(wanted, 30)
        assert len(graph.made) == len(sizes)
        full = lanes(one, start(), CachedShelf(cache))
        again = lanes(one, start(), MemoryShelf(memory(one)))
        assert rows(full, 60) == rows(again, 60)

    def test_stopped_anywhere_it_goes_on(self, cache: LatentCache) -> None:
        one = source(SIZES["uneven"])
        graph, found = self.open(one, cache, start())
        rows(found, 3)
        made = set(graph.made)
        assert 0 < len(made) < len(SIZES["uneven"])
        torn = next(iter(made))  # a writer was killed before it said that it was done
        cache.report_path("train", torn).unlink()
        cursors = {n: lane.cursor() for n, lane in enumerate(found)}
        graph, resumed = self.open(one, cache, cursors)
        wanted = lanes(one, start(), one.shelf)
        rows(wanted, 3)
        assert rows(resumed, 60) == rows(wanted, 60)
        assert set(graph.made) & made <= {torn}

    def test_two_workers_share_a_cache(self, cache: LatentCache) -> None:
        one = source(SIZES["uneven"])
        wanted = lanes(one, start(), one.shelf)
        pair = [self.open(one, cache, start(*own)) for own in ((0, 1), (2, 3))]
        for _ in range(80):
            assert [row for _, own in pair for row in rows(own, 1)] == rows(wanted, 1)
        made = [set(graph.made) for graph, _ in pair]
        assert made[0] | made[1] == set(range(50))
        assert sum(len(graph.made) for graph, _ in pair) < 60  # a few that the other is late with


def test_fewer_records_than_lanes_are_refused() -> None:
    class Tiny:
        corpus = corpus(source="/data/few", lanes=8)
        chunk_sizes = np.array([3, 0, 4])

    tiny: Any = Tiny()
    told = r"^/data/few has 7 records to train on, fewer than corpus.lanes = 8; set corpus.lanes to"
    with pytest.raises(UserError, match=told):
        order_of(tiny, seed=0)
    tiny.chunk_sizes = np.array([3, 1, 4])
    order = order_of(tiny, seed=5)
    assert isinstance(order, LaneOrder)
    assert (order.records, order.lanes, order.seed) == (8, 8, 5)
