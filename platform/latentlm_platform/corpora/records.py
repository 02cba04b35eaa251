"""Records of a class-image corpus, raw and decoded: each is good or bad with exactly one kind."""

from dataclasses import dataclass

from latentlm.media import Pixels, UnreadableImage, decode_image
from latentlm_platform.experiment.sections import Corpus


@dataclass(frozen=True, slots=True)
class RawRecord:
    """Bytes and class as stored; `problem` is (kind, reason) where the record cannot be used.

    `key` is unique and stable: the path of an image file, `file#row`, or `file#key in the tar`.
    """

    key: str
    data: bytes | None = None
    label: int | None = None
    problem: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Decoded:
    """A good record: uint8 [Y,X,C] and its class."""

    key: str
    pixels: Pixels
    label: int


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that is skipped: the kind it is counted by, and why."""

    key: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Labels:
    """How stored labels become 0 … classes − 1: by name, or as the numbers they are."""

    class_names: tuple[str, ...]
    by_name: bool

    def record(self, key: str, *, data: bytes | None, label: object) -> RawRecord:
        """The record of an image and a stored label (text, a number, or None)."""
        if data is None:
            return RawRecord(key, problem=("missing_image", "the record holds no image"))
        if label is None:
            return RawRecord(key, problem=("missing_label", "the record holds no class"))
        number = self._number(label)
        if isinstance(number, str):
            return RawRecord(key, problem=("unreadable_label", number))
        if not 0 <= number < len(self.class_names):
            reason = f"class {number} is not in 0 … {len(self.class_names) - 1}"
            return RawRecord(key, problem=("label_out_of_range", reason))
        return RawRecord(key, data=data, label=number)

    def _number(self, label: object) -> int | str:
        """The class, or why there is none."""
        if self.by_name:
            try:
                return self.class_names.index(str(label))
            except ValueError:
                return f"{str(label)[:80]!r} is none of the corpus's classes"
        try:
            number = float(label) if isinstance(label, float) else int(str(label))
        except ValueError:
            return f"{str(label)[:80]!r} is not a whole number"
        return int(number) if number == number // 1 else f"{label} is not a whole number"


def decode_record(record: RawRecord, *, corpus: Corpus) -> Decoded | BadRecord:
    """The record's pixels at the corpus's size, or the one thing that is wrong with it."""
    if record.problem is not None:
        return BadRecord(record.key, *record.problem)
    assert record.data is not None  # else it had a problem
    assert record.label is not None
    try:
        pixels = decode_image(
            record.data,
            image_size=corpus.image_size,
            channels=corpus.channels,
            max_pixels=corpus.max_pixels,
        )
    except UnreadableImage as error:
        return BadRecord(record.key, error.kind, error.reason)
    return Decoded(record.key, pixels, record.label)
