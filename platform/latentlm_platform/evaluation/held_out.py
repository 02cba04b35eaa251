"""Held-out images, drawn by row and decoded where they are used: never in the driver.

A draw is planned from the chunks' sizes alone: always the same rows of a split, from chunks all
over it, since a corpus may be sorted by class. A bad record leaves its place empty.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from latentlm_platform.corpora.records import Decoded
from latentlm_platform.corpora.splits import SPREAD_CHUNKS, Split
from latentlm_platform.errors import UserError

IntArray = npt.NDArray[np.int64]
DRAW = 3  # keys the draw apart from other uses of the seed


class Piece(NamedTuple):
    """Rows of one chunk (places among the split's rows there) and the place of each in the draw."""

    chunk: int
    rows: IntArray
    places: IntArray


class Images(NamedTuple):
    """Good images of a draw: uint8 [n, Y, X, C], labels int64 [n], places int64 [n]."""

    pixels: npt.NDArray[np.uint8]
    labels: IntArray
    places: IntArray


def draw_rows(split: Split, count: int) -> list[Piece]:
    """Up to `count` rows of the split, shuffled over chunks, by chunk."""
    generator = np.random.default_rng([split.seed, DRAW])
    sizes = np.asarray(split.chunk_sizes, np.int64)
    chunks = generator.permutation(len(sizes))
    chunks = chunks[sizes[chunks] > 0]
    if not len(chunks):
        raise UserError(
            f"no record of {split.index.source} is held out; raise corpus.held_out_fraction"
        )
    chunks = chunks[: _chunks_for(count, sizes[chunks])]
    ends = np.cumsum(sizes[chunks])
    drawn = generator.permutation(int(ends[-1]))[:count]
    order = np.argsort(drawn)
    owners = np.searchsorted(ends, drawn[order], side="right")
    pieces = []
    for owner in np.unique(owners).tolist():
        places = order[owners == owner]
        start = int(ends[owner] - sizes[chunks[owner]])
        pieces.append(Piece(int(chunks[owner]), drawn[places] - start, places))
    return pieces


def _chunks_for(count: int, sizes: IntArray) -> int:
    """How many chunks to mix for a draw; one that is tiny does not make them the whole corpus."""
    if_all_were_smallest = -(-count // int(sizes.min()))
    with_rows_to_spare = int(np.searchsorted(np.cumsum(sizes), SPREAD_CHUNKS * count)) + 1
    return max(SPREAD_CHUNKS, min(if_all_were_smallest, with_rows_to_spare))


def placed(pieces: Sequence[Piece], start: int, stop: int) -> list[Piece]:
    """The part of a draw at places [start, stop)."""
    found = []
    for chunk, rows, places in pieces:
        inside = (places >= start) & (places < stop)
        if inside.any():
            found.append(Piece(chunk, rows[inside], places[inside]))
    return found


def deal(pieces: Sequence[Piece], hands: int) -> list[list[Piece]]:
    """A draw in up to `hands` parts of equal size; a chunk is cut only where two parts meet."""
    total = sum(len(piece.rows) for piece in pieces)
    size = max(1, -(-total // hands))
    dealt: list[list[Piece]] = [[] for _ in range(-(-total // size))]
    done = 0
    for chunk, rows, places in pieces:
        edges = np.arange(size - done % size, len(rows), size)
        for some, where in zip(np.split(rows, edges), np.split(places, edges), strict=True):
            dealt[done // size].append(Piece(chunk, some, where))
            done += len(some)
    return dealt


def decoded_images(split: Split, pieces: Sequence[Piece], *, size: int) -> Iterator[Images]:
    """The good images of these rows in batches of `size`; one chunk is held at a time."""
    waiting: list[tuple[Decoded, int]] = []
    for chunk, rows, places in pieces:
        ascending = np.argsort(rows)
        signals = split.decode_chunk(chunk, rows=rows[ascending])
        for signal, place in zip(signals, places[ascending].tolist(), strict=True):
            if isinstance(signal, Decoded):
                waiting.append((signal, place))
        while len(waiting) >= size:
            yield _together(waiting[:size])
            del waiting[:size]
    if waiting:
        yield _together(waiting)


def read_images(split: Split, count: int) -> Images:
    """The good images of a draw of `count`, in its order, in this process."""
    pieces = draw_rows(split, count)
    batches = list(decoded_images(split, pieces, size=count))
    refuse_nothing(len(batches), split)
    images = batches[0]
    order = np.argsort(images.places)
    return Images(images.pixels[order], images.labels[order], images.places[order])


def _together(images: list[tuple[Decoded, int]]) -> Images:
    return Images(
        np.stack([signal.pixels for signal, _ in images]),
        np.array([signal.label for signal, _ in images], np.int64),
        np.array([place for _, place in images], np.int64),
    )


def refuse_nothing(found: int, split: Split) -> None:
    """UserError where not one image of a draw could be read."""
    if not found:
        raise UserError(f"no held-out image of {split.index.source} can be read", exit_code=1)
