"""Records as documents: parts → spans of words and posteriors, with the words that hold them apart.

A model of classes reads [label, z₁ … z_N]. A model with a vocabulary reads END, then text as words
and every signal as BOD z₁ … z_N EOD, then END: so the first word has something to be predicted
from (§2.2). A document longer than a row is cut between parts, and inside a text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from latentlm.sequence import TextSpan
from latentlm.vocabulary import special_ids
from latentlm_platform.errors import UserError
from latentlm_platform.latents.encoded import KINDS, LABEL, EncodedPart

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PosteriorSpan:
    """Posterior parameters (N, Z) of one signal: noise is drawn where the batch is used.

    `place` is the part's number in its record: it keys the noise.
    """

    mean_NZ: FloatArray
    std_NZ: FloatArray | None
    scored: bool
    place: int

    def __len__(self) -> int:
        return len(self.mean_NZ)


Span = TextSpan | PosteriorSpan
Spans = tuple[Span, ...]


@dataclass(frozen=True)
class Composer:
    """How records become documents of at most `length` positions.

    `vocabulary` is the model's size of it, None for models of classes. `label_words` are the ids of
    each class name, for a model with a vocabulary. `too_long` says what becomes of a part longer
    than a row: `refuse` ends the run, `skip` leaves the record out.
    """

    length: int
    vocabulary: int | None
    label_words: tuple[tuple[int, ...], ...] = ()
    too_long: Literal["refuse", "skip"] = "refuse"

    def compose(self, parts: Sequence[EncodedPart], *, key: str) -> list[Spans]:
        """The documents of a record, mostly one; none where it is skipped or nothing is scored.

        UserError where a part is longer than a row, naming the record by `key`.
        """
        return [spans for spans in self._compose(parts, key) if scored_of(spans)]

    def _compose(self, parts: Sequence[EncodedPart], key: str) -> list[Spans]:
        if self.vocabulary is None:
            spans = tuple(self._class_spans(parts))
            return [spans] if self._fits(size_of(spans), key) else []
        units = [unit for place, part in enumerate(parts) for unit in self._units(part, place)]
        marks = 2  # END before and behind
        longest = max((size_of(unit) for unit in units), default=0)
        if not units or not self._fits(longest + marks, key):
            return []
        return list(self._documents(units))

    def _class_spans(self, parts: Sequence[EncodedPart]) -> Iterator[Span]:
        for place, part in enumerate(parts):
            if part.mean_NZ is not None:
                yield PosteriorSpan(part.mean_NZ, part.std_NZ, part.scored, place)
            elif part.kind == LABEL and part.words is not None:
                yield TextSpan(part.words.astype(np.int64), part.scored)
            else:
                raise UserError(
                    f"a model of classes cannot read a part of kind {KINDS[part.kind]};"
                    " set model.vocabulary, or give a corpus of class images"
                )

    def _units(self, part: EncodedPart, place: int) -> Iterator[Spans]:
        """What is never cut: a signal with its marks, or as much text as a row holds."""
        special = special_ids(self.vocabulary or 0)
        if part.mean_NZ is not None:
            yield (
                _words([special.bod], part.scored),
                PosteriorSpan(part.mean_NZ, part.std_NZ, part.scored, place),
                _words([special.eod], part.scored),
            )
            return
        assert part.words is not None
        words = part.words.astype(np.int64)
        if part.kind == LABEL:
            words = self._label_words(int(words[0]))
        room = self.length - 2
        for start in range(0, len(words), room):
            yield (TextSpan(words[start : start + room], part.scored),)

    def _label_words(self, label: int) -> npt.NDArray[np.int64]:
        if not self.label_words:
            raise UserError(
                "a model with a vocabulary reads class labels as words, but these classes have no"
                " names; name them in the corpus, or remove model.vocabulary"
            )
        return np.array(self.label_words[label], np.int64)

    def _documents(self, units: Sequence[Spans]) -> Iterator[Spans]:
        end = special_ids(self.vocabulary or 0).end
        held: list[Span] = []
        for unit in units:
            if held and size_of(held) + size_of(unit) + 2 > self.length:
                yield (_words([end], False), *held)
                held = []
            held += unit
        scored = any(span.scored for span in held)
        yield (_words([end], False), *held, _words([end], scored))

    def _fits(self, size: int, key: str) -> bool:
        if 0 < size <= self.length:
            return True
        if size and self.too_long == "refuse":
            raise UserError(
                f"record {key} has a part of {size} positions, but a row holds {self.length}:"
                " raise corpus.sequence_tokens, or set corpus.too_long: skip to leave such"
                " records out",
                exit_code=1,
            )
        return False


def size_of(spans: Sequence[Span]) -> int:
    """Positions of some spans."""
    return sum(len(span) for span in spans)


def scored_of(spans: Sequence[Span]) -> int:
    """Positions that are predicted and scored."""
    return sum(len(span) for span in spans if span.scored)


def has_latents(spans: Sequence[Span]) -> bool:
    """Whether a signal is among them."""
    return any(isinstance(span, PosteriorSpan) for span in spans)


def _words(ids: Sequence[int], scored: bool) -> TextSpan:
    return TextSpan(np.array(ids, np.int64), scored)
