"""Global batch k is the same set of rows for any number of workers, before and after a resume."""

import itertools
import json
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from latentlm.sequence import PADDING
from latentlm_platform.batches.collating import RawBatch
from latentlm_platform.batches.documents import Composer
from latentlm_platform.batches.lane import Cursor, LaneSource
from latentlm_platform.batches.lanes import LaneOrder, lanes_of
from latentlm_platform.batches.streams import PackedRows, Pictures, Share, StepRows, read_ahead
from making_chunks import BAD, WIDTH, Given, image, source_of, text

LANES, BATCH, LENGTH = 8, 16, 32
COMPOSER = Composer(LENGTH, 300)


def sources() -> list[LaneSource]:
    random = np.random.default_rng(0)

    def words(most: int) -> Given:
        return text(*random.integers(0, 200, random.integers(1, most)).tolist())

    pages: list[Any] = [[(words(25),) for _ in range(7)] for _ in range(37)]
    pairs: list[Any] = [
        [BAD if random.random() < 0.2 else (words(8), image(5)) for _ in range(5)]
        for _ in range(40)
    ]
    return [
        source_of(pages, lanes=LANES, weight=2.0),
        source_of(pairs, lanes=LANES, seed=1, flip=True),
    ]


SOURCES = sources()


def rows_of(raw: RawBatch) -> Iterator[tuple[Any, ...]]:
    """All that a row holds, comparable whatever else is in its batch."""
    row_of_place = raw.latent_places_P // LENGTH
    first = np.cumsum(raw.lengths_S) - raw.lengths_S
    for row in range(len(raw.ids_BT)):
        document = raw.document_BT[row]
        held = np.unique(document[document != PADDING])
        signals = [s for s in range(len(first)) if row_of_place[first[s]] == row]
        yield (
            raw.ids_BT[row].tobytes(),
            raw.position_BT[row].tobytes(),
            raw.scored_BT[row].tobytes(),
            tuple(raw.document_ids_N[held].tolist()),
            tuple(raw.epochs_N[held].tolist()),
            tuple(raw.source_N[held].tolist()),
            tuple(raw.mean_SLZ[s, : raw.lengths_S[s]].tobytes() for s in signals),
            tuple(raw.signal_place_S[signals].tolist()),
        )


@dataclass
class Workers:
    """So many workers side by side, each with its own stream."""

    count: int
    accumulation: int = 1
    cursors: dict[int, Any] | None = None

    def __post_init__(self) -> None:
        started = {lane: Cursor.start(2) for lane in range(LANES)}
        if self.cursors is not None:
            held = json.loads(json.dumps(self.cursors))
            started = {int(lane): Cursor.of(state) for lane, state in held.items()}
        share = Share(BATCH, LANES, self.count, self.accumulation)
        owned = [lanes_of(rank, workers=self.count, lanes=LANES) for rank in range(self.count)]
        self.streams = [
            iter(PackedRows(SOURCES, COMPOSER, share, WIDTH, {lane: started[lane] for lane in own}))
            for own in owned
        ]

    def step(self) -> tuple[list[Any], list[StepRows]]:
        """The rows of the next global batch, sorted, and what each worker got."""
        parts = [next(stream) for stream in self.streams]
        assert [len(part.micro_batches) for part in parts] == [self.accumulation] * self.count
        self.cursors = {k: v for part in parts for k, v in part.cursors.items()}
        return sorted(r for p in parts for raw in p.micro_batches for r in rows_of(raw)), parts


@pytest.mark.parametrize(("workers", "accumulation"), [(1, 2), (2, 1), (4, 2), (8, 1)])
def test_a_global_batch_is_the_same_rows_for_any_workers(workers: int, accumulation: int) -> None:
    alone, together = Workers(1), Workers(workers, accumulation)
    for _ in range(8):
        wanted, _ = alone.step()
        found, parts = together.step()
        assert len(wanted) == BATCH
        assert found == wanted
        sizes = {len(raw.ids_BT) for part in parts for raw in part.micro_batches}
        assert sizes == {BATCH // workers // accumulation}
        assert together.cursors == alone.cursors


def test_other_workers_go_on_where_some_were_stopped() -> None:
    """Every record of an epoch once: before the stop by 4 workers, behind it by 1, 2 or 8."""
    alone, stopped = Workers(1), Workers(4)
    for _ in range(5):
        alone.step()
        stopped.step()
    for workers in (1, 2, 8):
        resumed = Workers(workers, cursors=stopped.cursors)
        again = Workers(1, cursors=alone.cursors)
        for _ in range(5):
            assert resumed.step()[0] == again.step()[0]


def test_batches_hold_as_many_rows_of_every_lane() -> None:
    step = next(Workers(1).streams[0])
    assert sorted(step.cursors) == list(range(LANES))
    assert Share(BATCH, LANES, 2, 2).rows_a_lane == 2
    assert Share(BATCH, LANES, 2, 2).micro_batch_size == 4
    json.dumps(step.cursors)
    (raw,) = step.micro_batches
    assert raw.positions == np.count_nonzero(raw.document_BT != PADDING)
    assert raw.positions > 0.9 * raw.ids_BT.size


class PictureChunk:
    """Eight pictures that tell their chunk and row; row 3 cannot be used."""

    def __init__(self, chunk: int) -> None:
        self.chunk, self.ids = chunk, np.arange(8) + 8 * chunk

    def usable(self, row: int) -> bool:
        return row != 3

    def picture(self, row: int, *, mirrored: bool) -> np.ndarray[Any, Any]:
        return np.array([[[self.chunk], [row]]], np.uint8)[:, :: -1 if mirrored else 1]


def test_pictures_of_a_codec_follow_the_lanes_too() -> None:
    class Shelf:
        def take(self, lane: int, epoch: int, piece: Any) -> PictureChunk:
            return PictureChunk(piece.chunk)

    chunks: Any = [[(image(1),)] * 8 for _ in range(20)]
    lanes = source_of(chunks, lanes=4, flip=True)
    source = LaneSource("pictures", lanes.order, Shelf(), 0, flip=True)

    def stream(workers: int, cursors: dict[int, Cursor]) -> Iterator[list[Any]]:
        parts = [
            iter(Pictures(source, Share(8, 4, workers), {lane: cursors[lane] for lane in own}))
            for own in (lanes_of(rank, workers=workers, lanes=4) for rank in range(workers))
        ]
        while True:
            yield [next(part) for part in parts]

    start = {lane: Cursor.start(1) for lane in range(4)}
    seen, cursors = [], start
    for (one,), two in itertools.islice(zip(stream(1, start), stream(2, start), strict=True), 20):
        assert one.ids.tolist() == [i for part in two for i in part.ids.tolist()]
        pixels = np.concatenate([part.pixels for part in two])
        assert np.array_equal(one.pixels, pixels)
        for pair, id_ in zip(one.pixels[:, 0, :, 0].tolist(), one.ids.tolist(), strict=True):
            assert [id_ // 8, id_ % 8] in (pair, pair[::-1])
        seen += one.ids[one.epochs == 0].tolist()
        cursors = {lane: Cursor.of(state) for lane, state in one.cursors.items()}
    assert sorted(seen) == [i for i in range(160) if i % 8 != 3]
    behind = next(itertools.islice(stream(1, start), 20, None))[0]
    resumed = next(stream(1, cursors))[0]
    assert np.array_equal(behind.pixels, resumed.pixels)
    assert behind.cursors == resumed.cursors


def test_a_window_is_gone_before_the_next_of_its_lane_is_taken() -> None:
    """Else a worker holds two windows of pictures, and every copy of one is into new memory."""
    alive: weakref.WeakSet[PictureChunk] = weakref.WeakSet()
    most = 0

    class Counting:
        def take(self, lane: int, epoch: int, piece: Any) -> PictureChunk:
            nonlocal most
            chunk = PictureChunk(piece.chunk)
            alive.add(chunk)
            most = max(most, len(alive))
            return chunk

        def close(self) -> None: ...

    order = LaneOrder(np.full(64, 8), seed=0, lanes=LANES, window_chunks=16)
    source = LaneSource("corpus", order, Counting(), seed=0)
    cursors = {lane: Cursor.start(1) for lane in range(LANES)}
    batches = iter(Pictures(source, Share(BATCH, LANES, 1), cursors))
    epochs = {int(epoch) for _ in range(40) for epoch in next(batches).epochs}
    assert epochs == {0, 1}
    assert most <= 16


class TestReadAhead:
    """A thread prepares batches; what it raises is raised where they are used."""

    def test_the_first_steps_in_order(self) -> None:
        assert list(read_ahead((n for n in itertools.count()), steps=10)) == list(range(10))

    def test_batches_are_prepared_before_they_are_asked_for(self) -> None:
        made: list[int] = []

        def batches() -> Iterator[int]:
            for number in itertools.count():
                made.append(number)
                yield number

        stream = read_ahead(batches(), steps=100)
        assert next(stream) == 0
        deadline = time.monotonic() + 10
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert 4 <= len(made) <= 6  # some, not all
        stream.close()

    def test_an_error_comes_through(self) -> None:
        def batches() -> Iterator[int]:
            yield 1
            raise KeyError("broken")

        stream = read_ahead(batches(), steps=5)
        assert next(stream) == 1
        with pytest.raises(KeyError, match="broken"):
            next(stream)

    def test_the_thread_ends_with_its_reader(self) -> None:
        stream = read_ahead((n for n in itertools.count()), steps=1_000_000)
        next(stream)
        stream.close()
        names = [thread.name for thread in threading.enumerate()]
        assert "read-ahead" not in names
