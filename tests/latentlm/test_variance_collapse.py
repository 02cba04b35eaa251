"""The variance report against drawn latents, and the two collapses told apart."""

import math
from typing import Any

import pytest
import torch

from latentlm.codec.contract import LatentPosterior
from latentlm.codec.sigma import LatentMoments, draw
from latentlm.metrics.variance_collapse import ChannelVariance, channel_variance
from latentlm.randomness import RowNoise
from latentlm.settings import DiagonalGaussianVariance, FixedVariance, HalfNormalVariance

ROWS, N, Z = 3000, 4, 6
LAWS: list[Any] = [HalfNormalVariance(c_sigma=0.25), FixedVariance(sigma=0.5)]
LAWS.append(DiagonalGaussianVariance())


def posterior(*, mean_scale: float = 1.0, std_scale: float = 1.0) -> LatentPosterior:
    generator = torch.Generator().manual_seed(0)
    scale_Z = torch.linspace(0.5, 3.0, Z) * mean_scale
    mean_BNZ = torch.randn(ROWS, N, Z, generator=generator) * scale_Z
    std_BNZ = torch.rand(ROWS, N, Z, generator=generator) * torch.linspace(0.2, 2.0, Z) * std_scale
    return LatentPosterior(mean_BNZ, std_BNZ)


def report(given: LatentPosterior, variance: Any) -> ChannelVariance:
    moments = LatentMoments.of_width(Z)
    std_BNZ = given.std_BNZ if isinstance(variance, DiagonalGaussianVariance) else None
    moments.add(given.mean_BNZ, std_BNZ)
    return channel_variance(moments, variance=variance)


@pytest.mark.parametrize("variance", LAWS, ids=lambda law: law.kind)
def test_noise_is_what_drawing_adds_to_the_mean(variance: Any) -> None:
    given = posterior()
    noise = RowNoise(seed=1, ids_B=torch.arange(ROWS))
    added_BNZ = draw(given, variance=variance, noise=noise) - given.mean_BNZ
    found = report(given, variance)
    measured_Z = added_BNZ.double().square().mean((0, 1)).sqrt()
    assert torch.allclose(found.noise_std_Z, measured_Z, rtol=0.06)
    total = float((measured_Z.square().sum()).sqrt())
    assert found.metrics()["posterior_noise_std_total"] == pytest.approx(total, rel=0.05)
    power = float(added_BNZ.var((0, 1)).sum() / (given.mean_BNZ + added_BNZ).var((0, 1)).sum())
    assert found.metrics()["noise_share"] == pytest.approx(power, rel=0.06)


def test_the_noise_of_a_sigma_vae_is_its_law_and_of_a_gaussian_the_rms() -> None:
    given = posterior()
    for law in LAWS[:2]:  # √C_σ = σ = 0.5, whatever the encoder says
        assert report(given, law).noise_std_Z.tolist() == pytest.approx([0.5] * Z)
    rms_Z = torch.linspace(0.2, 2.0, Z) / math.sqrt(3)  # of a uniform deviation
    found = report(given, DiagonalGaussianVariance()).noise_std_Z
    assert torch.allclose(found, rms_Z.double(), rtol=0.03)


def test_a_small_predicted_deviation_is_variance_collapse() -> None:
    given = posterior()
    assert given.std_BNZ is not None
    given.std_BNZ[..., 2] *= 1e-3
    found = report(given, DiagonalGaussianVariance())
    assert found.variance_collapsed_Z.tolist() == [z == 2 for z in range(Z)]
    assert found.metrics()["variance_collapsed_channels"] == 1
    assert found.metrics()["posterior_collapsed_channels"] == 0


def test_a_mean_that_says_nothing_is_posterior_collapse() -> None:
    given = posterior()
    given.mean_BNZ[..., 4] = 2.5
    for law in LAWS:
        found = report(given, law)
        assert found.posterior_collapsed_Z.tolist() == [z == 4 for z in range(Z)]
        assert not found.variance_collapsed_Z.any()
        assert all(math.isfinite(value) for value in found.metrics().values())


def test_a_sigma_vae_collapses_as_well_when_it_scales_its_means_up() -> None:
    law = FixedVariance(sigma=0.5)
    assert not report(posterior(), law).variance_collapsed_Z.any()
    assert report(posterior(mean_scale=20.0), law).variance_collapsed_Z.all()


@pytest.mark.parametrize(
    ("ratio", "variance_collapsed", "posterior_collapsed"),
    [(0.09, True, False), (0.11, False, False), (9.0, False, False), (11.0, False, True)],
)
def test_the_criteria_are_a_tenth_and_ten(
    ratio: float, variance_collapsed: bool, posterior_collapsed: bool
) -> None:
    mean_BNZ = torch.tensor([-1.0, 1.0]).view(2, 1, 1).expand(2, N, Z)
    found = report(LatentPosterior(mean_BNZ), FixedVariance(sigma=ratio))
    assert found.variance_collapsed_Z.tolist() == [variance_collapsed] * Z
    assert found.posterior_collapsed_Z.tolist() == [posterior_collapsed] * Z


def test_the_unit_of_latents_does_not_matter() -> None:
    law = DiagonalGaussianVariance()
    one, other = report(posterior(), law), report(posterior(mean_scale=7, std_scale=7), law)
    assert torch.allclose(one.ratio_Z, other.ratio_Z)
    assert one.metrics()["noise_share"] == pytest.approx(other.metrics()["noise_share"])


def test_rows_and_metrics_say_the_same() -> None:
    found = report(posterior(), DiagonalGaussianVariance())
    rows, metrics = found.rows(), found.metrics()
    assert [row["channel"] for row in rows] == list(range(Z))
    ratios = [row["posterior_noise_std"] / row["mu_std"] for row in rows]
    assert [row["noise_to_signal"] for row in rows] == pytest.approx(ratios)
    assert metrics["noise_to_signal_min"] == pytest.approx(min(ratios))
    assert metrics["noise_to_signal_max"] == pytest.approx(max(ratios))
    noises = [row["posterior_noise_std"] for row in rows]
    assert metrics["posterior_noise_std_mean"] == pytest.approx(sum(noises) / Z)
