"""Decoded chunks on their way to the encoder: words as ids, pictures and sounds in flat arrays.

In: a chunk of a split. Out: named arrays for a row of a Ray Data set, which the encoder actor turns
into an `EncodedChunk`, and what could not be used. Nothing here needs torch, whose import would
delay the first rows of every reader by seconds.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from latentlm_platform.corpora.bad_records import BadTally
from latentlm_platform.corpora.records import BadRecord, Decoded
from latentlm_platform.corpora.splits import Split
from latentlm_platform.latents.data_graph import Item
from latentlm_platform.latents.encoded import IMAGE, LABEL, SOUND, TEXT
from latentlm_platform.latents.wire_rows import Arrays

if TYPE_CHECKING:
    from latentlm.parts import Part
    from latentlm.vocabulary import Vocabulary

SPLITS = ("train", "held_out")


@dataclass(frozen=True)
class Words:
    """How text becomes ids: a file of tiktoken ranks and the size of the model's vocabulary."""

    ranks: str
    size: int

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""
        return _vocabulary(self.ranks, self.size).encode(text)


@dataclass(frozen=True)
class ChunkDecoder:
    """Chunk number → arrays of the whole chunk; pictures uint8 [images, Y, X, C], each once."""

    split: Split
    name: str  # of the split: train or held_out
    words: Words | None = None

    def __call__(self, chunk: int) -> Arrays:
        records = self.split.decode_chunk(chunk)
        tally = BadTally()
        for record in records:
            if isinstance(record, BadRecord):
                tally.add(record, split=self.name)
        about = {
            "bad": tally.state(),
            "keys": [record.key for record in records],
        }
        return self._flatten(records) | {
            "ids": self.split.ids_of(chunk),
            "chunk": np.array([chunk], np.int64),
            "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        }

    def _flatten(self, records: Sequence[Decoded | BadRecord]) -> Arrays:
        part_starts, kinds, scored, lengths = [0], [], [], []
        words: list[int] = []
        pictures: list[Any] = []
        sounds: list[Any] = []
        for record in records:
            if isinstance(record, Decoded):
                for part, counts in zip(record.parts, record.scored, strict=True):
                    kind, ids = self._words_of(part)
                    kinds.append(kind)
                    scored.append(counts)
                    lengths.append(len(ids))
                    words += ids
                    if kind == IMAGE:
                        pictures.append(part)
                    elif kind == SOUND:
                        sounds.append(part)
            part_starts.append(len(kinds))
        arrays: Arrays = {
            "part_starts": np.array(part_starts, np.int64),
            "kinds": np.array(kinds, np.uint8),
            "scored": np.array(scored, np.bool_),
            "lengths": np.array(lengths, np.int32),
            "words": np.array(words, np.int32),
        }
        if pictures:
            arrays["pixels"] = np.stack(pictures)
        if sounds:
            arrays["samples"] = np.concatenate(sounds)
            arrays["sample_ends"] = np.cumsum([len(sound) for sound in sounds])[:-1]
        return arrays

    def _words_of(self, part: "Part") -> tuple[int, list[int]]:
        """(kind, ids): a label is its own id; of signals the number of latents is known later."""
        if isinstance(part, str):
            assert self.words is not None, "a corpus with text has a tokenizer"
            return TEXT, self.words.encode(part)
        if isinstance(part, int | np.integer):
            return LABEL, [int(part)]
        return (IMAGE if part.ndim == 3 else SOUND), []


@dataclass(frozen=True)
class SplitReader:
    """(split, chunk), by their numbers → the decoded chunk."""

    decoders: Mapping[str, ChunkDecoder]

    def __call__(self, item: Item) -> Arrays:
        split, chunk = item
        return self.decoders[SPLITS[split]](chunk) | {"split": np.array([split], np.int64)}


@lru_cache(maxsize=4)
def _vocabulary(ranks: str, size: int) -> "Vocabulary":
    from latentlm.vocabulary import Vocabulary

    return Vocabulary(ranks, size=size)
