"""The variance laws against their closed forms, and streamed moments against the whole corpus."""

import math

import pytest
import torch
from scipy import stats
from torch.distributions import Normal, kl_divergence

from latentlm.codec.contract import LatentPosterior
from latentlm.codec.sigma import LatentMoments, draw, regulariser
from latentlm.randomness import RowNoise
from latentlm.settings import DiagonalGaussianVariance, FixedVariance, HalfNormalVariance

ROWS, N, Z = 4000, 16, 16


def row_noise(rows: int = ROWS, seed: int = 0) -> RowNoise:
    return RowNoise(seed=seed, ids_B=torch.arange(rows))


def zero_posterior(rows: int = ROWS) -> LatentPosterior:
    return LatentPosterior(torch.zeros(rows, N, Z))


def test_half_normal_is_one_scalar_per_example_with_variance_c_sigma() -> None:
    c_sigma = 0.3
    z_BNZ = draw(zero_posterior(), variance=HalfNormalVariance(c_sigma=c_sigma), noise=row_noise())
    size_B = z_BNZ.square().mean((1, 2)).sqrt()  # |σ_b| up to the spread of 256 normals, 4 %
    mean_size = math.sqrt(2 * c_sigma / math.pi)
    error = math.sqrt((c_sigma - mean_size**2) / ROWS)
    assert float(size_B.mean()) == pytest.approx(mean_size, abs=4 * error)
    fourth_moment_error = c_sigma * math.sqrt(2 / ROWS)
    assert float(z_BNZ.square().mean()) == pytest.approx(c_sigma, abs=4 * fourth_moment_error)
    assert stats.kstest(size_B.numpy(), stats.halfnorm(scale=c_sigma**0.5).cdf).pvalue > 1e-3
    within_BNZ = z_BNZ / size_B[:, None, None]
    assert stats.kstest(within_BNZ[:200].flatten().numpy(), stats.norm.cdf).pvalue > 1e-3


def test_official_std_is_c_sigma_of_std_over_point_eight() -> None:
    std = 0.75
    variance = HalfNormalVariance(c_sigma=(std / 0.8) ** 2)
    z_BNZ = draw(zero_posterior(), variance=variance, noise=row_noise(seed=1))
    size_B = z_BNZ.square().mean((1, 2)).sqrt()
    assert float(size_B.mean()) == pytest.approx(0.9973 * std, rel=0.05)
    assert float(size_B.square().mean().sqrt()) == pytest.approx(1.25 * std, rel=0.05)


def test_fixed_sigma_is_the_same_in_every_example() -> None:
    z_BNZ = draw(zero_posterior(), variance=FixedVariance(sigma=0.7), noise=row_noise())
    size_B = z_BNZ.square().mean((1, 2)).sqrt()
    assert float(size_B.mean()) == pytest.approx(0.7, rel=0.01)
    assert float(size_B.std()) < 0.7 * 1.2 / math.sqrt(2 * N * Z)
    posterior = LatentPosterior(torch.randn(3, N, Z))
    still = draw(posterior, variance=FixedVariance(sigma=0.0), noise=row_noise(3))
    assert torch.equal(still, posterior.mean_BNZ)


def test_diagonal_gaussian_uses_the_predicted_deviation_of_each_element() -> None:
    mean_NZ, std_NZ = torch.randn(N, Z), torch.rand(N, Z) + 0.1
    posterior = LatentPosterior(mean_NZ.expand(ROWS, N, Z), std_NZ.expand(ROWS, N, Z))
    z_BNZ = draw(posterior, variance=DiagonalGaussianVariance(), noise=row_noise())
    assert float(((z_BNZ.mean(0) - mean_NZ) / std_NZ).abs().max()) < 5 / math.sqrt(ROWS)
    assert float((z_BNZ.std(0) / std_NZ - 1).abs().max()) < 5 / math.sqrt(2 * ROWS)


def test_a_row_draws_alone_what_it_draws_in_a_batch() -> None:
    mean_BNZ = torch.randn(5, N, Z)
    ids_B = torch.tensor([9, 4, 7, 1, 3])
    variance = HalfNormalVariance()
    batch = draw(LatentPosterior(mean_BNZ), variance=variance, noise=RowNoise(seed=2, ids_B=ids_B))
    alone = draw(
        LatentPosterior(mean_BNZ[2:3]), variance=variance, noise=RowNoise(seed=2, ids_B=ids_B[2:3])
    )
    assert torch.equal(batch[2:3], alone)
    assert not torch.equal(batch[1] - mean_BNZ[1], batch[2] - mean_BNZ[2])


def test_regulariser_is_the_mean_square_or_the_true_kl() -> None:
    posterior = LatentPosterior(torch.randn(3, N, Z) * 2, torch.rand(3, N, Z) + 0.05)
    for sigma_law in (HalfNormalVariance(), FixedVariance()):
        found = regulariser(posterior, variance=sigma_law)
        assert torch.allclose(found, (posterior.mean_BNZ**2).sum() / (3 * N * Z))
    assert posterior.std_BNZ is not None
    expected = kl_divergence(Normal(posterior.mean_BNZ, posterior.std_BNZ), Normal(0.0, 1.0))
    found = regulariser(posterior, variance=DiagonalGaussianVariance())
    assert torch.allclose(found, expected.mean(), rtol=1e-5)


def test_diagonal_gaussian_without_deviations_is_refused() -> None:
    with pytest.raises(ValueError, match="no std_BNZ"):
        draw(zero_posterior(2), variance=DiagonalGaussianVariance(), noise=row_noise(2))
    with pytest.raises(ValueError, match="no std_BNZ"):
        regulariser(zero_posterior(2), variance=DiagonalGaussianVariance())


def corpus() -> tuple[torch.Tensor, torch.Tensor]:
    scale_Z = torch.linspace(0.1, 3.0, Z)
    return torch.randn(600, N, Z) * scale_Z + 2.5, torch.rand(600, N, Z)


def test_merged_moments_are_the_moments_of_the_whole() -> None:
    mean_BNZ, std_BNZ = corpus()
    workers = [LatentMoments.of_width(Z) for _ in range(3)]
    for number, (mean_part, std_part) in enumerate(
        zip(mean_BNZ.split(70), std_BNZ.split(70), strict=True)
    ):
        workers[number % 3].add(mean_part, std_part)
    merged = LatentMoments.of_width(Z)
    for worker in workers:
        merged.merge(worker)
    exact_BNZ = mean_BNZ.double()
    assert merged.count == 600 * N
    assert merged.latent_mean() == pytest.approx(float(exact_BNZ.mean()), rel=1e-12)
    assert torch.allclose(
        merged.mean_std_Z(), exact_BNZ.std((0, 1), correction=0), rtol=1e-10, atol=0
    )
    only_mean = merged.latent_std(FixedVariance(sigma=0.0))
    assert only_mean == pytest.approx(float(exact_BNZ.std(correction=0)), rel=1e-10)


@pytest.mark.parametrize(
    "variance",
    [HalfNormalVariance(c_sigma=2.0), FixedVariance(sigma=1.5), DiagonalGaussianVariance()],
)
def test_statistics_are_those_of_drawn_latents(
    variance: HalfNormalVariance | FixedVariance | DiagonalGaussianVariance,
) -> None:
    mean_BNZ, std_BNZ = corpus()
    moments = LatentMoments.of_width(Z)
    moments.add(mean_BNZ, std_BNZ if isinstance(variance, DiagonalGaussianVariance) else None)
    posterior = LatentPosterior(mean_BNZ, std_BNZ)
    drawn = torch.stack(
        [draw(posterior, variance=variance, noise=row_noise(600, seed)) for seed in range(6)]
    )
    assert moments.latent_std(variance) == pytest.approx(float(drawn.std()), rel=0.03)
    assert torch.allclose(
        moments.channel_std_Z(variance), drawn.std((0, 1, 2)).double(), rtol=0.06, atol=0
    )


def test_a_channel_that_says_nothing_is_collapsed() -> None:
    mean_BNZ, _ = corpus()
    mean_BNZ[..., 5] = 4.0
    moments = LatentMoments.of_width(Z)
    moments.add(mean_BNZ)
    assert moments.collapsed_channels(0.05) == [5]


def test_moments_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no latents were counted"):
        LatentMoments.of_width(Z).latent_mean()
