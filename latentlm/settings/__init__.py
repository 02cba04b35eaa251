"""Settings of every codec, model and sampler: frozen stdlib dataclasses, the lowest layer.

They are what a YAML says and what a checkpoint stores. Nothing here imports torch, so that
`latentlm validate` answers in a second. Each class may offer `problems()`, which yields
`(relative dotted path, sentence)` for every rule between its fields that is broken.
"""

from latentlm.settings.codec import (
    CodecSettings,
    DiagonalGaussianVariance,
    FixedVariance,
    HalfNormalVariance,
    ImageCodecSettings,
    SpeechCodecSettings,
    TransformerSettings,
    VarianceSettings,
    VectorQuantizedSettings,
)
from latentlm.settings.diffusion import (
    DiffusionSettings,
    SamplerSettings,
    Solver,
    TextSamplerSettings,
)
from latentlm.settings.model import (
    CodeLMSettings,
    DiTSettings,
    HeadSettings,
    LatentLMSettings,
    ModelSettings,
)

__all__ = [
    "CodeLMSettings",
    "CodecSettings",
    "DiTSettings",
    "DiagonalGaussianVariance",
    "DiffusionSettings",
    "FixedVariance",
    "HalfNormalVariance",
    "HeadSettings",
    "ImageCodecSettings",
    "LatentLMSettings",
    "ModelSettings",
    "SamplerSettings",
    "Solver",
    "SpeechCodecSettings",
    "TextSamplerSettings",
    "TransformerSettings",
    "VarianceSettings",
    "VectorQuantizedSettings",
]
