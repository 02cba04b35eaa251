"""The codec's loss terms against their formulas, and who gets a gradient from whom."""

import pytest
import torch
from torch import Tensor, nn

from latentlm.codec.contract import LatentPosterior
from latentlm.codec.critics import PatchCritic
from latentlm.codec.objectives import (
    CodecLoss,
    adaptive_weight,
    critic_loss,
    perceptual_distance,
    pixel_error,
)
from latentlm.codec.vector_quantized import VQTerms
from latentlm.settings import HalfNormalVariance

VARIANCE = HalfNormalVariance()


class RandomMaps(nn.Module):
    """A frozen random net: the perceptual term takes any."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.gain = gain
        self.first = torch.randn(8, 3, 3, 3, generator=generator)
        self.second = torch.randn(16, 8, 3, 3, generator=generator)

    def maps(self, images_BCYX: Tensor) -> list[Tensor]:
        x = torch.conv2d(images_BCYX - 0.5, self.first, stride=2).relu()
        return [x * self.gain, torch.conv2d(x, self.second, stride=2) * self.gain]


class WeighedMaps(RandomMaps):
    """The same net, with channel weights as LPIPS has them."""

    @property
    def channel_weights(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(1)
        return [2 * torch.rand(width, generator=generator) for width in (8, 16)]


def batch() -> tuple[Tensor, Tensor, LatentPosterior]:
    generator = torch.Generator().manual_seed(0)
    signal = torch.rand(4, 3, 32, 32, generator=generator) * 2 - 1
    reconstruction = torch.rand(4, 3, 32, 32, generator=generator) * 2 - 1
    return signal, reconstruction, LatentPosterior(torch.randn(4, 16, 5, generator=generator))


def test_a_codebooks_terms_have_weight_one_whatever_beta_is() -> None:
    signal, reconstruction, posterior = batch()
    terms = VQTerms(torch.tensor(0.75), torch.tensor(0.5), torch.tensor(1.0))
    for beta in (0.0, 3.0):
        loss = CodecLoss(variance=None, beta=beta)
        found = loss.terms(signal, reconstruction, posterior=terms, step=0)
        assert float(found.total) == pytest.approx(float(found.pixel) + 0.75)
        assert float(found.regulariser) == 0.75
    with pytest.raises(ValueError, match="without a variance law"):
        CodecLoss(variance=None, beta=0.0).terms(
            signal, reconstruction, posterior=posterior, step=0
        )


def test_pixel_errors_are_means_over_all_elements() -> None:
    signal, reconstruction, _ = batch()
    difference = (reconstruction - signal).double()
    squared = pixel_error(reconstruction, signal, kind="l2")
    absolute = pixel_error(reconstruction, signal, kind="l1")
    assert float(squared) == pytest.approx(float((difference**2).sum()) / difference.numel())
    assert float(absolute) == pytest.approx(float(difference.abs().sum()) / difference.numel())


def test_beta_of_equation_6_in_sums() -> None:
    """The documented exchange: sums with β' are C·Y·X times this loss with β' N Z / (C Y X)."""
    signal, reconstruction, posterior = batch()
    beta_of_sums, pixels, latents = 0.37, 3 * 32 * 32, 16 * 5
    loss = CodecLoss(variance=VARIANCE, beta=beta_of_sums * latents / pixels)
    total = loss.terms(signal, reconstruction, posterior=posterior, step=0).total
    sums_B = (reconstruction - signal).square().sum((1, 2, 3))
    sums_B = sums_B + beta_of_sums * posterior.mean_BNZ.square().sum((1, 2))
    assert float(total) * pixels == pytest.approx(float(sums_B.mean()), rel=1e-5)


def test_equal_shards_average_to_the_batch() -> None:
    signal, reconstruction, posterior = batch()
    loss = CodecLoss(variance=VARIANCE, beta=0.1, perceptual_weight=0.5, features=RandomMaps())
    whole = loss.terms(signal, reconstruction, posterior=posterior, step=0).total
    shards = [
        loss.terms(
            signal[part],
            reconstruction[part],
            posterior=LatentPosterior(posterior.mean_BNZ[part]),
            step=0,
        ).total
        for part in (slice(0, 2), slice(2, 4))
    ]
    assert torch.allclose(torch.stack(shards).mean(), whole)


def test_perceptual_distance_compares_directions_of_channels() -> None:
    signal, reconstruction, _ = batch()
    assert float(perceptual_distance(signal, signal, features=RandomMaps())) == 0.0
    reconstruction.requires_grad_()
    found = perceptual_distance(reconstruction, signal, features=RandomMaps())
    louder = perceptual_distance(reconstruction, signal, features=RandomMaps(gain=50.0))
    cosine = [
        nn.functional.cosine_similarity(a, b, dim=1).mean()
        for a, b in zip(
            RandomMaps().maps(reconstruction / 2 + 0.5),
            RandomMaps().maps(signal / 2 + 0.5),
            strict=True,
        )
    ]
    expected = 2 - 2 * torch.stack(cosine).mean()
    assert float(found) == pytest.approx(float(expected), abs=2e-2)  # dead positions count 0
    assert float(louder) == pytest.approx(float(found), rel=1e-3)
    found.backward()
    assert reconstruction.grad is not None
    assert bool(reconstruction.grad.any())


def test_perceptual_distance_with_channel_weights_is_lpips() -> None:
    """Unit channels, squared differences, a 1x1 convolution, positions averaged, depths summed."""
    signal, reconstruction, _ = batch()
    net = WeighedMaps()
    expected = torch.zeros(len(signal))
    pairs = zip(net.maps(reconstruction / 2 + 0.5), net.maps(signal / 2 + 0.5), strict=True)
    for (a, b), weight in zip(pairs, net.channel_weights, strict=True):
        a, b = (x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in (a, b))
        expected += torch.conv2d((a - b) ** 2, weight[None, :, None, None]).mean((1, 2, 3))
    found = perceptual_distance(reconstruction, signal, features=net)
    assert float(found) == pytest.approx(float(expected.mean()), rel=1e-4)
    unweighed = perceptual_distance(reconstruction, signal, features=RandomMaps())
    assert float(unweighed) != pytest.approx(float(found), rel=0.1)


def test_adaptive_weight_makes_the_two_gradients_equal() -> None:
    weight = nn.Parameter(torch.randn(6, 4))
    x = torch.randn(9, 4)
    likelihood, adversarial = (x @ weight.T).square().mean(), 0.01 * (x @ weight.T).sum()
    scale = adaptive_weight(likelihood, adversarial, last_weight=weight)
    (scale * adversarial).backward(retain_graph=True)
    assert weight.grad is not None
    scaled = weight.grad.norm()
    (wanted,) = torch.autograd.grad(likelihood, weight)
    assert float(scaled) == pytest.approx(float(wanted.norm()), rel=1e-2)
    assert not scale.requires_grad
    assert float(adaptive_weight(1e9 * likelihood_of(weight), adversarial, last_weight=weight)) == (
        pytest.approx(1e4)
    )


def likelihood_of(weight: Tensor) -> Tensor:
    return weight.square().sum()


def test_the_critic_joins_at_its_step_and_is_weighed() -> None:
    signal, _, posterior = batch()
    critic = PatchCritic(3, width=8, generator=torch.Generator().manual_seed(0))
    last_weight = nn.Parameter(torch.eye(3) * 0.5)
    reconstruction = torch.einsum("dc,bcyx->bdyx", last_weight, signal)
    loss = CodecLoss(variance=VARIANCE, beta=0.1, adversarial_weight=0.5, adversarial_start_step=10)
    early = loss.terms(signal, reconstruction, posterior=posterior, step=9)
    assert float(early.adversarial) == 0.0
    assert float(early.total) == pytest.approx(float(early.pixel + 0.1 * early.regulariser))
    late = loss.terms(
        signal, reconstruction, posterior=posterior, step=10, critic=critic, last_weight=last_weight
    )
    expected = late.pixel + 0.1 * late.regulariser + 0.5 * late.adaptive_weight * late.adversarial
    assert float(late.total) == pytest.approx(float(expected))
    assert float(late.adversarial) == pytest.approx(-float(critic(reconstruction).mean()))
    assert float(late.adaptive_weight) > 0
    late.total.backward()
    assert last_weight.grad is not None
    with pytest.raises(ValueError, match="needs critic="):
        loss.terms(signal, reconstruction, posterior=posterior, step=10)


def test_hinge_loss_of_the_critic() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((1, 2, 3))

    signal = torch.full((1, 1, 2, 2), 0.25)
    reconstruction = torch.full((1, 1, 2, 2), -0.5, requires_grad=True)
    found = critic_loss(Mean(), signal=signal, reconstruction=reconstruction)
    assert float(found) == pytest.approx(0.5 * (1 - 0.25) + 0.5 * (1 - 0.5))
    assert not found.requires_grad  # x̂ is detached and this critic has no weights
    saturated = critic_loss(Mean(), signal=signal + 5, reconstruction=reconstruction - 5)
    assert float(saturated) == 0.0


def test_a_perceptual_weight_without_a_net_is_refused() -> None:
    with pytest.raises(ValueError, match="no feature net"):
        CodecLoss(variance=VARIANCE, beta=0.1, perceptual_weight=1.0)
