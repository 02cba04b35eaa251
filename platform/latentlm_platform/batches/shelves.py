"""Where lanes take chunks from: the latent cache, or Ray Data, which reads ahead of them.

A worker asks Ray Data for the windows of its lanes in turn, as the lanes will need them; what comes
before its lane wants it waits here. Reading goes on in legs of a bounded number of chunks, so that
nothing that is planned before the first row grows with the steps of a run.
"""

import heapq
import itertools
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentlm_platform.batches.lane import Cursor, mirrored_ids
from latentlm_platform.batches.lanes import LaneOrder, Piece, Wish
from latentlm_platform.corpora.splits import Split
from latentlm_platform.errors import UserError
from latentlm_platform.experiment.sections import Latents
from latentlm_platform.latents.cache import LatentCache
from latentlm_platform.latents.data_graph import (
    LONGEST_LEG,
    TASK_CPUS,
    Item,
    arrays_of,
    map_rows,
)
from latentlm_platform.latents.decoding import ChunkDecoder
from latentlm_platform.latents.encoded import IMAGE, EncodedChunk
from latentlm_platform.latents.encoding import SPLITS, ShardWriter, encode_items
from latentlm_platform.latents.wire_rows import Arrays

SHORTEST_LEG = 64  # chunks


def wishes(order: LaneOrder, cursors: dict[int, Cursor], *, number: int) -> Iterator[Wish]:
    """What some lanes will take of source `number` from their cursors on, for ever.

    First what waits for a row, then always the next window of the lane that has the fewest records
    so far: lanes use up records alike, so that little is read before its lane wants it.
    """
    for lane, cursor in cursors.items():
        again = dict.fromkeys((r.epoch, r.chunk) for r in cursor.waiting if r.source == number)
        for epoch, chunk in again:
            yield Wish(lane, epoch, chunk, 0, int(order.sizes[chunk]))
    places = {lane: cursor.places[number] for lane, cursor in cursors.items()}
    windows = {lane: order.windows_from(lane, place) for lane, place in places.items()}
    ahead = [(-place.row, lane) for lane, place in places.items()]
    heapq.heapify(ahead)
    while True:
        records, lane = ahead[0]
        epoch, _, pieces = next(windows[lane])
        yield from (Wish(lane, epoch, *piece) for piece in pieces)
        heapq.heapreplace(ahead, (records + sum(piece.size for piece in pieces), lane))


def order_of(split: Split, *, seed: int) -> LaneOrder:
    """The order over a split, as its corpus's settings say; UserError where it is too small."""
    corpus, records = split.corpus, int(split.chunk_sizes.sum())
    if records < corpus.lanes:
        raise UserError(
            f"{corpus.source} has {records} records to train on, fewer than corpus.lanes ="
            f" {corpus.lanes}; set corpus.lanes to a smaller number"
        )
    window = corpus.shuffle_window_chunks
    return LaneOrder(split.chunk_sizes, seed=seed, lanes=corpus.lanes, window_chunks=window)


@dataclass(frozen=True)
class CachedShelf:
    """Chunks of a whole latent cache, by memory map: nothing is read ahead, nothing waits."""

    cache: LatentCache
    split: str = "train"

    def take(self, lane: int, epoch: int, piece: Piece) -> EncodedChunk:
        """The chunk of a piece."""
        return self.cache.read_chunk(self.split, piece.chunk)

    def close(self) -> None:
        """Nothing was read ahead."""


class StreamedShelf:
    """Chunks that Ray Data makes as lanes need them, each taken once for every wish.

    `graph` gives the arrays of some wishes, in their order; `open_chunk` makes a chunk of them. One
    that gives `whole` chunks is asked once for a chunk that several lanes share.
    """

    def __init__(
        self,
        wished: Iterable[Wish],
        graph: Callable[[Sequence[Wish]], Iterator[Arrays]],
        open_chunk: Callable[[Arrays], Any],
        *,
        leg: int,
        whole: bool = False,
    ) -> None:
        self._wished, self._graph, self._open = iter(wished), graph, open_chunk
        self._whole = whole
        self._leg = min(max(leg, SHORTEST_LEG), LONGEST_LEG)
        self._waiting: dict[tuple[int, int, int], Any] = {}
        self._coming = self._run()

    def take(self, lane: int, epoch: int, piece: Piece) -> Any:
        """The chunk of a piece."""
        key = (lane, epoch, piece.chunk)
        while key not in self._waiting:
            wish, chunk = next(self._coming)
            self._waiting[wish.lane, wish.epoch, wish.chunk] = chunk
        return self._waiting.pop(key)

    def close(self) -> None:
        """End the leg that Ray Data is at."""
        self._coming.close()

    def _run(self) -> Generator[tuple[Wish, Any], None, None]:
        while leg := list(itertools.islice(self._wished, self._leg)):
            asked: dict[Wish, list[Wish]] = {}
            for wish in leg:
                one = wish._replace(lane=0, first=0, last=0) if self._whole else wish
                asked.setdefault(one, []).append(wish)
            for sharers, arrays in zip(asked.values(), self._graph(list(asked)), strict=True):
                chunk = self._open(arrays)
                yield from ((wish, chunk) for wish in sharers)


class WriteThroughShelf:
    """Chunks of a latent cache that is filled while it is read: what is missing is encoded first.

    `graph` encodes chunks, in order, and says when each is in the cache.
    """

    def __init__(
        self,
        wished: Iterable[Wish],
        graph: Callable[[Sequence[Item]], Iterator[Arrays]],
        cache: LatentCache,
        *,
        leg: int,
    ) -> None:
        self._wished, self._graph, self.cache = iter(wished), graph, cache
        self._leg = min(max(leg, SHORTEST_LEG), LONGEST_LEG)
        self._coming = self._run()

    def take(self, lane: int, epoch: int, piece: Piece) -> EncodedChunk:
        """The chunk of a piece, as soon as it is in the cache."""
        while not self.cache.has_chunk(SPLITS[0], piece.chunk):
            next(self._coming)
        return self.cache.read_chunk(SPLITS[0], piece.chunk)

    def close(self) -> None:
        """End the leg that Ray Data is at."""
        self._coming.close()

    def _run(self) -> Generator[Arrays, None, None]:
        while leg := list(itertools.islice(self._wished, self._leg)):
            chunks = dict.fromkeys(wish.chunk for wish in leg)
            missing = [(0, c) for c in chunks if not self.cache.has_chunk(SPLITS[0], c)]
            if missing:
                yield from self._graph(missing)


@dataclass(frozen=True)
class EncodingGraph:
    """How chunks of the training split are decoded and encoded on the way to a worker."""

    decoder: ChunkDecoder
    codec_folder: Path
    latents: Latents
    readers: int
    flip: bool
    seed: int
    cache: LatentCache

    def streamed(self, wished: Sequence[Wish]) -> Iterator[Arrays]:
        """Encoded chunks, every picture in the orientation of that epoch."""
        return self._encoded([tuple(wish) for wish in wished], self._read, orientations=1)

    def written(self, items: Sequence[Item]) -> Iterator[Arrays]:
        """The chunks of these items, as soon as each is in the cache."""
        sides = 2 if self.flip else 1
        encoded = self._dataset(list(items), self._read_whole, orientations=sides)
        return arrays_of(map_rows(encoded, ShardWriter(self.cache), num_cpus=TASK_CPUS))

    def _encoded(
        self, items: list[Item], reader: Callable[[Item], Arrays], *, orientations: int
    ) -> Iterator[Arrays]:
        return arrays_of(self._dataset(items, reader, orientations=orientations))

    def _dataset(
        self, items: list[Item], reader: Callable[[Item], Arrays], *, orientations: int
    ) -> Any:
        return encode_items(
            items,
            reader,
            codec_folder=self.codec_folder,
            latents=self.latents,
            orientations=orientations,
            readers=self.readers,
        )

    def _read(self, item: Item) -> Arrays:
        _, epoch, chunk, *_ = item
        arrays = self.decoder(chunk)
        self.cache.note_bad(chunk, json.loads(arrays["about"].tobytes())["bad"])
        if self.flip and "pixels" in arrays:
            records = np.repeat(arrays["ids"], np.diff(arrays["part_starts"]))
            ids = records[arrays["kinds"] == IMAGE]
            arrays["mirrored"] = mirrored_ids(ids, epoch, seed=self.seed, flip=True)
        return arrays

    def _read_whole(self, item: Item) -> Arrays:
        split, chunk = item
        return self.decoder(chunk) | {"split": np.array([split], np.int64)}


def open_encoded(arrays: Arrays) -> EncodedChunk:
    """The chunk that an encoder actor encoded."""
    return EncodedChunk.of_arrays(arrays)
