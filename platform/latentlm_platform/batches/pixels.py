"""Pictures for the training of a codec: pieces decoded by Ray Data, each read once.

Nothing here needs torch, whose import would delay the first rows of every reader by seconds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentlm_platform.batches.lanes import Wish
from latentlm_platform.corpora.records import Decoded
from latentlm_platform.corpora.splits import Split
from latentlm_platform.latents.data_graph import Item, arrays_of, read_items
from latentlm_platform.latents.wire_rows import Arrays


@dataclass(frozen=True)
class PixelChunk:
    """Decoded pictures of a piece: uint8 [k, Y, X, C]; `index` says which is a record's, or -1."""

    ids: np.ndarray[Any, np.dtype[np.int64]]
    index: np.ndarray[Any, np.dtype[np.int64]]
    pixels: np.ndarray[Any, np.dtype[np.uint8]]

    def usable(self, row: int) -> bool:
        """Whether the record can be used."""
        return bool(self.index[row] >= 0)

    def picture(self, row: int, *, mirrored: bool) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """uint8 [Y, X, C] of a record that can be used."""
        pixels_YXC = self.pixels[self.index[row]]
        return pixels_YXC[:, ::-1] if mirrored else pixels_YXC


@dataclass(frozen=True)
class PixelGraph:
    """How pieces of a split are decoded on the way to a worker that trains a codec."""

    split: Split
    readers: int

    def __call__(self, wished: Sequence[Wish]) -> Iterator[Arrays]:
        return arrays_of(read_items([tuple(w) for w in wished], self.read, readers=self.readers))

    def read(self, item: Item) -> Arrays:
        """The arrays of a `PixelChunk` for one wish, and how many bytes were read for it."""
        wish, meter = Wish(*item), _Bytes()
        ids = self.split.ids_of(wish.chunk)
        corpus, rows = self.split.corpus, slice(wish.first, wish.last)
        shape = (wish.piece.size, corpus.image_size, corpus.image_size, corpus.channels)
        index, pixels, good = np.full(len(ids), -1, np.int64), np.empty(shape, np.uint8), 0
        records = self.split.decoded(wish.chunk, rows=rows, meter=meter)
        for row, record in enumerate(records, start=wish.first):
            if isinstance(record, Decoded):
                index[row], pixels[good] = good, record.pixels
                good += 1
        read = np.array([meter.bytes], np.int64)
        return {"ids": ids, "index": index, "pixels": pixels[:good], "bytes_read": read}


@dataclass
class _Bytes:
    bytes: int = 0


def open_pixels(arrays: Arrays) -> PixelChunk:
    """The chunk that a `PixelGraph` read."""
    return PixelChunk(arrays["ids"], arrays["index"], arrays["pixels"])
