"""Records of parts: as stored, decoded, or bad with exactly one kind, the same for every layout.

A reader turns a layout into `Record`s and nothing else; `PartSource`s say what parts the corpus's
kind wants of it. A class image is the simplest record: its label (given) and its image (scored).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from latentlm.media import UnreadableImage, decode_image
from latentlm_platform.experiment.sections import Corpus

if TYPE_CHECKING:  # it loads torch, which reading records does not need
    from latentlm.parts import Part, Picture

Kind = Literal["label", "text", "image", "sound"]


class PartSource(NamedTuple):
    """One part of every record: its Parquet column or tar extension, and whether it is scored."""

    kind: Kind
    column: str
    scored: bool


class StoredPart(NamedTuple):
    """A part as stored: a class number, text, or the bytes of an image or sound file."""

    kind: Kind
    value: int | str | bytes
    scored: bool


@dataclass(frozen=True, slots=True)
class Record:
    """Parts in order; `problem` is (kind, reason) where the record cannot be used.

    `key` is unique and stable: the path of a file, `file#row`, or `file#key in the tar`. `group` is
    what bad records are counted by beside their kind: the class's name, where it is known.
    """

    key: str
    parts: tuple[StoredPart, ...] = ()
    problem: tuple[str, str] | None = None
    group: str = ""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A good record: labels as int, text as str, images uint8 [Y,X,C], sounds float32 [S]."""

    key: str
    parts: "tuple[Part, ...]"
    scored: tuple[bool, ...]

    @property
    def label(self) -> int:
        """The class of a class image."""
        return next(part for part in self.parts if isinstance(part, int))

    @property
    def pixels(self) -> "Picture":
        """The only picture of a class image: uint8 [Y,X,C]."""
        pictures = (part for part in self.parts if isinstance(part, np.ndarray))
        return next(picture.view(np.uint8) for picture in pictures if picture.ndim == 3)


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that is skipped: the kind and group it is counted by, and why."""

    key: str
    kind: str
    reason: str
    group: str = ""


def class_image_parts(corpus: Corpus) -> tuple[PartSource, ...]:
    """A class image: the label is given, the image is scored."""
    return (
        PartSource("label", corpus.label_column, scored=False),
        PartSource("image", corpus.image_column, scored=True),
    )


@dataclass(frozen=True)
class Labels:
    """How stored labels become 0 … classes − 1: by name, or as the numbers they are."""

    class_names: tuple[str, ...]
    by_name: bool

    @classmethod
    def of(cls, names: tuple[str, ...] | None, *, classes: int, by_name: bool) -> "Labels":
        """Labels of a corpus; classes without names are called by their numbers."""
        return cls(names or tuple(map(str, range(classes))), by_name)

    def number(self, label: object) -> int | tuple[str, str]:
        """The class of a stored label (text or a number), or its problem."""
        number = self._number(label)
        if isinstance(number, str):
            return "unreadable_label", number
        if not 0 <= number < len(self.class_names):
            reason = f"class {number} is not in 0 … {len(self.class_names) - 1}"
            return "label_out_of_range", reason
        return number

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.class_names)}

    def _number(self, label: object) -> int | str:
        """The class, or why there is none."""
        if self.by_name:
            unknown = f"{str(label)[:80]!r} is none of the corpus's classes"
            return self._places.get(str(label), unknown)
        number = whole_number(label)
        return f"{str(label)[:80]!r} is not a whole number" if number is None else number


def whole_number(label: object) -> int | None:
    """The number that a stored label is, or None."""
    try:
        number = float(label) if isinstance(label, float) else int(str(label))
    except ValueError:
        return None
    return int(number) if number == number // 1 else None


@dataclass(frozen=True)
class Assembly:
    """Puts what a reader found into a record of the wanted parts."""

    sources: tuple[PartSource, ...]
    labels: Labels

    def record(self, key: str, values: Sequence[object]) -> Record:
        """The record of one stored value a source, in their order.

        None stands for a value that lacks, (kind, reason) for one that cannot be read.
        """
        parts: list[StoredPart] = []
        problem, group = None, ""
        for source, value in zip(self.sources, values, strict=True):
            found = self._value(source.kind, value)
            if isinstance(found, tuple):
                problem = problem or found
                continue
            if isinstance(found, int):
                group = self.labels.class_names[found]
            parts.append(StoredPart(source.kind, found, source.scored))
        if problem is not None:
            return Record(key, problem=problem, group=group)
        return Record(key, tuple(parts), group=group)

    def lost(self, key: str, problem: tuple[str, str], *, label: object = None) -> Record:
        """A record that cannot be read; `label` is the stored one, if it is known."""
        number = None if label is None else self.labels.number(label)
        group = self.labels.class_names[number] if isinstance(number, int) else ""
        return Record(key, problem=problem, group=group)

    def _value(self, kind: Kind, value: object) -> int | str | bytes | tuple[str, str]:
        """The part's value, or the problem of the record."""
        if isinstance(value, tuple):
            return value
        if value is None:
            what = "class" if kind == "label" else kind
            return f"missing_{kind}", f"the record holds no {what}"
        if kind == "label":
            return self.labels.number(value)
        if kind == "text":
            return _text(value)
        assert isinstance(value, bytes)
        return value


def _text(value: object) -> str | tuple[str, str]:
    try:
        text = value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        return "unreadable_text", f"the text is not UTF-8: {error}"
    return text if text.strip() else ("missing_text", "the text is empty")


def decode_record(record: Record, *, corpus: Corpus) -> Decoded | BadRecord:
    """Its parts as signals, images at the corpus's size, or the one thing that is wrong with it."""
    if record.problem is not None:
        return BadRecord(record.key, *record.problem, record.group)
    try:
        parts = tuple(_decode_part(part, corpus) for part in record.parts)
    except UnreadableImage as error:
        return BadRecord(record.key, error.kind, error.reason, record.group)
    return Decoded(record.key, parts, tuple(part.scored for part in record.parts))


def _decode_part(part: StoredPart, corpus: Corpus) -> "Part":
    if isinstance(part.value, int | str):
        return part.value
    if part.kind != "image":
        raise ValueError(f"no decoder of {part.kind} parts")
    return decode_image(
        part.value,
        image_size=corpus.image_size,
        channels=corpus.channels,
        max_pixels=corpus.max_pixels,
    )
