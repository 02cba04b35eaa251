"""The codec's loss (Eq. 6 and "following LDM/VQGAN", App. B): named terms and their sum.

In: signals, reconstructions in [-1, 1], posteriors. Out: scalars, each a mean over the examples, so
equal shards of a batch average to the batch. Every term is also a mean over an example's elements:
Eq. 6 in sums, ‖x̂ - x‖² + β' ‖μ‖², is this loss times C·Y·X with β = β' · N·Z / (C·Y·X).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentlm.codec.contract import LatentPosterior
from latentlm.codec.sigma import regulariser
from latentlm.codec.vector_quantized import VQTerms
from latentlm.settings import VarianceSettings

UNIT_EPS = 1e-10
GRADIENT_EPS = 1e-4
LARGEST_ADAPTIVE_WEIGHT = 1e4


class FeatureMaps(Protocol):
    """A frozen net that compares images by what it sees in them."""

    def maps(self, images_BCYX: Tensor) -> Sequence[Tensor]:
        """Feature maps (B, F, Y', X') at several depths, of images in [0, 1]."""


@runtime_checkable
class WeighedFeatureMaps(FeatureMaps, Protocol):
    """A net that says how much each channel counts, as LPIPS learned it."""

    @property
    def channel_weights(self) -> Sequence[Tensor]:
        """F weights for each of the maps."""


class CodecTerms(NamedTuple):
    """Scalars to log. `total` is what is minimised; the others are unweighted parts of it."""

    total: Tensor
    pixel: Tensor
    regulariser: Tensor
    perceptual: Tensor
    adversarial: Tensor
    adaptive_weight: Tensor


@dataclass(frozen=True, kw_only=True)
class CodecLoss:
    """pixel + β · regulariser + perceptual + adversarial (from its start step on).

    A quantizing codec has no `variance`; its codebook's terms are the regulariser, of weight 1.
    `pixel`: l2 is the mean of (x̂ - x)², l1 of |x̂ - x|, both over pixels in [-1, 1].
    """

    variance: VarianceSettings | None
    pixel: Literal["l2", "l1"] = "l2"
    beta: float
    perceptual_weight: float = 0.0
    features: FeatureMaps | None = None
    adversarial_weight: float = 0.0
    adversarial_start_step: int = 0

    def __post_init__(self) -> None:
        if self.perceptual_weight > 0 and self.features is None:
            raise ValueError(
                f"perceptual_weight is {self.perceptual_weight}, but there is no feature net;"
                " pass features=feature_net(name, size=…) or set the weight to 0"
            )

    def adversarial_at(self, step: int) -> bool:
        """Whether the critic takes part in this step."""
        return self.adversarial_weight > 0 and step >= self.adversarial_start_step

    def terms(
        self,
        signal: Tensor,
        reconstruction: Tensor,
        *,
        posterior: LatentPosterior | VQTerms,
        step: int,
        critic: nn.Module | None = None,
        last_weight: Tensor | None = None,
    ) -> CodecTerms:
        """The terms of a batch.

        `critic` and `last_weight` (the codec's last layer) are needed where `adversarial_at(step)`.
        """
        none = signal.new_zeros(())
        pixel = pixel_error(reconstruction, signal, kind=self.pixel)
        prior, prior_weight = self._regulariser(posterior)
        perceptual = adversarial = adaptive = none
        if self.perceptual_weight > 0 and self.features is not None:
            perceptual = perceptual_distance(reconstruction, signal, features=self.features)
        likelihood = pixel + self.perceptual_weight * perceptual
        if self.adversarial_at(step):
            if critic is None or last_weight is None:
                raise ValueError("an adversarial step needs critic= and last_weight=")
            adversarial = -critic(reconstruction).mean()
            adaptive = adaptive_weight(likelihood, adversarial, last_weight=last_weight)
        total = likelihood + prior_weight * prior
        total = total + self.adversarial_weight * adaptive * adversarial
        return CodecTerms(total, pixel, prior, perceptual, adversarial, adaptive)

    def _regulariser(self, posterior: LatentPosterior | VQTerms) -> tuple[Tensor, float]:
        """(the term, its weight)."""
        if isinstance(posterior, VQTerms):
            return posterior.total, 1.0
        if self.variance is None:
            raise ValueError("a posterior came without a variance law; pass CodecLoss(variance=…)")
        return regulariser(posterior, variance=self.variance), self.beta


def pixel_error(reconstruction: Tensor, signal: Tensor, *, kind: Literal["l2", "l1"]) -> Tensor:
    """Mean squared (l2) or absolute (l1) difference over all elements, in fp32."""
    difference = reconstruction.float() - signal.float()
    return difference.square().mean() if kind == "l2" else difference.abs().mean()


def perceptual_distance(reconstruction: Tensor, signal: Tensor, *, features: FeatureMaps) -> Tensor:
    """Squared distance of channel-normalised feature maps; signals in [-1, 1].

    A net with `channel_weights` gives LPIPS (Zhang et al. 2018): squared differences are weighed by
    channel, averaged over positions and summed over depths. Without, all channels count alike and
    the depths are averaged.
    """
    with torch.no_grad():
        wanted = features.maps(signal * 0.5 + 0.5)
    seen = features.maps(reconstruction * 0.5 + 0.5)
    squares = [
        (_unit_channels(a) - _unit_channels(b)).square() for a, b in zip(seen, wanted, strict=True)
    ]
    if not isinstance(features, WeighedFeatureMaps):
        return torch.stack([square_BFYX.sum(1).mean() for square_BFYX in squares]).mean()
    pairs = zip(squares, features.channel_weights, strict=True)
    distances = [torch.einsum("bfyx,f->byx", square, weight).mean() for square, weight in pairs]
    return torch.stack(distances).sum()


def adaptive_weight(likelihood: Tensor, adversarial: Tensor, *, last_weight: Tensor) -> Tensor:
    """‖∇ likelihood‖ / ‖∇ adversarial‖ at the last layer, at most 10⁴ (VQGAN, latent diffusion)."""
    (wanted,) = torch.autograd.grad(likelihood, last_weight, retain_graph=True)
    (found,) = torch.autograd.grad(adversarial, last_weight, retain_graph=True)
    ratio = wanted.norm() / (found.norm() + GRADIENT_EPS)
    return ratio.clamp(0.0, LARGEST_ADAPTIVE_WEIGHT).detach()


def critic_loss(critic: nn.Module, *, signal: Tensor, reconstruction: Tensor) -> Tensor:
    """Hinge loss of the critic: ½ E[max(0, 1 - D(x))] + ½ E[max(0, 1 + D(x̂))]; x̂ is detached."""
    real, rebuilt = critic(signal), critic(reconstruction.detach())
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + rebuilt).mean())


def _unit_channels(map_BFYX: Tensor) -> Tensor:
    squares_B1YX = map_BFYX.float().square().sum(1, keepdim=True)
    return map_BFYX.float() * (squares_B1YX + UNIT_EPS).rsqrt()
