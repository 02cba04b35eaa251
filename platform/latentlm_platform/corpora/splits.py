"""A corpus divided into what is trained on and what is held out, read chunk by chunk."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from latentlm_platform.corpora.class_images import CorpusIndex, open_corpus
from latentlm_platform.corpora.named import resolve
from latentlm_platform.corpora.records import BadRecord, Decoded, decode_record
from latentlm_platform.errors import UserError
from latentlm_platform.experiment.sections import Corpus

IntArray = npt.NDArray[np.int64]
Part = Literal["all", "train", "held_out"]
SURVEY_CHUNKS = 8
SURVEY_RECORDS = 32


class Rows(Protocol):
    """Rows of this split in any order: their chunk, and their place among its rows there."""

    @property
    def chunks(self) -> IntArray: ...

    @property
    def rows(self) -> IntArray: ...


class Signals(NamedTuple):
    """Decoded images in order: pixels uint8 [n, Y, X, C], labels int64 [n]."""

    pixels: npt.NDArray[np.uint8]
    labels: IntArray


@dataclass(frozen=True)
class Split:
    """Some rows of every chunk of a corpus: all of them, or one side of the held-out fraction."""

    index: CorpusIndex
    corpus: Corpus
    part: Part
    seed: int

    @property
    def chunk_sizes(self) -> IntArray:
        """Rows of this split in each chunk, the bad ones too."""
        sizes = self.index.chunk_sizes
        if self.part == "all":
            return sizes
        held = np.rint(sizes * self.corpus.held_out_fraction).astype(np.int64)
        return sizes - held if self.part == "train" else held

    def rows_of(self, chunk: int) -> IntArray:
        """Rows of the corpus's chunk that belong to this split, sorted."""
        size = int(self.index.chunk_sizes[chunk])
        if self.part == "all":
            return np.arange(size, dtype=np.int64)
        fraction = self.corpus.held_out_fraction
        held = _held_out_rows(seed=self.seed, chunk=chunk, size=size, fraction=fraction)
        return held if self.part == "held_out" else np.setdiff1d(np.arange(size), held)

    def ids_of(self, chunk: int) -> IntArray:
        """The numbers of those rows among all records of the corpus, whichever the split."""
        return int(self.index.chunk_sizes[:chunk].sum()) + self.rows_of(chunk)

    def decode_chunk(self, chunk: int, *, limit: int | None = None) -> list[Decoded | BadRecord]:
        """The chunk's records (the first `limit`) in this split, decoded or with their fault."""
        wanted = set(self.rows_of(chunk)[:limit].tolist())
        records = enumerate(self.index.read_chunk(chunk))
        return [decode_record(r, corpus=self.corpus) for i, r in records if i in wanted]

    def decode_rows(self, rows: Rows) -> Signals:
        """The images of these rows, in order; an unreadable one is replaced by the next good one
        of its chunk, so that batches keep their size and do not depend on the workers."""
        pixels: list[npt.NDArray[np.uint8] | None] = [None] * len(rows.rows)
        labels = np.zeros(len(rows.rows), np.int64)
        for chunk in np.unique(rows.chunks).tolist():
            places = np.flatnonzero(rows.chunks == chunk)
            decoded = self._decode_wanted(chunk, rows.rows[places])
            for place, signal in zip(places.tolist(), decoded, strict=True):
                pixels[place], labels[place] = signal.pixels, signal.label
        return Signals(np.stack([p for p in pixels if p is not None]), labels)

    def _decode_wanted(self, chunk: int, wanted: IntArray) -> list[Decoded]:
        members = self.rows_of(chunk)
        records = list(self.index.read_chunk(chunk))

        @cache
        def decode(position: int) -> Decoded | BadRecord:
            return decode_record(records[int(members[position])], corpus=self.corpus)

        def next_good(row: int) -> Decoded | None:
            places = ((row + step) % len(members) for step in range(len(members)))
            return next((s for s in map(decode, places) if isinstance(s, Decoded)), None)

        found = [next_good(int(row)) for row in wanted]
        good = [signal for signal in found if signal is not None]
        return good if len(good) == len(found) else self._stand_ins(chunk, len(found))

    def _stand_ins(self, chunk: int, count: int) -> list[Decoded]:
        """Images of the next chunk that has good ones, for a chunk that has none."""
        chunks = len(self.chunk_sizes)
        for step in range(1, chunks):
            signals = self.decode_chunk((chunk + step) % chunks)
            good = [signal for signal in signals if isinstance(signal, Decoded)]
            if good:
                return [good[i % len(good)] for i in range(count)]
        raise UserError(f"no image of {self.index.source} can be read", exit_code=1)


class Splits(NamedTuple):
    """What is trained on and what is held out."""

    train: Split
    held_out: Split


def open_splits(corpus: Corpus, *, seed: int) -> Splits:
    """Index the corpus and its held-out part; named corpora must have been fetched."""
    index = open_corpus(resolve(corpus.source), corpus=corpus)
    if corpus.held_out_source is None:
        return Splits(
            Split(index, corpus, "train", seed),
            Split(index, corpus, "held_out", seed),
        )
    held_out = open_corpus(resolve(corpus.held_out_source), corpus=corpus)
    if held_out.class_names != index.class_names:
        raise UserError(
            f"{corpus.held_out_source} has the classes {', '.join(held_out.class_names)},"
            f" {corpus.source} has {', '.join(index.class_names)}; both must be the same"
        )
    return Splits(Split(index, corpus, "all", seed), Split(held_out, corpus, "all", seed))


def survey(split: Split) -> tuple[int, list[BadRecord]]:
    """Decode some records of chunks spread over the split: (records seen, the bad ones)."""
    count = len(split.chunk_sizes)
    chosen: Sequence[int] = np.unique(np.linspace(0, count - 1, SURVEY_CHUNKS).astype(int)).tolist()
    seen, bad = 0, []
    for chunk in chosen:
        signals = split.decode_chunk(chunk, limit=SURVEY_RECORDS)
        seen += len(signals)
        bad += [signal for signal in signals if isinstance(signal, BadRecord)]
    return seen, bad


def preprocessing(corpus: Corpus) -> dict[str, Any]:
    """The settings of a corpus that change its signals or which of them are held out."""
    names = {"layout", "held_out_fraction", "classes", "image_size", "channels", "max_pixels"}
    return corpus.model_dump(mode="json", include=names | {"image_column", "label_column"})


def corpus_digests(splits: Splits) -> list[str]:
    """The manifests of what is trained on and what is held out."""
    return [splits.train.index.digest, splits.held_out.index.digest]


def _held_out_rows(*, seed: int, chunk: int, size: int, fraction: float) -> IntArray:
    shuffled = np.random.default_rng([seed, 2, chunk]).permutation(size)
    return np.sort(shuffled[: round(size * fraction)]).astype(np.int64)
