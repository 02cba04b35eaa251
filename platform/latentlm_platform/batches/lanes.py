"""Which record comes when: the order of a run, over a fixed number of lanes.

An epoch permutes the chunks of a corpus and deals them to the lanes, about as many records to each;
a lane shuffles the records inside a window of a few of its chunks. The order depends on the seed,
the corpus and the number of lanes, never on workers, accumulation or restarts: a worker owns whole
lanes. A lane has epochs of its own, since lanes use up what they were dealt at their own pace; the
deal goes round by one lane an epoch, so that none stays ahead for the rounding to whole chunks.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

WHOLE_CHUNKS_A_LANE = 4  # with fewer, chunks are cut, so that every lane has its share
SOME_ARE_BAD = 1.25  # records read over those that are used, where many cannot be
DEAL, SHUFFLE = 0, 1  # what a random number is for


class Piece(NamedTuple):
    """Records [first, last) of a chunk: all of it, except in corpora of few chunks."""

    chunk: int
    first: int
    last: int

    @property
    def size(self) -> int:
        return self.last - self.first


class Wish(NamedTuple):
    """A chunk that a lane will take: the whole of it, or records [first, last)."""

    lane: int
    epoch: int
    chunk: int
    first: int
    last: int

    @property
    def piece(self) -> Piece:
        return Piece(self.chunk, self.first, self.last)


class Place(NamedTuple):
    """Where a lane stands in a corpus: the next record is `row` of that window, after shuffling."""

    epoch: int = 0
    window: int = 0
    row: int = 0


class Deal(NamedTuple):
    """An epoch: chunks in order, where each begins, and where each lane's share begins."""

    chunks: npt.NDArray[np.int32]
    starts: IntArray
    borders: IntArray


class LaneOrder:
    """The order over chunks of `chunk_sizes` records; `window_chunks` of all lanes are mixed."""

    def __init__(self, chunk_sizes: IntArray, *, seed: int, lanes: int, window_chunks: int) -> None:
        self.sizes, self.seed, self.lanes = chunk_sizes, seed, lanes
        self.window_pieces = max(1, window_chunks // lanes)
        self.records = int(self.sizes.sum())
        self._deals: dict[int, Deal] = {}  # of the last two epochs: lanes cross over one by one

    def pieces(self, lane: int, epoch: int, window: int) -> list[Piece]:
        """What a window of a lane holds, in the order of the epoch; [] behind its last window."""
        deal = self._deal(epoch)
        share = (lane + epoch) % self.lanes
        begin, end = int(deal.borders[share]), int(deal.borders[share + 1])
        if begin == end:
            return []
        first = int(np.searchsorted(deal.starts, begin, side="right")) - 1
        last = int(np.searchsorted(deal.starts, end, side="left"))
        start = first + window * self.window_pieces
        return [
            Piece(
                int(deal.chunks[i]),
                max(0, begin - int(deal.starts[i])),
                min(end, int(deal.starts[i + 1])) - int(deal.starts[i]),
            )
            for i in range(start, min(start + self.window_pieces, last))
        ]

    def shuffled(self, lane: int, epoch: int, window: int) -> IntArray:
        """The order inside a window: numbers of its records, counted through its pieces."""
        size = sum(piece.size for piece in self.pieces(lane, epoch, window))
        key = [self.seed, epoch, SHUFFLE, lane, window]
        return np.random.default_rng(key).permutation(size)

    def windows_from(self, lane: int, place: Place) -> Iterator[tuple[int, int, list[Piece]]]:
        """(epoch, window, pieces) from `place` on, for ever."""
        epoch, window = place.epoch, place.window
        while True:
            pieces = self.pieces(lane, epoch, window)
            if pieces:
                yield epoch, window, pieces
                window += 1
            else:
                epoch, window = epoch + 1, 0

    def chunks_for(self, rows: int, *, lanes: int) -> int:
        """About how many chunks some of the lanes need for `rows` records each; at most an epoch's
        share of them."""
        chunks = int(np.count_nonzero(self.sizes))
        needed = int(SOME_ARE_BAD * rows * lanes * chunks / self.records) + 2 * lanes
        return min(-(-chunks * lanes // self.lanes), needed)

    def _deal(self, epoch: int) -> Deal:
        if epoch not in self._deals:
            self._deals = {e: d for e, d in self._deals.items() if abs(e - epoch) == 1}
            self._deals[epoch] = self._make_deal(epoch)
        return self._deals[epoch]

    def _make_deal(self, epoch: int) -> Deal:
        held = np.flatnonzero(self.sizes)
        chunks = np.random.default_rng([self.seed, epoch, DEAL]).permutation(held).astype(np.int32)
        starts = np.concatenate([[0], np.cumsum(self.sizes[chunks])]).astype(np.int64)
        borders = np.arange(self.lanes + 1, dtype=np.int64) * self.records // self.lanes
        if len(chunks) >= WHOLE_CHUNKS_A_LANE * self.lanes:
            after = np.searchsorted(starts, borders)
            before = np.maximum(after - 1, 0)
            nearer = starts[after] - borders < borders - starts[before]
            borders = starts[np.where(nearer, after, before)]
        return Deal(chunks, starts, borders)


def lanes_of(rank: int, *, workers: int, lanes: int) -> range:
    """The lanes that a worker owns; `workers` divides `lanes`."""
    each = lanes // workers
    return range(rank * each, (rank + 1) * each)
