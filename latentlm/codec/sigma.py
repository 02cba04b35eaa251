"""The variance laws of a codec, its regulariser (Eq. 5–6), and the statistics of its latents.

In: posteriors of the encoder. Out: latents z = μ + σ ⊙ ε. In the σ-VAE σ is one scalar per example
that the encoder cannot shrink, so no channel's variance can collapse; the diagonal Gaussian is the
usual VAE it is compared with.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from latentlm.codec.contract import LatentPosterior
from latentlm.randomness import Draw, RowNoise
from latentlm.settings import FixedVariance, HalfNormalVariance, VarianceSettings


def draw(posterior: LatentPosterior, *, variance: VarianceSettings, noise: RowNoise) -> Tensor:
    """Latents z_BNZ = μ + σ ⊙ ε, ε ~ N(0, 1) (Eq. 5); row b depends on noise row b alone.

    half_normal: σ ~ N(0, C_σ) per example, signed; its sign has no effect in law because ε is
    symmetric. fixed: the same σ everywhere. diagonal_gaussian: the encoder's σ per element.
    """
    mean_BNZ = posterior.mean_BNZ
    epsilon_BNZ = noise.normal(Draw.CODEC_NOISE, *mean_BNZ.shape[1:])
    if isinstance(variance, HalfNormalVariance):
        sigma_B = variance.c_sigma**0.5 * noise.normal(Draw.CODEC_SIGMA)
        return mean_BNZ + sigma_B[:, None, None] * epsilon_BNZ
    if isinstance(variance, FixedVariance):
        return mean_BNZ + variance.sigma * epsilon_BNZ
    return mean_BNZ + _predicted_std(posterior) * epsilon_BNZ


def regulariser(posterior: LatentPosterior, *, variance: VarianceSettings) -> Tensor:
    """What β multiplies: a scalar, the mean over examples, positions and channels.

    σ-VAE: mean of μ², the ‖μ‖² of Eq. 6 divided by N·Z. Diagonal Gaussian: the KL divergence to
    N(0, 1), ½ (μ² + σ² - 1 - ln σ²), divided by N·Z as well, so its μ² has half the weight.
    """
    mean_BNZ = posterior.mean_BNZ.float()
    if isinstance(variance, HalfNormalVariance | FixedVariance):
        return mean_BNZ.square().mean()
    std_BNZ = _predicted_std(posterior).float()
    return 0.5 * (mean_BNZ.square() + std_BNZ.square() - 1 - 2 * std_BNZ.log()).mean()


def _predicted_std(posterior: LatentPosterior) -> Tensor:
    if posterior.std_BNZ is None:
        raise ValueError(
            "the posterior has no std_BNZ, but codec.variance is diagonal_gaussian;"
            " encode with a codec that was built with that variance"
        )
    return posterior.std_BNZ


@dataclass(kw_only=True)
class LatentMoments:
    """Moments of μ (and of σ² where the encoder predicts it), in fp64, collected as a stream.

    The sums of many workers merge to the sums of one; three vectors of length Z travel.
    """

    count: int
    sum_Z: Tensor
    square_sum_Z: Tensor
    variance_sum_Z: Tensor

    @classmethod
    def of_width(cls, latent_width: int) -> Self:
        """No latents seen yet, Z = `latent_width`."""
        empty = torch.zeros(3, latent_width, dtype=torch.float64)
        return cls(count=0, sum_Z=empty[0], square_sum_Z=empty[1], variance_sum_Z=empty[2])

    def add(self, mean_BNZ: Tensor, std_BNZ: Tensor | None = None) -> None:
        """Count the posteriors of a batch."""
        mean_MZ = mean_BNZ.detach().flatten(0, -2).cpu().double()
        self.count += len(mean_MZ)
        self.sum_Z = self.sum_Z + mean_MZ.sum(0)
        self.square_sum_Z = self.square_sum_Z + mean_MZ.square().sum(0)
        if std_BNZ is not None:
            variance_MZ = std_BNZ.detach().flatten(0, -2).cpu().double().square()
            self.variance_sum_Z = self.variance_sum_Z + variance_MZ.sum(0)

    def merge(self, other: "LatentMoments") -> None:
        """Count what another worker has counted."""
        self.count += other.count
        self.sum_Z = self.sum_Z + other.sum_Z
        self.square_sum_Z = self.square_sum_Z + other.square_sum_Z
        self.variance_sum_Z = self.variance_sum_Z + other.variance_sum_Z

    def latent_mean(self) -> float:
        """Mean over all latents and channels, of z and of μ alike."""
        return float(self.sum_Z.mean() / self._seen())

    def latent_std(self, variance: VarianceSettings) -> float:
        """Deviation of z, not of μ, over all latents and channels: √(var μ + E σ²)."""
        second_Z = self.square_sum_Z / self._seen() + self._noise_variance_Z(variance)
        return float((second_Z.mean() - self.latent_mean() ** 2).clamp(min=0).sqrt())

    def mean_std_Z(self) -> Tensor:
        """Deviation of μ in each channel: how much the channel says about the signal."""
        mean_Z = self.sum_Z / self._seen()
        return (self.square_sum_Z / self.count - mean_Z.square()).clamp(min=0).sqrt()

    def channel_std_Z(self, variance: VarianceSettings) -> Tensor:
        """Deviation of z in each channel, noise included."""
        return (self.mean_std_Z().square() + self._noise_variance_Z(variance)).sqrt()

    def noise_std_Z(self, variance: VarianceSettings) -> Tensor:
        """√E σ² in each channel: the law's own, √C_σ in the σ-VAE, or the RMS of predicted σ."""
        return self._noise_variance_Z(variance).sqrt()

    def collapsed_channels(self, threshold: float) -> list[int]:
        """Channels whose μ deviates by less than `threshold` over the corpus: they say nothing.

        That is posterior collapse; variance collapse is metrics/variance_collapse.py's.
        """
        return torch.nonzero(self.mean_std_Z() < threshold).flatten().tolist()

    def _noise_variance_Z(self, variance: VarianceSettings) -> Tensor:
        """E σ² in each channel: the law's own, or the mean of what the encoder predicted."""
        if isinstance(variance, HalfNormalVariance):
            return torch.full_like(self.sum_Z, variance.c_sigma)
        if isinstance(variance, FixedVariance):
            return torch.full_like(self.sum_Z, variance.sigma**2)
        return self.variance_sum_Z / self._seen()

    def _seen(self) -> int:
        if not self.count:
            raise ValueError("no latents were counted; call add() with at least one batch first")
        return self.count
