"""What a person gives to `latentlm sample`, as parts that a model knows.

In: (kind, text) in the order of the command line, text being a class, words or the path of a file.
Out: parts of one prompt (`latentlm.parts`), or the classes to draw. Everything raises UserError.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from latentlm.load import Loaded
from latentlm.media import UnreadableImage, decode_image, decode_wav
from latentlm.parts import Part, find_class, nearest_class, to_document
from latentlm.randomness import RowNoise
from latentlm.settings import SpeechCodecSettings
from latentlm_platform.errors import UserError

Kind = Literal["class", "prompt", "image", "sound"]
GivenPart = tuple[Kind, str]
MAX_PIXELS = 50_000_000  # as corpus.max_pixels where nothing else is said


def asked_classes(given: Sequence[GivenPart], loaded: Loaded, *, noise: RowNoise) -> list[int]:
    """The classes to draw with a model of classes: a row each.

    All of them where nothing is given; those of `--class` where nothing else is; else the one that
    the parts say together, if this model knows them. noise: one row, for signals.
    """
    if not given:
        return list(range(loaded.model.settings.classes or 0))
    if all(kind == "class" for kind, _ in given):
        return [number for _, text in given for number in class_numbers(text, loaded)]
    try:
        (span,) = to_document(prompt_parts(given, loaded), loaded, noise=noise)
    except ValueError as error:
        raise UserError(str(error)) from error
    return [int(span.token_ids[0])]  # type: ignore[union-attr]  # signals it does not know


def prompt_parts(given: Sequence[GivenPart], loaded: Loaded) -> list[Part]:
    """The parts of one prompt, in order; files decoded as the codec wants them."""
    parts: list[Part] = []
    for kind, text in given:
        if kind == "prompt":
            parts.append(text)
        elif kind == "class":
            parts += class_numbers(text, loaded)
        else:
            parts.append(_decoded(kind, text, loaded))
    return parts


def class_numbers(text: str, loaded: Loaded) -> list[int]:
    """The classes of one `--class`: a name or a number, or several with commas between them."""
    classes = loaded.model.settings.classes
    if classes is None:
        raise UserError(f"--class {text}: this model has no classes, it reads text; use --prompt")
    whole = find_class(text, loaded.class_names)  # names may hold commas
    if whole is not None:
        return [whole]
    return [_class_number(one.strip(), loaded.class_names, classes) for one in text.split(",")]


def _class_number(text: str, names: Sequence[str], classes: int) -> int:
    """A name comes first: a folder called 10 is the class 10, whatever its number."""
    named = find_class(text, names)
    if named is not None:
        return named
    try:
        number = int(text)
    except ValueError as error:
        hint = f"give numbers from 0 to {classes - 1}, this export has no class names"
        if names:
            hint = nearest_class(text, names)
        raise UserError(f"--class {text} is not a class; {hint}") from error
    if not 0 <= number < classes:
        raise UserError(f"--class {number} is not a class; this model knows 0 … {classes - 1}")
    return number


def _decoded(kind: Literal["image", "sound"], path: str, loaded: Loaded) -> Part:
    settings = loaded.codec.settings
    has = "sound" if isinstance(settings, SpeechCodecSettings) else "image"
    if kind != has:
        raise UserError(f"--{kind} {path}: this model's codec is of {has}s; leave out --{kind}")
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"--{kind} {path} cannot be read: {error.strerror}") from error
    try:
        if isinstance(settings, SpeechCodecSettings):
            return decode_wav(data, rate_hz=settings.sample_rate_hz)
        return decode_image(
            data,
            image_size=settings.image_size,
            channels=settings.channels,
            max_pixels=MAX_PIXELS,
        )
    except UnreadableImage as error:
        raise UserError(f"--image {path} is no usable image: {error.reason}") from error
    except ValueError as error:
        raise UserError(f"--sound {path}: {error}") from error
