"""Settings of every codec, model and sampler: frozen stdlib dataclasses, the lowest layer.

They are what a YAML says and what a checkpoint stores. Nothing here imports torch, so that
`latentlm validate` answers in a second. Each class may offer `problems()`, which yields
`(relative dotted path, sentence)` for every rule between its fields that is broken.
"""

from latentlm.settings.codec import (
    DiagonalGaussianVariance,
    FixedVariance,
    HalfNormalVariance,
    ImageCodecSettings,
    TransformerSettings,
    VarianceSettings,
)
from latentlm.settings.diffusion import DiffusionSettings, SamplerSettings
from latentlm.settings.model import HeadSettings, LatentLMSettings

__all__ = [
    "DiagonalGaussianVariance",
    "DiffusionSettings",
    "FixedVariance",
    "HalfNormalVariance",
    "HeadSettings",
    "ImageCodecSettings",
    "LatentLMSettings",
    "SamplerSettings",
    "TransformerSettings",
    "VarianceSettings",
]
