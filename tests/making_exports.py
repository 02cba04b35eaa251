"""Small exports with random weights: pictures by class of every model, text, speech."""

import base64
import json
from pathlib import Path

import torch

from latentlm.codec.image_vit import ImageViTCodec
from latentlm.codec.speech_conv import SpeechConvCodec
from latentlm.codec.vector_quantized import VectorQuantizedCodec
from latentlm.load import save_export
from latentlm.models import CodeLM, DiT, LatentLM
from latentlm.settings import (
    CodeLMSettings,
    DiTSettings,
    HalfNormalVariance,
    HeadSettings,
    ImageCodecSettings,
    LatentLMSettings,
    SpeechCodecSettings,
    TransformerSettings,
    VectorQuantizedSettings,
)
from latentlm.vocabulary import Vocabulary

SIDE = TransformerSettings(width=8, depth=1, heads=2)
IMAGES = ImageCodecSettings(
    image_size=8,
    channels=1,
    patch_size=4,
    latent_width=4,
    encoder=SIDE,
    decoder=SIDE,
    variance=HalfNormalVariance(c_sigma=0.1),
)
SPEECH = SpeechCodecSettings(
    sample_rate_hz=8000,
    channels=4,
    strides=(2, 4),
    depths=(1, 1, 1),
    latent_width=4,
    variance=HalfNormalVariance(c_sigma=0.1),
)


def make_ranks(folder: Path) -> Path:
    """A vocabulary of the 256 bytes."""
    path = folder / "bytes.tiktoken"
    lines = (f"{base64.b64encode(bytes([i])).decode()} {i}" for i in range(256))
    path.write_text("\n".join(lines))
    return path


def make_dit() -> DiT:
    """A DiT of three classes whose zero-initialised weights are not zero."""
    model = DiT(
        DiTSettings(
            classes=3, latent_count=4, latent_width=4, width=16, depth=2, heads=2, ffn_width=24
        )
    )
    for name, parameter in model.named_parameters():
        if "modulation" in name or name == "output.weight":
            torch.nn.init.normal_(parameter, std=0.2)
    return model


CODES = VectorQuantizedSettings(
    image_size=8,
    channels=1,
    codebook_size=13,
    code_width=4,
    latent_width=8,
    width=8,
    width_factors=(1, 1, 2),
    blocks=1,
)


def make_code_export(export: Path) -> Path:
    """An export of a model of three classes whose images are 4 codes of 13."""
    torch.manual_seed(0)
    settings = CodeLMSettings(
        classes=3, codes=13, latent_count=4, width=16, depth=2, heads=2, ffn_width=24
    )
    model, codec = CodeLM(settings), VectorQuantizedCodec(CODES)
    save_export(export, model=model, codec=codec, metadata={"key": "codes"})
    return export


def make_export(folder: Path, kind: str, *, class_names: tuple[str, ...] = ()) -> Path:
    """An export of `kind` classes, dit, codes, text or speech; nothing in it is zero."""
    if kind == "codes":
        return make_code_export(folder / kind)
    torch.manual_seed(0)
    codec = SpeechConvCodec(SPEECH) if kind == "speech" else ImageViTCodec(IMAGES)
    with torch.no_grad():  # weights at which signals and latents differ visibly
        for parameter in codec.parameters():
            parameter.mul_(8.0 if parameter.ndim > 1 else 1.0)
    codec.set_statistics(mean=0.25, std=2.0)
    if kind == "dit":
        save_export(folder / kind, model=make_dit(), codec=codec, metadata={"key": kind})
        return folder / kind
    words = kind != "classes"
    settings = LatentLMSettings(
        classes=None if words else 3,
        vocabulary=261 if words else None,
        latent_count=None if kind == "speech" else 4,
        stop="continue" if kind == "speech" else "count",
        latent_width=4,
        width=16,
        depth=2,
        heads=2,
        ffn_width=24,
        head=HeadSettings(depth=1, ffn_width=24),
    )
    model = LatentLM(settings)
    for weight in (model.head.modulation.weight, model.head.output.weight):
        torch.nn.init.normal_(weight, std=0.2)
    vocabulary = Vocabulary(make_ranks(folder), size=261) if words else None
    export = folder / kind
    metadata = {"key": kind} | ({"class_names": json.dumps(class_names)} if class_names else {})
    save_export(export, model=model, codec=codec, metadata=metadata, vocabulary=vocabulary)
    return export
