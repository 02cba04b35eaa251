"""Encoded chunks: the records of a chunk as words and posteriors, ragged, in a few flat arrays.

A record is a sequence of parts; a part is a class label or a text (words), or a picture or a sound
(latents: posterior parameters and their number). A record that cannot be used has no parts, so that
rows are counted as in the corpus. Any row is read without its neighbours.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from latentlm_platform.latents.wire_rows import Arrays

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
KINDS: Final = ("label", "text", "image", "sound")  # their numbers are on disk: only append
LABEL, TEXT, IMAGE, SOUND = range(len(KINDS))
SIDES: Final = ("", "_mirrored")


class EncodedPart(NamedTuple):
    """One part of a record: `words` int32 (a label is one), or `mean_NZ` and maybe `std_NZ`."""

    kind: int
    scored: bool
    words: npt.NDArray[np.int32] | None
    mean_NZ: FloatArray | None
    std_NZ: FloatArray | None


@dataclass(frozen=True, eq=False)
class EncodedChunk:
    """Parts of n records, one after another.

    ids int64 [n]: record numbers in the corpus. part_starts int64 [n + 1]. kinds uint8, scored
    bool, lengths int32 [parts]. words int32 of all labels and texts. mean fp32 [latents, Z] by
    orientation, as drawn and mirrored; std where the encoder predicts it.
    """

    ids: IntArray
    part_starts: IntArray
    kinds: npt.NDArray[np.uint8]
    scored: npt.NDArray[np.bool_]
    lengths: npt.NDArray[np.int32]
    words: npt.NDArray[np.int32]
    mean: tuple[FloatArray, ...]
    std: tuple[FloatArray, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def usable(self, row: int) -> bool:
        """Whether the record can be used."""
        return self.part_starts.item(row + 1) > self.part_starts.item(row)

    def parts(self, row: int, *, mirrored: bool = False) -> tuple[EncodedPart, ...]:
        """The parts of a record, pictures mirrored or not; () of one that cannot be used."""
        side = int(mirrored) if len(self.mean) > 1 else 0
        return tuple(
            self._part(part, side)
            for part in range(self.part_starts.item(row), self.part_starts.item(row + 1))
        )

    def _part(self, part: int, side: int) -> EncodedPart:
        kind, scored = self.kinds.item(part), self.scored.item(part)
        if kind in (LABEL, TEXT):
            here = slice(self._word_starts.item(part), self._word_starts.item(part + 1))
            return EncodedPart(kind, scored, self.words[here], None, None)
        here = slice(self._latent_starts.item(part), self._latent_starts.item(part + 1))
        std = self.std[side][here] if self.std else None
        return EncodedPart(kind, scored, None, self.mean[side][here], std)

    def word_rows(self) -> IntArray:
        """Where each record's words begin, int64 [n + 1]."""
        return self._word_starts[self.part_starts]

    def latent_rows(self) -> IntArray:
        """Where each record's latents begin, int64 [n + 1]."""
        return self._latent_starts[self.part_starts]

    @cached_property
    def _word_starts(self) -> IntArray:
        return _starts(np.where(self.kinds <= TEXT, self.lengths, 0))

    @cached_property
    def _latent_starts(self) -> IntArray:
        return _starts(np.where(self.kinds > TEXT, self.lengths, 0))

    def check(self) -> None:
        """ValueError where the counts of records, parts, words and latents do not agree."""
        starts, parts = self.part_starts, len(self.kinds)
        whole = len(starts) == len(self) + 1 and len(self.scored) == len(self.lengths) == parts
        if not whole or starts[0] != 0 or starts[-1] != parts or (np.diff(starts) < 0).any():
            raise ValueError("its records and parts do not add up")
        if (self.kinds >= len(KINDS)).any() or (self.lengths < 0).any():
            raise ValueError("a part is of no kind or length that there is")
        latents = {len(values) for values in (*self.mean, *self.std)}
        sided = len(self.std) in (0, len(self.mean)) and latents == {int(self._latent_starts[-1])}
        if not sided or self._word_starts[-1] != len(self.words):
            raise ValueError("its words or latents do not add up")

    @property
    def good(self) -> int:
        """Records that can be used."""
        return int(np.count_nonzero(np.diff(self.part_starts)))

    def arrays(self) -> Arrays:
        """The chunk as named arrays, for a row of a Ray Data set."""
        named: Arrays = {name: getattr(self, name) for name in FLAT}
        for name in ("mean", "std"):
            sides = zip(SIDES, getattr(self, name), strict=False)
            named |= {f"{name}{side}": values for side, values in sides}
        return named

    @classmethod
    def of_arrays(cls, arrays: Arrays) -> "EncodedChunk":
        """The chunk that `arrays` named."""
        found = {
            name: tuple(arrays[f"{name}{side}"] for side in SIDES if f"{name}{side}" in arrays)
            for name in ("mean", "std")
        }
        return cls(**{name: arrays[name] for name in FLAT}, **found)  # type: ignore[arg-type]


FLAT: Final = ("ids", "part_starts", "kinds", "scored", "lengths", "words")


def _starts(lengths: npt.NDArray[np.int32]) -> IntArray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
