"""One lane of a run: its records in order, composed to documents and packed into rows.

What a lane gives depends on its corpora, the seed and its number alone. Its cursor says where it
stands in each corpus and which documents wait for a row: whoever has the cursor goes on exactly
there.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from latentlm.randomness import Draw, RowNoise
from latentlm_platform.batches.documents import (
    Composer,
    Spans,
    has_latents,
    scored_of,
    size_of,
)
from latentlm_platform.batches.lanes import IntArray, LaneOrder, Piece, Place
from latentlm_platform.batches.packing import LOOKAHEAD, LOOKAHEAD_ROWS, best_fit
from latentlm_platform.errors import UserError

SOURCE_IDS = 2**40  # records of one corpus at most: ids are unique over the sources of a run
CUT_IDS = 2**52  # and over the documents that one record was cut into
SURE = 4.0  # standard deviations: a lane may meet more bad records than there are in the mean


class Chunk(Protocol):
    """Records of a chunk, however they came here."""

    ids: IntArray

    def usable(self, row: int) -> bool:
        """Whether the record can be used."""


class Shelf(Protocol):
    """Where a lane takes chunks from, in the order of its windows."""

    def take(self, lane: int, epoch: int, piece: Piece) -> Any:
        """The chunk of a piece, for which this lane asks once an epoch, and once more where some
        of its documents waited in a cursor."""

    def close(self) -> None:
        """Nothing is taken any more: end what reads ahead."""


class Ref(NamedTuple):
    """A document: which part of which record, in which epoch."""

    source: int
    epoch: int
    chunk: int
    row: int
    cut: int = 0


class LaneRecord(NamedTuple):
    """A record as a lane meets it: read it from its chunk."""

    ref: Ref
    id: int
    mirrored: bool
    chunk: Any


class LaneDocument(NamedTuple):
    """A document on its way into a row; `id` keys its noise."""

    ref: Ref
    id: int
    spans: Spans


@dataclass
class Cursor:
    """Where a lane stands: its place in each source, documents that wait, what was drawn so far.

    drawn counts scored positions by source: a mixture goes on from it.
    """

    places: list[Place]
    waiting: list[Ref] = field(default_factory=list)
    drawn: list[int] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"places": self.places, "waiting": self.waiting, "drawn": self.drawn}

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Cursor":
        """The cursor that `state` wrote."""
        return cls(
            [Place(*place) for place in state["places"]],
            [Ref(*ref) for ref in state["waiting"]],
            list(state["drawn"]),
        )

    @classmethod
    def start(cls, sources: int) -> "Cursor":
        """The beginning."""
        return cls([Place()] * sources, [], [0] * sources)


@dataclass(frozen=True)
class LaneSource:
    """A corpus as lanes read it. `weight`: its share of a mixture's scored positions."""

    name: str
    order: LaneOrder
    shelf: Shelf
    seed: int
    flip: bool = False
    weight: float = 1.0
    max_bad_fraction: float = 1.0


class LaneRecords:
    """The usable records of a source in a lane's order, from a place on."""

    def __init__(self, source: LaneSource, *, number: int, lane: int, place: Place) -> None:
        self.source, self.number, self.lane, self.place = source, number, lane, place
        self.seen = self.bad = self.bad_of_epoch = 0
        self._records = self._read()

    def __iter__(self) -> Iterator[LaneRecord]:
        return self

    def __next__(self) -> LaneRecord:
        return next(self._records)

    def _read(self) -> Iterator[LaneRecord]:
        windows = self.source.order.windows_from(self.lane, self.place)
        for epoch, window, pieces in windows:
            if self.bad == self.seen > 2 * self.source.order.records:
                raise UserError(f"no record of {self.source.name} can be used", exit_code=1)
            if window == 0:
                self.bad_of_epoch = 0
            place = self.place
            here = (place.epoch, place.window) == (epoch, window)
            start = place.row if here else 0
            yield from self._window(epoch, window, pieces, self._chunks(epoch, pieces), start=start)

    def _chunks(self, epoch: int, pieces: Sequence[Piece]) -> list[Any]:
        """The chunks of a window, which nobody else holds: they are gone before the next come."""
        return [self.source.shelf.take(self.lane, epoch, piece) for piece in pieces]

    def _window(
        self, epoch: int, window: int, pieces: Sequence[Piece], chunks: Sequence[Any], *, start: int
    ) -> Iterator[LaneRecord]:
        order = self.source.order.shuffled(self.lane, epoch, window)
        rows = np.concatenate([np.arange(piece.first, piece.last) for piece in pieces])[order]
        which = np.repeat(np.arange(len(pieces)), [piece.size for piece in pieces])[order]
        held = zip(pieces, chunks, strict=True)
        ids = np.concatenate([c.ids[p.first : p.last] for p, c in held])[order]
        mirrored = mirrored_ids(ids, epoch, seed=self.source.seed, flip=self.source.flip)
        ids = ids + self.number * SOURCE_IDS
        columns = (which.tolist(), rows.tolist(), ids.tolist(), mirrored.tolist())
        coming = zip(*columns, strict=True)
        for step, (piece, row, id_, side) in enumerate(coming):
            if step < start:
                continue
            last = step + 1 == len(order)  # who goes on there need not read this window again
            self.place = Place(epoch, window + 1) if last else Place(epoch, window, step + 1)
            self.seen += 1
            if chunks[piece].usable(row):
                ref = Ref(self.number, epoch, pieces[piece].chunk, row)
                yield LaneRecord(ref, id_, side, chunks[piece])
            else:
                self._count_bad()

    def _count_bad(self) -> None:
        """End the run where the corpus surely holds too many: more in one epoch of this lane than
        all of it may hold, or more than chance brings, which may put bad ones into few chunks."""
        self.bad += 1
        self.bad_of_epoch += 1
        order, limit = self.source.order, self.source.max_bad_fraction
        chunk = order.records / np.count_nonzero(order.sizes)
        fair = limit * self.seen
        most = fair + SURE * (math.sqrt(fair * chunk) + chunk)
        if self.bad_of_epoch > limit * order.records or self.bad > most:
            raise UserError(
                f"{self.bad} of {self.seen} records of {self.source.name} that came so far cannot"
                f" be used, more than corpus.max_bad_fraction = {limit:g}: repair it or raise that",
                exit_code=1,
            )


def cut_documents(ref: Ref, id_: int, found: Sequence[Spans]) -> list[LaneDocument]:
    """The documents that a record of that id was cut into, each with an id of its own."""
    return [
        LaneDocument(ref._replace(cut=cut) if cut else ref, id_ + cut * CUT_IDS, spans)
        for cut, spans in enumerate(found)
    ]


def mirrored_ids(ids: IntArray, epoch: int, *, seed: int, flip: bool) -> npt.NDArray[np.bool_]:
    """Which of these records are mirrored in an epoch: a coin keyed by (seed, epoch, id)."""
    if not flip:
        return np.zeros(len(ids), np.bool_)
    coin = RowNoise(seed=seed, ids_B=torch.from_numpy(ids.copy()), epochs_B=epoch)
    mirrored: npt.NDArray[np.bool_] = (coin.uniform(Draw.FLIP, 1)[:, 0] < 0.5).numpy()
    return mirrored


class Lane:
    """Rows of whole documents, one after another, for ever."""

    def __init__(
        self, sources: Sequence[LaneSource], composer: Composer, *, lane: int, cursor: Cursor
    ) -> None:
        self.sources, self.composer, self.lane = sources, composer, lane
        self.records = [
            LaneRecords(source, number=number, lane=lane, place=place)
            for number, (source, place) in enumerate(zip(sources, cursor.places, strict=True))
        ]
        self.drawn = list(cursor.drawn)
        self.waiting = self._again(cursor.waiting)

    def next_row(self) -> list[LaneDocument]:
        """The documents of the next row."""
        length = self.composer.length
        self._fill(1, positions=1)
        if size_of(self.waiting[0].spans) == length:
            return [self.waiting.pop(0)]
        self._fill(LOOKAHEAD, positions=LOOKAHEAD_ROWS * length)
        sizes = [size_of(document.spans) for document in self.waiting]
        latents = [has_latents(document.spans) for document in self.waiting]
        chosen = best_fit(sizes, latents, length=length)
        row, taken = [self.waiting[i] for i in chosen], set(chosen)
        self.waiting = [d for i, d in enumerate(self.waiting) if i not in taken]
        return row

    def cursor(self) -> Cursor:
        """Where the lane stands now."""
        places = [records.place for records in self.records]
        return Cursor(places, [document.ref for document in self.waiting], list(self.drawn))

    def _fill(self, count: int, *, positions: int) -> None:
        """Let that many documents wait, and so many positions of them."""
        silent, waiting = 0, sum(size_of(document.spans) for document in self.waiting)
        while len(self.waiting) < count or waiting < positions:
            number = self._neediest()
            documents = self._compose(next(self.records[number]))
            silent = 0 if documents else silent + 1
            if silent > self.sources[number].order.records:
                raise UserError(
                    f"no record of {self.sources[number].name} makes a document of at most"
                    f" {self.composer.length} positions; raise corpus.sequence_tokens",
                    exit_code=1,
                )
            self.drawn[number] += sum(scored_of(document.spans) for document in documents)
            self.waiting += documents
            waiting += sum(size_of(document.spans) for document in documents)

    def _neediest(self) -> int:
        """The source that lacks most of its share of the scored positions drawn so far."""
        if len(self.sources) == 1:
            return 0
        total = sum(self.drawn)
        weights = [source.weight for source in self.sources]
        whole = math.fsum(weights)
        lacks = [w / whole * total - d for w, d in zip(weights, self.drawn, strict=True)]
        return max(range(len(lacks)), key=lambda i: (lacks[i], -i))

    def _compose(self, record: LaneRecord) -> list[LaneDocument]:
        parts = record.chunk.parts(record.ref.row, mirrored=record.mirrored)
        name = self.sources[record.ref.source].name
        found = self.composer.compose(parts, key=f"{record.id % SOURCE_IDS} of {name}")
        return cut_documents(record.ref, record.id, found)

    def _again(self, refs: Sequence[Ref]) -> list[LaneDocument]:
        """The documents that waited when a cursor was taken; each of their chunks is taken once."""
        chunks: dict[tuple[int, int, int], Any] = {}
        documents = []
        for ref in refs:
            source, key = self.sources[ref.source], (ref.source, ref.epoch, ref.chunk)
            if key not in chunks:
                whole = Piece(ref.chunk, 0, int(source.order.sizes[ref.chunk]))
                chunks[key] = source.shelf.take(self.lane, ref.epoch, whole)
            chunk = chunks[key]
            id_ = chunk.ids[ref.row : ref.row + 1]
            mirrored = mirrored_ids(id_, ref.epoch, seed=source.seed, flip=source.flip)
            own = int(id_[0]) + ref.source * SOURCE_IDS
            record = LaneRecord(ref._replace(cut=0), own, bool(mirrored[0]), chunk)
            documents.append(self._compose(record)[ref.cut])
        return documents
