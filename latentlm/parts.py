"""What people hold, as documents and back: text, class labels, pictures, sounds ↔ spans.

A part is a `str`, an `int` (class label), a picture (uint8, rows x columns x channels) or a sound
(fp32 samples in [-1, 1]). A document is a list of parts. To a model without text, a `str` that
names a class is its label.
"""

import difflib
from collections.abc import Sequence
from typing import NoReturn, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latentlm.codec.contract import Codec
from latentlm.models import CodeLM, DiT, LatentLM
from latentlm.randomness import RowNoise
from latentlm.sequence import Document, LatentSpan, TextSpan
from latentlm.signals import pixels_to_signal, signal_to_pixels
from latentlm.vocabulary import Vocabulary

Picture: TypeAlias = npt.NDArray[np.uint8]
Sound: TypeAlias = npt.NDArray[np.float32]
Part: TypeAlias = str | int | Picture | Sound
SHOWN_CLASSES = 10  # in an error


class Speaks(Protocol):
    """A model with its codec and, where it has text, its vocabulary."""

    @property
    def model(self) -> LatentLM | DiT | CodeLM: ...

    @property
    def codec(self) -> Codec: ...

    @property
    def vocabulary(self) -> Vocabulary | None: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...


def to_document(
    parts: Sequence[Part], loaded: Speaks, *, noise: RowNoise, ask_signal: bool = False
) -> Document:
    """Parts as spans; signals are encoded with the codec's own noise, keyed by their place.

    ask_signal ends the document with BOD, so that a model with text goes on with a signal. Raises
    ValueError for parts that this model does not know.
    """
    if not isinstance(parts, list | tuple):
        raise ValueError(f"a prompt is a list of parts, not {str(parts)[:40]!r}; put it in [ ]")
    spans: list[TextSpan | LatentSpan] = []
    for place, part in enumerate(parts):
        if isinstance(part, str) and loaded.vocabulary is None:
            spans.append(_label(_named(part, loaded), loaded.model))
        elif isinstance(part, str):
            spans.append(_words(_vocabulary(loaded, part).encode(part)))
        elif isinstance(part, int | np.integer):
            spans.append(_label(int(part), loaded.model))
        else:
            span = _latents(part, loaded, noise=noise.at(place))
            special = _vocabulary(loaded, "a signal").special
            spans += [_words([special.bod]), span, _words([special.eod])]
    if ask_signal and loaded.model.settings.vocabulary is not None:
        spans.append(_words([_vocabulary(loaded, "a signal").special.bod]))
    if loaded.vocabulary is None and len(spans) > 1:
        raise ValueError(f"{len(spans)} class labels came for one picture; give one a prompt")
    if not sum(len(span) for span in spans):
        raise ValueError("a prompt has no elements; give text, a class label or a signal")
    return tuple(spans)


def to_parts(document: Document, loaded: Speaks) -> list[Part]:
    """Spans as parts: words joined to text, each run of latents decoded to a picture or sound.

    A run of another length than a picture's, cut short by capacity, is left out.
    """
    parts: list[Part] = []
    whole = getattr(loaded.codec, "latent_count", None)
    for span in document:
        if isinstance(span, LatentSpan):
            if whole in (None, len(span)):
                parts.append(_signal(span, loaded))
        elif loaded.vocabulary is not None:
            text = loaded.vocabulary.decode(span.token_ids.tolist())
            if text:
                parts.append(text)
    return parts


def find_class(name: str, class_names: Sequence[str]) -> int | None:
    """The number of the class of this name, in its own or in any other case; None: there is none.

    A name that only another case tells from a second one must be given in its own.
    """
    if name in class_names:
        return list(class_names).index(name)
    same = [i for i, known in enumerate(class_names) if known.casefold() == name.casefold()]
    return same[0] if len(same) == 1 else None


def nearest_class(name: str, class_names: Sequence[str]) -> str:
    """What to say of a name that is no class: the nearest one, or some of those there are."""
    folded = {known.casefold(): known for known in class_names}
    if near := difflib.get_close_matches(name.casefold(), folded, 1):
        return f"did you mean {folded[near[0]]}?"
    more = ", …" if len(class_names) > SHOWN_CLASSES else ""
    return f"its classes are {', '.join(class_names[:SHOWN_CLASSES])}{more}"


def _named(part: str, loaded: Speaks) -> int:
    number = find_class(part, loaded.class_names)
    if number is None and loaded.class_names:
        hint = nearest_class(part, loaded.class_names)
        raise ValueError(f"this model knows class labels only, not {part[:40]!r}; {hint}")
    return _no_vocabulary(loaded, part) if number is None else number


def _words(ids: Sequence[int]) -> TextSpan:
    return TextSpan(np.array(ids, np.int64))


def _vocabulary(loaded: Speaks, what: str) -> Vocabulary:
    return _no_vocabulary(loaded, what) if loaded.vocabulary is None else loaded.vocabulary


def _no_vocabulary(loaded: Speaks, what: str) -> NoReturn:
    names = f"class names such as {loaded.class_names[0]!r} or " if loaded.class_names else ""
    raise ValueError(
        f"this model knows class labels only, not {what[:40]!r}; give {names}numbers from 0 to"
        f" {(loaded.model.settings.classes or 1) - 1}"
    )


def _label(label: int, model: LatentLM | DiT | CodeLM) -> TextSpan:
    classes = model.settings.classes
    if classes is None:
        raise ValueError(f"{label} is a class label, but this model reads text; give it a str")
    if not 0 <= label < classes:
        raise ValueError(f"{label} is not a class; this model knows 0 to {classes - 1}")
    return _words([label])


def _latents(part: Picture | Sound, loaded: Speaks, *, noise: RowNoise) -> LatentSpan:
    device = loaded.model.device
    signal = torch.from_numpy(np.array(part)).unsqueeze(0).to(device)
    if part.ndim == 3 and part.dtype == np.uint8:
        signal = pixels_to_signal(signal)
    elif part.ndim == 1 and np.issubdtype(part.dtype, np.floating):
        signal = signal.float()
    else:
        raise ValueError(
            f"a part of {part.dtype} with shape {part.shape} is neither a picture (uint8, rows x"
            " columns x channels) nor a sound (floats, samples)"
        )
    latents_1NZ = loaded.codec.draw(loaded.codec.encode(signal), noise=noise)
    return LatentSpan(loaded.codec.normalise(latents_1NZ)[0].cpu().numpy())


def _signal(span: LatentSpan, loaded: Speaks) -> Picture | Sound:
    device = loaded.model.device
    latents_1NZ = torch.from_numpy(span.latents_NZ).unsqueeze(0).to(device)
    signal: Tensor = loaded.codec.decode(loaded.codec.denormalise(latents_1NZ))
    if signal.ndim == 4:
        pixels: Picture = signal_to_pixels(signal)[0].cpu().numpy()
        return pixels
    sound: Sound = signal[0].float().cpu().numpy()
    return sound
