"""Encoded chunks of small records for tests, and sources of them whose order lanes follow."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from latentlm_platform.batches.lane import LaneDocument, LaneSource
from latentlm_platform.batches.lanes import LaneOrder, Piece
from latentlm_platform.latents.encoded import IMAGE, LABEL, SIDES, SOUND, TEXT, EncodedChunk

WIDTH = 4


@dataclass(frozen=True)
class Given:
    """A part: its words (of a label one), or how many latents a signal has."""

    kind: int
    words: tuple[int, ...] = ()
    latents: int = 0
    scored: bool = True


Records = Sequence[Sequence[Given]]
BAD: tuple[Given, ...] = ()


def label(number: int) -> Given:
    return Given(LABEL, (number,), scored=False)


def text(*words: int, scored: bool = True) -> Given:
    return Given(TEXT, words, scored=scored)


def image(latents: int, *, scored: bool = True) -> Given:
    return Given(IMAGE, latents=latents, scored=scored)


def sound(latents: int, *, scored: bool = True) -> Given:
    return Given(SOUND, latents=latents, scored=scored)


def chunk_of(
    records: Records, *, first_id: int = 0, sides: int = 1, with_std: bool = False
) -> EncodedChunk:
    """A chunk of these records, whose latents are different from all others'."""
    parts = [part for record in records for part in record]
    lengths = [len(part.words) or part.latents for part in parts]
    shape = (sum(part.latents for part in parts), WIDTH)
    random = np.random.default_rng([first_id, len(parts)])
    means = [random.normal(size=shape).astype(np.float32) for _ in range(sides)]
    stds = [np.exp(random.normal(size=shape)).astype(np.float32) for _ in range(sides)]
    return EncodedChunk(
        ids=np.arange(first_id, first_id + len(records)),
        part_starts=np.cumsum([0, *(len(record) for record in records)]),
        kinds=np.array([part.kind for part in parts], np.uint8),
        scored=np.array([part.scored for part in parts], np.bool_),
        lengths=np.array(lengths, np.int32),
        words=np.array([word for part in parts for word in part.words], np.int32),
        mean=tuple(means),
        std=tuple(stds) if with_std else (),
    )


@dataclass
class MemoryShelf:
    """Chunks in memory, and how often each lane took one: (lane, epoch, chunk) → times."""

    chunks: list[EncodedChunk]
    taken: Counter[tuple[int, int, int]] = field(default_factory=Counter)

    def take(self, lane: int, epoch: int, piece: Piece) -> EncodedChunk:
        self.taken[lane, epoch, piece.chunk] += 1
        return self.chunks[piece.chunk]


def source_of(
    chunks: Sequence[Records],
    *,
    name: str = "corpus",
    lanes: int = 2,
    window: int = 2,
    seed: int = 0,
    **settings: Any,
) -> LaneSource:
    """A source over chunks of records; `window`: chunks of a lane that are mixed."""
    encoded, first = [], 0
    for records in chunks:
        sides = 2 if settings.get("flip") else 1
        encoded.append(chunk_of(records, first_id=first, sides=sides))
        first += len(records)
    sizes = np.array([len(chunk) for chunk in encoded], np.int64)
    order = LaneOrder(sizes, seed=seed, lanes=lanes, window_chunks=window * lanes)
    return LaneSource(name, order, MemoryShelf(encoded), seed, **settings)


def shown(document: LaneDocument) -> tuple[Any, ...]:
    """All of a document, comparable: two that are the same to the last bit are equal."""
    spans = []
    for span in document.spans:
        values = [getattr(span, name, None) for name in ("token_ids", "mean_NZ", "std_NZ")]
        spans.append((*(None if v is None else v.tobytes() for v in values), span.scored))
    places = [getattr(span, "place", None) for span in document.spans]
    return document.ref, document.id, tuple(spans), tuple(places)


def same_chunk(one: EncodedChunk, other: EncodedChunk) -> bool:
    """Whether two chunks hold the same to the last bit, in the same types."""
    ours, theirs = one.arrays(), other.arrays()
    return ours.keys() == theirs.keys() and all(
        ours[n].dtype == theirs[n].dtype and np.array_equal(ours[n], theirs[n]) for n in ours
    )


def side_names(name: str, sides: int) -> list[str]:
    """The names of arrays of so many orientations."""
    return [f"{name}{side}" for side in SIDES[:sides]]
