"""Solvers against diffusers and against the one distribution whose flow is known exactly."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler

from latentlm.diffusion.process import DiffusionProcess
from latentlm.diffusion.samplers import (
    SOLVERS,
    ddim,
    ddpm,
    dpm_solver_pp_2m,
    guided,
    guided_rows,
    sample_x,
    solver_timesteps,
)
from latentlm.settings import DiffusionSettings

COSINE_V = DiffusionProcess(DiffusionSettings())
MEAN, STD = 0.7, 0.4


def network(x: torch.Tensor, timestep: int) -> torch.Tensor:
    """Some smooth function of both arguments, of the size of a v-prediction."""
    return torch.sin(1.3 * x + timestep / 300) + 0.3 * x.roll(1, -1)


def run_diffusers(order: int, *, steps: int, noise: torch.Tensor) -> torch.Tensor:
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", solver_order=order
    )
    scheduler.set_timesteps(steps)
    x = noise
    for timestep in scheduler.timesteps:
        x = scheduler.step(network(x, int(timestep)), timestep, x).prev_sample
    return x


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 20, 50])
@pytest.mark.parametrize(("solver", "order"), [(dpm_solver_pp_2m, 2), (ddim, 1)])
def test_dpm_solver_and_ddim_agree_with_diffusers(solver: Any, order: int, steps: int) -> None:
    torch.manual_seed(steps)
    noise = torch.randn(4, 16)
    table = solver(COSINE_V, steps=steps)
    found = sample_x(lambda x, i: network(x, table[i].timestep), noise, steps=table)
    expected = run_diffusers(order, steps=steps, noise=noise)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("schedule", "steps"), [("linear", 7), ("cosine", 7), ("cosine", 1000)])
def test_ddpm_agrees_with_diffusers(schedule: str, steps: int) -> None:
    process = DiffusionProcess(DiffusionSettings(schedule=schedule))
    table = ddpm(process, steps=steps)
    scheduler = DDPMScheduler(
        beta_schedule={"cosine": "squaredcos_cap_v2", "linear": "linear"}[schedule],
        prediction_type="v_prediction",
        clip_sample=False,
    )
    # its fp32 table drifts by 1e-3 over 1,000 steps; test_process.py compares the tables
    scheduler.alphas_cumprod = torch.from_numpy(process.alphas**2)
    scheduler.set_timesteps(timesteps=[step.timestep for step in table])
    noise = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    x = noise.double()
    for timestep in scheduler.timesteps:
        v = network(x, int(timestep))
        x = scheduler.step(v, timestep, x, generator=generator).prev_sample
    generator = torch.Generator().manual_seed(1)
    found = sample_x(
        lambda x, i: network(x, table[i].timestep),
        noise,
        steps=table,
        fresh=lambda _: torch.randn(2, 8, generator=generator, dtype=torch.float64).float(),
    )
    torch.testing.assert_close(found.double(), x, rtol=0, atol=3e-5)


def exact_gaussian(process: DiffusionProcess, *, solver: str, steps: int) -> torch.Tensor:
    """Samples with the ideal network for data N(MEAN, STD²), from noise x_T of that process."""
    table = SOLVERS[solver](process, steps=steps)  # type: ignore[index]
    alphas, sigmas = process.alphas, process.sigmas

    def denoise(x: torch.Tensor, index: int) -> torch.Tensor:
        alpha, sigma = alphas[table[index].timestep], sigmas[table[index].timestep]
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        x0 = MEAN + gain * (x - alpha * MEAN)
        epsilon = (x - alpha * x0) / sigma
        match process.settings.prediction:
            case "v":
                return alpha * epsilon - sigma * x0
            case "epsilon":
                return epsilon
        return x0

    noise = torch.randn(400, 50, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(6)
    return sample_x(
        denoise,
        noise,
        steps=table,
        fresh=lambda _: torch.randn(400, 50, generator=generator),
    )


def exact_end(process: DiffusionProcess) -> torch.Tensor:
    """Where the probability flow of N(MEAN, STD²) takes the noise of `exact_gaussian`."""
    noise = torch.randn(400, 50, generator=torch.Generator().manual_seed(5))
    alpha, sigma = process.alphas[-1], process.sigmas[-1]
    return MEAN + STD * (noise - alpha * MEAN) / math.hypot(alpha * STD, sigma)


@pytest.mark.parametrize("prediction", ["v", "x0", "epsilon"])
def test_solvers_reach_the_exact_flow_and_the_second_order_one_sooner(prediction: str) -> None:
    process = DiffusionProcess(DiffusionSettings(schedule="linear", prediction=prediction))
    end = exact_end(process)
    errors = {
        (solver, steps): float(
            (exact_gaussian(process, solver=solver, steps=steps) - end).abs().mean()
        )
        for solver in ("dpm_solver_pp_2m", "ddim")
        for steps in (25, 100)
    }
    assert errors["dpm_solver_pp_2m", 100] < 0.005
    assert errors["ddim", 100] < 0.03
    assert errors["dpm_solver_pp_2m", 100] < errors["ddim", 100] / 3
    assert errors["ddim", 100] < errors["ddim", 25] / 2.5


def test_ancestral_samples_have_the_distribution_of_the_data() -> None:
    samples = exact_gaussian(COSINE_V, solver="ddpm", steps=500)
    assert abs(samples.mean() - MEAN) < 4 * STD / 20000**0.5
    assert abs(samples.std() / STD - 1) < 0.02


def test_timesteps_are_those_of_the_paper_code() -> None:
    assert solver_timesteps(1000, steps=5) == [999, 799, 599, 400, 200]
    assert solver_timesteps(1000, steps=3) == [999, 666, 333]
    assert solver_timesteps(1000, steps=20)[:11:10] == [999, 500]
    for steps in (1, 2, 501, 997, 999, 1000):
        found = solver_timesteps(1000, steps=steps)
        assert len(set(found)) == steps
        assert found == sorted(found, reverse=True)
    with pytest.raises(ValueError, match=r"sampler.steps is 1001; the process has 1000"):
        solver_timesteps(1000, steps=1001)


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_every_table_ends_at_the_data_without_noise(solver: str) -> None:
    for steps in (1, 2, 7, 1000):
        table = SOLVERS[solver](COSINE_V, steps=steps)  # type: ignore[index]
        last = table[-1]
        assert (last.keep, last.previous, last.fresh) == (0, 0, 0)
        assert last.current == pytest.approx(1, abs=1e-12)
        assert np.isfinite(np.array(table)).all()


def test_guidance_has_a_scale_for_each_row() -> None:
    scales = torch.tensor([1.0, 3.0, 0.0, 1.5])
    rows = guided_rows(scales)
    assert rows.tolist() == [1, 2, 3]
    streams: list[torch.Tensor] = []

    def denoise(x: torch.Tensor, index: int) -> torch.Tensor:
        streams.append(x)
        return torch.cat((network(x[:4], index), network(x[4:], index + 500)))

    x = torch.randn(4, 8)
    found = guided(denoise, scales_B=scales, rows=rows)(x, 2)
    conditional, null = network(x, 2), network(x, 502)
    assert torch.equal(found[0], conditional[0])
    torch.testing.assert_close(found, null + scales[:, None] * (conditional - null))
    assert torch.equal(streams[0][4:], x[1:])


def test_a_noisy_solver_asks_for_noise() -> None:
    with pytest.raises(ValueError, match="give sample_x `fresh`"):
        sample_x(network, torch.randn(1, 2), steps=ddpm(COSINE_V, steps=4))
