"""Settings of the image σ-VAE (§2.3): vision Transformers on both sides and a variance law."""

from collections.abc import Iterator
from dataclasses import dataclass
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

    def problems(self) -> Iterator[Problem]:
        yield from positive(self, "patch_size", "latent_width")
        yield from divides("patch_size", self.patch_size, "corpus.image_size", self.image_size)
        for side in ("encoder", "decoder", "variance"):
            for path, sentence in getattr(self, side).problems():
                yield f"{side}.{path}", sentence
