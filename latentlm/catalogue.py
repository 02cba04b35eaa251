"""Where a name in a YAML or in an export becomes a class: literal dictionaries, nothing else."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar, overload

import torch
from torch import nn

from latentlm.codec.image_vit import ImageViTCodec
from latentlm.codec.speech_conv import SpeechConvCodec
from latentlm.codec.vector_quantized import VectorQuantizedCodec
from latentlm.models.code_lm import CodeLM
from latentlm.models.dit import DiT
from latentlm.models.latent_lm import LatentLM
from latentlm.settings import (
    CodecSettings,
    CodeLMSettings,
    DiTSettings,
    ImageCodecSettings,
    LatentLMSettings,
    ModelSettings,
    SpeechCodecSettings,
    VectorQuantizedSettings,
)

Settings = TypeVar("Settings")
Module = TypeVar("Module", bound=nn.Module)


class Entry(NamedTuple, Generic[Settings, Module]):
    """The settings class of a kind and the module that is built from such settings."""

    settings: type[Settings]
    build: Callable[[Settings], Module]


MODELS: dict[str, Entry[Any, Any]] = {
    "latent_lm": Entry(LatentLMSettings, LatentLM),
    "dit": Entry(DiTSettings, DiT),
    "code_lm": Entry(CodeLMSettings, CodeLM),
}
CODECS: dict[str, Entry[Any, Any]] = {
    "image_vit": Entry(ImageCodecSettings, ImageViTCodec),
    "speech_conv": Entry(SpeechCodecSettings, SpeechConvCodec),
    "vector_quantized": Entry(VectorQuantizedSettings, VectorQuantizedCodec),
}

AnyModel = LatentLM | DiT | CodeLM
AnyCodec = ImageViTCodec | SpeechConvCodec | VectorQuantizedCodec


@overload
def build_model(settings: LatentLMSettings) -> LatentLM:
    """A LatentLM."""


@overload
def build_model(settings: DiTSettings) -> DiT:
    """A Diffusion Transformer."""


@overload
def build_model(settings: CodeLMSettings) -> CodeLM:
    """A model of codes."""


@overload
def build_model(settings: ModelSettings) -> AnyModel:
    """A model of any kind."""


def build_model(settings: ModelSettings) -> AnyModel:
    """The model of these settings, with fresh weights from torch's global generator."""
    model: AnyModel = MODELS[kind_of(settings, MODELS)].build(settings)
    return model


@overload
def build_codec(settings: ImageCodecSettings) -> ImageViTCodec:
    """The σ-VAE of images."""


@overload
def build_codec(settings: SpeechCodecSettings) -> SpeechConvCodec:
    """The σ-VAE of speech."""


@overload
def build_codec(settings: VectorQuantizedSettings) -> VectorQuantizedCodec:
    """The VQ codec."""


@overload
def build_codec(settings: CodecSettings) -> AnyCodec:
    """A codec of any kind."""


def build_codec(settings: CodecSettings) -> AnyCodec:
    """The codec of these settings, with fresh weights from torch's global generator."""
    codec: AnyCodec = CODECS[kind_of(settings, CODECS)].build(settings)
    return codec


def parameter_count(settings: ModelSettings) -> int:
    """Trainable parameters of the model alone, counted on the meta device without memory."""
    with torch.device("meta"):
        model = build_model(settings)
    return sum(parameter.numel() for parameter in model.parameters())


def kind_of(settings: object, entries: Mapping[str, Entry[Any, Any]]) -> str:
    """The name under which a catalogue lists these settings; ValueError when it does not."""
    for kind, entry in entries.items():
        if type(settings) is entry.settings:
            return kind
    raise ValueError(
        f"settings {type(settings).__name__} are of none of the kinds {', '.join(entries)};"
        " list their class in latentlm/catalogue.py"
    )
