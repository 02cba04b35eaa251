"""The laws of training times: each draw alone, and the draws of one latent together."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from latentlm.diffusion.timesteps import draw_times
from latentlm.randomness import Draw, RowNoise
from latentlm.settings import DiffusionSettings

DDPM = DiffusionSettings()
FLOW = DiffusionSettings(process="flow", prediction="velocity")
LOGIT_NORMAL = dataclasses.replace(FLOW, timestep_law="logit_normal")
DRAWS = ("independent", "stratified", "antithetic")
LAST = 1 - 2.0**-24  # the largest uniform number
ROWS = 20_000


def uniforms(count: int) -> torch.Tensor:
    return RowNoise(seed=1, ids_B=torch.arange(ROWS)).uniform(Draw.TIMESTEP, count)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("count", [1, 4, 5])
def test_every_draw_keeps_the_law_and_so_does_each_of_its_columns(draw: Any, count: int) -> None:
    settings = dataclasses.replace(DDPM, timestep_draw=draw)
    times = draw_times(uniforms(count), settings=settings)
    assert times.dtype == torch.int64
    assert times.shape == (ROWS, count)
    cells = torch.bincount(times.flatten() // 50, minlength=20)
    expected = ROWS * count / 20
    assert (cells - expected).abs().max() < 5 * math.sqrt(expected)
    if draw == "antithetic":  # stratified draws have their own column's part each
        for column in times.unbind(1):
            assert abs(column.double().mean() - 499.5) < 5 * 288.7 / math.sqrt(ROWS)


def test_ddpm_times_are_equally_likely_to_the_grid_of_the_uniforms() -> None:
    grid = torch.arange(2**24, dtype=torch.float32) * 2.0**-24
    cells = torch.bincount(draw_times(grid, settings=dataclasses.replace(DDPM, timesteps=1000)))
    assert cells.shape == (1000,)
    assert cells.min() >= 2**24 // 1000
    assert cells.max() <= 2**24 // 1000 + 1


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_stratified_draws_one_time_in_each_part(count: int) -> None:
    settings = dataclasses.replace(FLOW, timestep_draw="stratified")
    extremes = torch.tensor([[0.0], [LAST]]).expand(2, count)
    for u in (uniforms(count), extremes):
        parts = draw_times(u, settings=settings).double() / 1000 * count
        whole = torch.arange(count).expand_as(parts)
        # fp32 may round the last number of a part onto the next part's first
        assert ((parts >= whole - 1e-6) & (parts <= whole + 1 + 1e-6)).all()
    steps = draw_times(extremes, settings=dataclasses.replace(settings, process="ddpm"))
    assert steps.max() == 999


@pytest.mark.parametrize("count", [2, 4, 5])
def test_antithetic_draws_mirror_each_other(count: int) -> None:
    settings = dataclasses.replace(FLOW, timestep_draw="antithetic")
    times = draw_times(uniforms(count), settings=settings)
    half = count // 2
    mirrored = times[:, (count + 1) // 2 :]
    torch.testing.assert_close(times[:, :half] + mirrored, torch.full_like(mirrored, 1000.0))
    assert len(times[:, : (count + 1) // 2].unique()) > 0.99 * ROWS
    steps = dataclasses.replace(DDPM, timestep_draw="antithetic")
    pair = draw_times(torch.tensor([[0.0, 0.0], [LAST, LAST]]), settings=steps)
    assert pair.tolist() == [[0, 999], [999, 0]]


def test_spread_draws_have_the_smaller_variance() -> None:
    def variance_of_mean(draw: Any) -> float:
        settings = dataclasses.replace(FLOW, timestep_draw=draw)
        return float(draw_times(uniforms(4), settings=settings).mean(dim=1).var())

    independent = variance_of_mean("independent")
    assert independent == pytest.approx(1e6 / 12 / 4, rel=0.05)
    assert variance_of_mean("stratified") == pytest.approx(independent / 16, rel=0.05)
    assert variance_of_mean("antithetic") < 1e-3 * independent  # the mean is linear in the draws


def test_flow_times_are_uniform_or_logit_normal() -> None:
    u = uniforms(4)
    flat = draw_times(u, settings=FLOW)
    assert flat.dtype == torch.float32
    torch.testing.assert_close(flat, 1000 * u, rtol=0, atol=1e-3)
    times = draw_times(u, settings=LOGIT_NORMAL)
    z = torch.logit(times.double() / 1000)
    assert abs(z.mean()) < 5 / math.sqrt(z.numel())
    assert abs(z.var() - 1) < 5 * math.sqrt(2 / z.numel())
    # a known quantile: Φ(1) = 0.841345 of the times lie below T · sigmoid(1)
    below = (times < 1000 / (1 + math.exp(-1))).double().mean()
    assert abs(below - 0.841345) < 5 * math.sqrt(0.1335 / z.numel())


@pytest.mark.parametrize("settings", [DDPM, FLOW, LOGIT_NORMAL])
@pytest.mark.parametrize("draw", DRAWS)
def test_the_ends_of_the_uniforms_stay_within_the_process(
    settings: DiffusionSettings, draw: Any
) -> None:
    ends = torch.tensor([[0.0, 0.0, LAST], [LAST, LAST, 0.0]])
    times = draw_times(ends, settings=dataclasses.replace(settings, timestep_draw=draw))
    assert times.min() >= 0
    assert times.max() <= (999 if settings.process == "ddpm" else 1000)
    assert times.isfinite().all()


def test_uniforms_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match=r"uniforms are torch.float64; draw_times needs"):
        draw_times(torch.rand(3, dtype=torch.float64), settings=DDPM)
