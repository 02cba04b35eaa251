"""What a Train worker reads: global batches of rows, or of pictures, from the lanes that it owns.

Global batch k takes the same number of rows from every lane, so that it is the same set of rows for
any number of workers. A thread prepares the next batches while one is used.
"""

import itertools
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from latentlm_platform.batches.collating import RawBatch, collate
from latentlm_platform.batches.documents import Composer
from latentlm_platform.batches.lane import Cursor, Lane, LaneRecords, LaneSource

READ_AHEAD = 3  # batches


class Share(NamedTuple):
    """Which part of each global batch one worker takes, in which micro-batches."""

    batch_size: int
    lanes: int
    workers: int
    accumulation: int = 1

    @property
    def rows_a_lane(self) -> int:
        return self.batch_size // self.lanes

    @property
    def micro_batch_size(self) -> int:
        return self.batch_size // (self.workers * self.accumulation)


class StepRows(NamedTuple):
    """A worker's part of a global batch, and where its lanes stand behind it."""

    micro_batches: list[RawBatch]
    cursors: dict[int, dict[str, Any]]


@dataclass(frozen=True)
class PackedRows:
    """Global batches of packed rows from some lanes, for ever."""

    sources: Sequence[LaneSource]
    composer: Composer
    share: Share
    latent_width: int
    cursors: dict[int, Cursor]

    def __iter__(self) -> Iterator[StepRows]:
        lanes = [
            Lane(self.sources, self.composer, lane=lane, cursor=cursor)
            for lane, cursor in self.cursors.items()
        ]
        size = self.share.micro_batch_size
        while True:
            rows = [lane.next_row() for lane in lanes for _ in range(self.share.rows_a_lane)]
            micro = [
                collate(
                    rows[start : start + size],
                    length=self.composer.length,
                    latent_width=self.latent_width,
                )
                for start in range(0, len(rows), size)
            ]
            yield StepRows(micro, {lane.lane: lane.cursor().state() for lane in lanes})

    def close(self) -> None:
        """End what reads ahead of the lanes."""
        for source in self.sources:
            source.shelf.close()


class PictureBatch(NamedTuple):
    """pixels uint8 [B, Y, X, C] of a worker's part of a global batch, what keys their noise, and
    where its lanes stand behind it."""

    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    ids: np.ndarray[Any, np.dtype[np.int64]]
    epochs: np.ndarray[Any, np.dtype[np.int64]]
    cursors: dict[int, dict[str, Any]]


@dataclass(frozen=True)
class Pictures:
    """Global batches of decoded pictures from some lanes, for ever: what codecs are trained on."""

    source: LaneSource
    share: Share
    cursors: dict[int, Cursor]

    def __iter__(self) -> Iterator[PictureBatch]:
        lanes = {
            lane: LaneRecords(self.source, number=0, lane=lane, place=cursor.places[0])
            for lane, cursor in self.cursors.items()
        }
        while True:
            yield self._next_batch(lanes)

    def _next_batch(self, lanes: dict[int, LaneRecords]) -> PictureBatch:
        ids, epochs, pixels = [], [], []
        for records in lanes.values():
            for record in itertools.islice(records, self.share.rows_a_lane):
                ids.append(record.id)
                epochs.append(record.ref.epoch)
                pixels.append(record.chunk.picture(record.ref.row, mirrored=record.mirrored))
        return PictureBatch(
            np.stack(pixels),
            np.array(ids, np.int64),
            np.array(epochs, np.int64),
            {lane: Cursor([r.place], [], [0]).state() for lane, r in lanes.items()},
        )

    def close(self) -> None:
        """End what reads ahead of the lanes."""
        self.source.shelf.close()


def read_ahead(batches: Any, *, steps: int) -> Generator[Any, None, None]:
    """The first `steps` of these batches, prepared in a thread while earlier ones are used.

    What the thread raises is raised here. The batches are closed at the end.
    """
    ready: queue.Queue[Any] = queue.Queue(READ_AHEAD)
    stop = threading.Event()

    def prepare() -> None:
        try:
            for _, batch in zip(range(steps), batches, strict=False):
                if not _offer(ready, batch, stop):
                    return
        except BaseException as error:
            _offer(ready, _Failed(error), stop)
        finally:
            batches.close()  # else Ray Data goes on, and dies badly with its process

    thread = threading.Thread(target=prepare, name="read-ahead", daemon=True)
    thread.start()
    try:
        for _ in range(steps):
            batch = ready.get()
            if isinstance(batch, _Failed):
                raise batch.error
            yield batch
    finally:
        stop.set()
        thread.join(timeout=5)


class _Failed(NamedTuple):
    error: BaseException


def _offer(ready: "queue.Queue[Any]", batch: Any, stop: threading.Event) -> bool:
    """Whether the batch was taken; False where nobody reads any more."""
    while not stop.is_set():
        try:
            ready.put(batch, timeout=0.2)
            return True
        except queue.Full:
            continue
    return False
