"""Where a name in a YAML or in an export becomes a class: literal dictionaries, nothing else."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import nn

from latentlm.codec.image_vit import ImageViTCodec
from latentlm.models.latent_lm import LatentLM
from latentlm.settings import ImageCodecSettings, LatentLMSettings

Settings = TypeVar("Settings")
Module = TypeVar("Module", bound=nn.Module)


class Entry(NamedTuple, Generic[Settings, Module]):
    """The settings class of a kind and the module that is built from such settings."""

    settings: type[Settings]
    build: Callable[[Settings], Module]


MODELS: dict[str, Entry[LatentLMSettings, LatentLM]] = {
    "latent_lm": Entry(LatentLMSettings, LatentLM)
}
CODECS: dict[str, Entry[ImageCodecSettings, ImageViTCodec]] = {
    "image_vit": Entry(ImageCodecSettings, ImageViTCodec)
}


def build_model(settings: LatentLMSettings) -> LatentLM:
    """The model of these settings, with fresh weights from torch's global generator."""
    return MODELS[kind_of(settings, MODELS)].build(settings)


def build_codec(settings: ImageCodecSettings) -> ImageViTCodec:
    """The codec of these settings, with fresh weights from torch's global generator."""
    return CODECS[kind_of(settings, CODECS)].build(settings)


def parameter_count(settings: LatentLMSettings) -> int:
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
