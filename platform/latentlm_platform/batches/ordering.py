"""Which sample stands at each position of the endless training stream.

The order depends on the seed and the corpus alone, never on workers, accumulation or restarts:
global batch k is positions [k·B, (k+1)·B). An epoch permutes the chunks, groups them into windows
of a few chunks and permutes the rows inside each window, so that only one window's permutation
exists at a time, whatever the size of the corpus.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


class Rows(NamedTuple):
    """Samples in order: the epoch, chunk and row of each, and its id, unique in the corpus."""

    epochs: IntArray
    chunks: IntArray
    rows: IntArray
    ids: IntArray


@dataclass(frozen=True)
class SampleOrder:
    """The order over chunks of `chunk_sizes` samples; windows mix `window_chunks` of them."""

    chunk_sizes: tuple[int, ...]
    seed: int
    window_chunks: int
    shuffled: bool = True

    @property
    def epoch_length(self) -> int:
        """Samples in one epoch."""
        return sum(self.chunk_sizes)

    def rows(self, start: int, stop: int) -> Rows:
        """The samples at positions [start, stop) of the stream."""
        parts = [self._epoch_rows(*part) for part in self._epoch_parts(start, stop)]
        return Rows(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _epoch_parts(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        length = self.epoch_length
        while start < stop:
            epoch, offset = divmod(start, length)
            end = min(length, offset + stop - start)
            yield epoch, offset, end
            start += end - offset

    def _epoch_rows(self, epoch: int, start: int, stop: int) -> Rows:
        _, window_starts = _epoch_windows(self, epoch)
        first = int(np.searchsorted(window_starts, start, side="right")) - 1
        last = int(np.searchsorted(window_starts, stop - 1, side="right")) - 1
        parts = [_window_rows(self, epoch, window) for window in range(first, last + 1)]
        begin = start - int(window_starts[first])
        columns = (
            np.concatenate(c)[begin : begin + stop - start] for c in zip(*parts, strict=True)
        )
        chunks, rows = columns
        ids = _chunk_offsets(self)[chunks] + rows
        return Rows(np.full(stop - start, epoch, np.int64), chunks, rows, ids)


@lru_cache(maxsize=8)
def _chunk_offsets(order: SampleOrder) -> IntArray:
    return np.concatenate([[0], np.cumsum(order.chunk_sizes)[:-1]]).astype(np.int64)


@lru_cache(maxsize=8)
def _epoch_windows(order: SampleOrder, epoch: int) -> tuple[IntArray, IntArray]:
    """The epoch's chunk order and the position at which each window starts."""
    chunks = np.arange(len(order.chunk_sizes), dtype=np.int64)
    if order.shuffled:
        chunks = np.random.default_rng([order.seed, epoch, 0]).permutation(chunks)
    sizes = np.asarray(order.chunk_sizes, np.int64)[chunks]
    edges = np.arange(0, len(chunks), order.window_chunks)
    totals = np.add.reduceat(sizes, edges)
    return chunks, np.concatenate([[0], np.cumsum(totals)[:-1]]).astype(np.int64)


@lru_cache(maxsize=4)
def _window_rows(order: SampleOrder, epoch: int, window: int) -> tuple[IntArray, IntArray]:
    """(chunk, row) of every sample of one window, in order."""
    chunks = _epoch_windows(order, epoch)[0]
    members = chunks[window * order.window_chunks : (window + 1) * order.window_chunks]
    sizes = np.asarray(order.chunk_sizes, np.int64)[members]
    chunk_column = np.repeat(members, sizes)
    row_column = np.concatenate([np.arange(size, dtype=np.int64) for size in sizes])
    if order.shuffled:
        key = [order.seed, epoch, 1 + window]
        shuffle = np.random.default_rng(key).permutation(len(chunk_column))
        chunk_column, row_column = chunk_column[shuffle], row_column[shuffle]
    return chunk_column, row_column


class Share(NamedTuple):
    """Which part of each global batch one worker takes, in which micro-batches."""

    batch_size: int
    rank: int
    workers: int
    accumulation: int

    @property
    def micro_batch_size(self) -> int:
        return self.batch_size // (self.workers * self.accumulation)

    def positions(self, step: int) -> Iterator[tuple[int, int]]:
        """[start, stop) of every micro-batch of this worker in global batch `step` (from 0)."""
        size = self.micro_batch_size
        for part in range(self.accumulation):
            start = step * self.batch_size + (part * self.workers + self.rank) * size
            yield start, start + size


def held_out_rows(*, seed: int, chunk: int, size: int, fraction: float) -> IntArray:
    """The rows of a chunk that are set aside, sorted: `fraction` of them, rounded."""
    shuffled = np.random.default_rng([seed, 2, chunk]).permutation(size)
    return np.sort(shuffled[: round(size * fraction)]).astype(np.int64)
