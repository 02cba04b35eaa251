"""A corpus divided into what is trained on and what is held out, read chunk by chunk."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from latentlm_platform.corpora import crashes
from latentlm_platform.corpora.chunk_index import map_array
from latentlm_platform.corpora.corpus_index import CorpusIndex, open_corpus
from latentlm_platform.corpora.division import Division, chunk_starts, open_division
from latentlm_platform.corpora.locating import Meter
from latentlm_platform.corpora.named import resolve
from latentlm_platform.corpora.records import BadRecord, Decoded, decode_record
from latentlm_platform.corpora.spreading import spread
from latentlm_platform.errors import UserError
from latentlm_platform.experiment.sections import Corpus

IntArray = npt.NDArray[np.int64]
Part = Literal["all", "train", "held_out"]
EVERY = slice(None)
SPREAD_CHUNKS = 16  # that a draw comes from at least: a corpus may be sorted by class
SURVEY_CHUNKS = 8
SURVEY_RECORDS = 32


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
        if self.part == "all":
            return self.index.chunk_sizes
        if self.part == "held_out":
            return self._division.counts
        return _train_sizes(self.index.folder, self.seed, self.corpus.held_out_fraction)

    def rows_of(self, chunk: int) -> IntArray:
        """Rows of the corpus's chunk that belong to this split, sorted."""
        size = int(self.index.chunk_sizes[chunk])
        if self.part == "all":
            return np.arange(size, dtype=np.int64)
        start = int(chunk_starts(self.index.folder)[chunk])
        held = self._division.held_out(start, start + size)
        return np.flatnonzero(held if self.part == "held_out" else ~held)

    def ids_of(self, chunk: int) -> IntArray:
        """The numbers of those rows among all records of the corpus, whichever the split."""
        return int(chunk_starts(self.index.folder)[chunk]) + self.rows_of(chunk)

    def decode_chunk(
        self, chunk: int, *, rows: slice | IntArray = EVERY, meter: Meter | None = None
    ) -> list[Decoded | BadRecord]:
        """The chunk's records (or some `rows` of them, ascending) in this split, decoded or with
        their fault.

        `meter` counts the bytes that are read. A record that ended two processes is a fault too.
        """
        return list(self.decoded(chunk, rows=rows, meter=meter))

    def decoded(
        self, chunk: int, *, rows: slice | IntArray = EVERY, meter: Meter | None = None
    ) -> Iterator[Decoded | BadRecord]:
        """As `decode_chunk`, one by one, for who keeps none of them."""
        wanted = self.rows_of(chunk)[rows]
        if not len(wanted):
            return
        records = self.index.read_chunk(chunk, wanted, meter)
        with crashes.marking(self.index.folder.name, chunk) as marker:
            for row, record in zip(wanted.tolist(), records, strict=True):
                if marker.is_given_up(row):
                    yield BadRecord(record.key, crashes.KIND, crashes.REASON, record.group)
                    continue
                marker.begin(row)
                found = decode_record(record, corpus=self.corpus)
                marker.end(row)
                yield found

    @property
    def _division(self) -> Division:
        fraction = self.corpus.held_out_fraction
        return open_division(self.index.folder, seed=self.seed, fraction=fraction)


class Splits(NamedTuple):
    """What is trained on and what is held out."""

    train: Split
    held_out: Split


@lru_cache(maxsize=8)
def _train_sizes(folder: Path, seed: int, fraction: float) -> IntArray:
    """What is not held out of each chunk (8 bytes a chunk)."""
    held = open_division(folder, seed=seed, fraction=fraction).counts
    return map_array(folder / "chunk_sizes.npy") - held


def open_splits(corpus: Corpus, *, seed: int) -> Splits:
    """Index the corpus and divide it, or index its held-out source.

    Named corpora must have been fetched.
    """
    index = open_corpus(resolve(corpus.source), corpus=corpus)
    if corpus.held_out_source is None:
        open_division(index.folder, seed=seed, fraction=corpus.held_out_fraction)
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
    for signals, faults in spread(partial(_survey_chunk, split), chosen):
        seen += signals
        bad += faults
    return seen, bad


def _survey_chunk(split: Split, chunk: int) -> tuple[int, list[BadRecord]]:
    signals = split.decode_chunk(chunk, rows=slice(SURVEY_RECORDS))
    return len(signals), [signal for signal in signals if isinstance(signal, BadRecord)]


def preprocessing(corpus: Corpus) -> dict[str, Any]:
    """The settings of a corpus that change its signals or which of them are held out."""
    names = {"layout", "held_out_fraction", "classes", "image_size", "channels", "max_pixels"}
    return corpus.model_dump(mode="json", include=names | {"image_column", "label_column"})


def corpus_digests(splits: Splits) -> list[str]:
    """The manifests of what is trained on and what is held out."""
    return [splits.train.index.digest, splits.held_out.index.digest]
