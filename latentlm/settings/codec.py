"""Settings of the codecs (§2.3): σ-VAEs of images and of speech, and the VQ codec (§3.2)."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

from latentlm.settings.rules import STRICT, Problem, divides, positive


@dataclass(frozen=True, kw_only=True)
class HalfNormalVariance:
    """σ ~ N(0, C_σ), one scalar per example, shared by positions and channels (Eq. 5).

    `c_sigma` is a variance: RMS σ = √C_σ and E|σ| = √(2 C_σ / π). The official code's `std` s
    is C_σ = (s / 0.8)².
    """

    __pydantic_config__ = STRICT
    kind: Literal["half_normal"] = "half_normal"
    c_sigma: float = 0.25

    def problems(self) -> Iterator[Problem]:
        yield from positive(self, "c_sigma")


@dataclass(frozen=True, kw_only=True)
class FixedVariance:
    """The same σ for every example (the sweep of Figure 6). σ = 0 is a plain autoencoder."""

    __pydantic_config__ = STRICT
    kind: Literal["fixed"] = "fixed"
    sigma: float = 0.5

    def problems(self) -> Iterator[Problem]:
        if self.sigma < 0:
            yield "sigma", f"{self.sigma} is negative; give a standard deviation of 0 or more"


@dataclass(frozen=True, kw_only=True)
class DiagonalGaussianVariance:
    """σ predicted per position and channel: the usual VAE, trained with the true KL."""

    __pydantic_config__ = STRICT
    kind: Literal["diagonal_gaussian"] = "diagonal_gaussian"

    def problems(self) -> Iterator[Problem]:
        return iter(())


VarianceSettings = HalfNormalVariance | FixedVariance | DiagonalGaussianVariance


@dataclass(frozen=True, kw_only=True)
class TransformerSettings:
    """Width, depth and heads of one side of the codec."""

    __pydantic_config__ = STRICT
    width: int
    depth: int
    heads: int
    ffn_ratio: float = 4.0

    def problems(self) -> Iterator[Problem]:
        yield from positive(self, "width", "depth", "heads", "ffn_ratio")
        yield from divides("heads", self.heads, "width", self.width)


@dataclass(frozen=True, kw_only=True)
class ImageCodecSettings:
    """An image codec: `image_size`² pixels of `channels` become (image_size / patch_size)² latents.

    `image_size` and `channels` come from the corpus section of an experiment.
    """

    __pydantic_config__ = STRICT
    kind: Literal["image_vit"] = "image_vit"
    image_size: int
    channels: int
    patch_size: int
    latent_width: int
    encoder: TransformerSettings
    decoder: TransformerSettings
    variance: VarianceSettings

    @property
    def latents_per_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def latent_count(self) -> int:
        """Latents per image."""
        return self.latents_per_side**2

    @property
    def posterior_width(self) -> int:
        """Numbers in the mean of one latent."""
        return self.latent_width

    @property
    def predicts_std(self) -> bool:
        """Whether posteriors have deviations of their own."""
        return self.variance.kind == "diagonal_gaussian"

    def problems(self) -> Iterator[Problem]:
        yield from positive(self, "patch_size", "latent_width")
        yield from divides("patch_size", self.patch_size, "corpus.image_size", self.image_size)
        for side in ("encoder", "decoder", "variance"):
            for path, sentence in getattr(self, side).problems():
                yield f"{side}.{path}", sentence


@dataclass(frozen=True, kw_only=True)
class SpeechCodecSettings:
    """A speech codec (§3.3): causal ConvNeXt, one latent for every ∏ strides samples.

    Stage i has `depths[i]` blocks of `channels` · 2^i channels; `strides` stand between stages, so
    there is one depth more than strides. The decoder mirrors the encoder. The paper's strides:
    2-4-5-5-8 (1600x, 15 Hz at 24 kHz), 4-4-5-5-8 (3200x), 4-5-5-8-8 (6400x).
    """

    __pydantic_config__ = STRICT
    kind: Literal["speech_conv"] = "speech_conv"
    sample_rate_hz: int = 24_000
    channels: int = 32
    strides: tuple[int, ...] = (2, 4, 5, 5, 8)
    depths: tuple[int, ...] = (3, 3, 3, 3, 3, 12)
    kernel: int = 7
    latent_width: int
    variance: VarianceSettings

    @property
    def hop(self) -> int:
        """Audio samples for each latent."""
        return prod(self.strides)

    def problems(self) -> Iterator[Problem]:
        yield from positive(self, "sample_rate_hz", "channels", "kernel", "latent_width")
        if len(self.depths) != len(self.strides) + 1:
            yield (
                "depths",
                f"{len(self.depths)} depths do not fit {len(self.strides)} strides;"
                f" give {len(self.strides) + 1}, one for each stage",
            )
        for name in ("strides", "depths"):
            if any(number < 1 for number in getattr(self, name)):
                yield name, f"{list(getattr(self, name))} has a number below 1"
        for path, sentence in self.variance.problems():
            yield f"variance.{path}", sentence


@dataclass(frozen=True, kw_only=True)
class VectorQuantizedSettings:
    """The image codec of VQ-MLLM (§3.2): a convolutional autoencoder with a codebook.

    LlamaGen's VQ-16: `codebook_size` 16384 codes of width 8, compared after normalisation to
    length 1; `width` 128 channels times `width_factors`, one halving between two factors.
    """

    __pydantic_config__ = STRICT
    kind: Literal["vector_quantized"] = "vector_quantized"
    image_size: int
    channels: int = 3
    codebook_size: int = 16_384
    code_width: int = 8
    latent_width: int = 256
    width: int = 128
    width_factors: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2

    @property
    def patch_size(self) -> int:
        """Pixels a side of what one code stands for."""
        return int(2 ** (len(self.width_factors) - 1))

    @property
    def latent_count(self) -> int:
        """Codes per image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def posterior_width(self) -> int:
        """A latent is one number, the id of its code."""
        return 1

    @property
    def predicts_std(self) -> bool:
        """Ids are certain."""
        return False

    def problems(self) -> Iterator[Problem]:
        yield from positive(self, "codebook_size", "code_width", "latent_width", "width", "blocks")
        if not self.width_factors or any(factor < 1 for factor in self.width_factors):
            yield "width_factors", "give one or more factors of at least 1"
        else:
            yield from divides("patch_size", self.patch_size, "image_size", self.image_size)


CodecSettings = ImageCodecSettings | SpeechCodecSettings | VectorQuantizedSettings
