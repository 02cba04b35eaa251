"""The exposure-bias meter: teacher forcing against generation, closed forms for the gap."""

import dataclasses

import pytest
import torch

from latentlm.generate import sample_latents
from latentlm.head_sampler import HeadSampler
from latentlm.metrics.exposure_bias import (
    EXPOSURE,
    MODEL_ERROR,
    ExposureMoments,
    teacher_forced_latents,
)
from latentlm.metrics.frechet import frechet_distance
from latentlm.models import LatentLM
from latentlm.randomness import RowNoise
from latentlm.settings import HeadSettings, LatentLMSettings, SamplerSettings

N, Z = 6, 4
SETTINGS = LatentLMSettings(
    classes=3,
    latent_count=N,
    latent_width=Z,
    width=16,
    depth=2,
    heads=4,
    kv_heads=2,
    ffn_width=32,
    head=HeadSettings(depth=2, ffn_width=24),
)
SAMPLER = SamplerSettings(steps=4)


def make_model(*, prefix_gain: float = 1.0) -> LatentLM:
    """Random weights; prefix_gain 0 makes every latent independent of those before it."""
    torch.manual_seed(0)
    model = LatentLM(SETTINGS)
    for weight in (model.head.modulation.weight, model.head.output.weight):
        torch.nn.init.normal_(weight, std=0.3)
    with torch.no_grad():
        model.latent_projection.weight.mul_(prefix_gain)
    return model.eval()


def labels(rows: int) -> torch.Tensor:
    return torch.arange(rows) % 3


def keyed(rows: int, seed: int = 4) -> RowNoise:
    return RowNoise(seed=seed, ids_B=torch.arange(rows))


def forced(
    model: LatentLM,
    prefix_BNZ: torch.Tensor,
    *,
    scales: torch.Tensor | None = None,
    sampler: SamplerSettings = SAMPLER,
    seed: int = 4,
) -> torch.Tensor:
    rows = len(prefix_BNZ)
    return teacher_forced_latents(
        model,
        prefix_BNZ,
        labels(rows),
        cfg_scales_B=torch.ones(rows) if scales is None else scales,
        head=HeadSampler(model, sampler, compiled=False),
        noise=keyed(rows, seed),
    )


def free(
    model: LatentLM,
    rows: int,
    *,
    scales: torch.Tensor | None = None,
    sampler: SamplerSettings = SAMPLER,
    seed: int = 4,
) -> torch.Tensor:
    return sample_latents(
        model,
        labels(rows),
        cfg_scales_B=torch.ones(rows) if scales is None else scales,
        sampler=sampler,
        noise=keyed(rows, seed),
    )


def moments_of(
    real_BNZ: torch.Tensor, forced_BNZ: torch.Tensor, free_BNZ: torch.Tensor
) -> ExposureMoments:
    moments = ExposureMoments.of_shape(*real_BNZ.shape[1:])
    moments.add(
        ids_B=torch.arange(len(real_BNZ)),
        real_BNZ=real_BNZ,
        teacher_forced_BNZ=forced_BNZ,
        free_running_BNZ=free_BNZ,
    )
    return moments


@pytest.mark.parametrize(
    "sampler",
    [
        SAMPLER,
        dataclasses.replace(SAMPLER, guidance_schedule="rising"),
        dataclasses.replace(SAMPLER, guidance_interval=(0.2, 0.7), temperature=0.8),
        dataclasses.replace(SAMPLER, solver="ddpm", steps=6),
    ],
    ids=["plain", "rising", "interval", "ddpm"],
)
def test_forced_by_its_own_generation_a_model_draws_that_generation_again(
    sampler: SamplerSettings,
) -> None:
    model, scales = make_model(prefix_gain=3.0), torch.tensor([1.0, 2.0, 1.0, 3.0, 0.5])
    generated = free(model, 5, scales=scales, sampler=sampler)
    again = forced(model, generated, scales=scales, sampler=sampler)
    assert torch.allclose(again, generated, atol=2e-5)
    other = forced(model, torch.randn(5, N, Z), scales=scales, sampler=sampler)
    assert torch.allclose(other[:, 0], generated[:, 0], atol=2e-5)  # the label is all it has seen
    assert float((other[:, 1:] - generated[:, 1:]).abs().amax((0, 2)).min()) > 0.02


def test_batched_is_single() -> None:
    model, prefix_BNZ = make_model(prefix_gain=3.0), torch.randn(5, N, Z)
    scales = torch.tensor([1.0, 2.0, 1.0, 3.0, 0.5])
    batch = forced(model, prefix_BNZ, scales=scales)
    for row in range(5):
        alone = teacher_forced_latents(
            model,
            prefix_BNZ[row : row + 1],
            labels(5)[row : row + 1],
            cfg_scales_B=scales[row : row + 1],
            head=HeadSampler(model, SAMPLER, compiled=False),
            noise=keyed(5).rows(slice(row, row + 1)),
        )
        assert torch.allclose(alone[0], batch[row], atol=1e-5)


def test_a_model_that_ignores_its_prefix_has_no_exposure_bias() -> None:
    rows, model = 400, make_model(prefix_gain=0.0)
    real_BNZ = torch.randn(rows, N, Z)
    assert torch.allclose(forced(model, real_BNZ), free(model, rows), atol=2e-5)
    excesses, floors = [], []
    for seed in range(10, 20):
        drawn = forced(model, real_BNZ, seed=seed), free(model, rows, seed=-seed)
        found = moments_of(real_BNZ, *drawn).metrics()
        floors.append(found["exposure_bias_floor"])
        excesses.append(found["exposure_bias"] - floors[-1])
    assert abs(torch.tensor(excesses).mean()) < 0.4 * torch.tensor(floors).mean()
    assert min(floors) > 0


def test_perturbed_prefixes_show_as_a_gap_that_grows() -> None:
    rows, model = 400, make_model(prefix_gain=3.0)
    real_BNZ = torch.randn(rows, N, Z)
    drift_BNZ = real_BNZ + 0.5 * torch.arange(N)[:, None]  # as if every draw were 0.5 too high
    found = moments_of(real_BNZ, forced(model, real_BNZ), forced(model, drift_BNZ, seed=5))
    gap_N, floor_N = found.gap_N(*EXPOSURE), found.floor_N(*EXPOSURE)
    assert float(gap_N[0]) < 2 * float(floor_N.mean())
    assert float(gap_N[-1]) > 2 * float(gap_N[2]) > 4 * float(floor_N.mean())
    scalars = found.metrics()
    assert scalars["exposure_bias_last"] > scalars["exposure_bias"]


def test_a_biased_random_walk_has_the_gap_of_its_closed_form() -> None:
    """zₙ = zₙ₋₁ + δ + ε over a real walk without δ: the free-running mean runs n δ ahead."""
    rows, steps, bias = 20_000, 8, 0.3
    generator = torch.Generator().manual_seed(0)
    epsilon = torch.randn(3, rows, steps, Z, generator=generator)
    real = epsilon[0].cumsum(1)
    before = torch.cat((torch.zeros(rows, 1, Z), real[:, :-1]), dim=1)
    found = moments_of(real, before + bias + epsilon[1], (epsilon[2] + bias).cumsum(1))
    expected_N = (bias * torch.arange(steps).double()).square()
    error_N = 12 * torch.arange(1, steps + 1) / rows + 0.05 * expected_N
    assert ((found.gap_N(*EXPOSURE) - expected_N).abs() < error_N).all()
    model_error_N = found.gap_N(*MODEL_ERROR)
    assert torch.allclose(model_error_N, torch.full_like(model_error_N, bias**2), rtol=0.1)
    last = found.metrics()["exposure_bias_last"]
    assert last == pytest.approx(float(expected_N[-2:].mean()), rel=0.05)


def test_the_gap_of_one_channel_is_the_frechet_distance() -> None:
    real, forced_, free_ = (torch.randn(60, 3, 1) * scale + scale for scale in (1.0, 1.5, 2.5))
    gap_N = moments_of(real, forced_, free_).gap_N(*EXPOSURE)
    for n in range(3):
        expected = frechet_distance(forced_[:, n], free_[:, n])
        assert float(gap_N[n]) == pytest.approx(expected, rel=1e-9)


def test_the_floor_is_the_gap_between_equal_laws() -> None:
    gaps, floors = [], []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        draws = torch.randn(3, 100, N, Z, generator=generator)
        found = moments_of(*draws).metrics()
        gaps.append(found["exposure_bias"])
        floors.append(found["exposure_bias_floor"])
    mean_gap, mean_floor = sum(gaps) / 20, sum(floors) / 20
    assert mean_gap == pytest.approx(3 / 100, rel=0.1)  # 2 σ² / n of means, σ² / n of deviations
    assert mean_floor == pytest.approx(mean_gap, rel=0.1)


def test_merged_moments_are_those_of_the_whole() -> None:
    parts = [torch.randn(50, N, Z) + 1 for _ in range(3)]
    whole = moments_of(*parts)
    merged = ExposureMoments.of_shape(N, Z)
    for ids_B in torch.randperm(50).split(7):
        worker = ExposureMoments.of_shape(N, Z)
        real, forced_, free_ = (part[ids_B] for part in parts)
        worker.add(ids_B=ids_B, real_BNZ=real, teacher_forced_BNZ=forced_, free_running_BNZ=free_)
        merged.merge(worker)
    assert merged.metrics() == pytest.approx(whole.metrics(), rel=1e-9)
    for row, expected in zip(merged.rows(), whole.rows(), strict=True):
        assert row == pytest.approx(expected, rel=1e-9)


def test_rows_hold_mean_and_deviation_of_each_kind() -> None:
    parts = [torch.randn(50, N, Z) * (k + 1) + k for k in range(3)]
    row = moments_of(*parts).rows()[2]
    assert row["position"] == 2
    for kind, part in zip(("real", "teacher_forced", "free_running"), parts, strict=True):
        assert row[f"{kind}_mean"] == pytest.approx(float(part[:, 2].mean()), rel=1e-5)
        expected = float(part[:, 2].var(0).mean().sqrt())
        assert row[f"{kind}_std"] == pytest.approx(expected, rel=1e-5)


def test_too_few_images_and_models_of_text_are_refused() -> None:
    few = [torch.randn(12, N, Z) for _ in range(3)]
    with pytest.raises(ValueError, match=r"12 images .* smallest of 8 groups 1; .* 16 at least"):
        moments_of(*few).metrics()
    model = make_model()
    model.settings = dataclasses.replace(model.settings, vocabulary=300, classes=None)
    with pytest.raises(ValueError, match="has a vocabulary"):
        forced(model, torch.randn(2, N, Z))
