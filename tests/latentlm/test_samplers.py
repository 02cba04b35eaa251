"""Solvers against diffusers, textbook integration and the one flow that is known exactly."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler

from latentlm.diffusion.process import DiffusionProcess
from latentlm.diffusion.samplers import (
    SOLVERS,
    SolverStep,
    ddim,
    ddpm,
    dpm_solver_pp_2m,
    heun,
    sample_x,
    solver_table,
    solver_times,
)
from latentlm.settings import DiffusionSettings, SamplerSettings

COSINE_V = DiffusionProcess(DiffusionSettings())
LINEAR_V = DiffusionProcess(DiffusionSettings(schedule="linear"))
FLOW = DiffusionProcess(DiffusionSettings(process="flow", prediction="velocity"))
PROCESSES = {"cosine": COSINE_V, "linear": LINEAR_V, "flow": FLOW}
STEPS = [1, 2, 3, 5, 10, 20, 50]
MEAN, STD = 0.7, 0.4


def network(x: torch.Tensor, time: float) -> torch.Tensor:
    """Some smooth function of both arguments, of the size of a v-prediction."""
    return torch.sin(1.3 * x + time / 300) + 0.3 * x.roll(1, -1)


def run_diffusers(kind: str, *, order: int, steps: int, noise: torch.Tensor) -> torch.Tensor:
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="flow_prediction" if kind == "flow" else "v_prediction",
        use_flow_sigmas=kind == "flow",
        flow_shift=1.0,
        solver_order=order,
    )
    scheduler.set_timesteps(steps)
    x = noise
    for sigma, timestep in zip(scheduler.sigmas, scheduler.timesteps, strict=False):
        # diffusers cuts the times of a flow to integers, which would cost its network precision
        time = 1000 * float(sigma) if kind == "flow" else int(timestep)
        assert abs(time - int(timestep)) < 1.001
        x = scheduler.step(network(x, time), timestep, x).prev_sample
    return x


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", ["cosine", "flow"])
@pytest.mark.parametrize(("solver", "order"), [(dpm_solver_pp_2m, 2), (ddim, 1)])
def test_dpm_solver_and_ddim_agree_with_diffusers(
    solver: Any, order: int, kind: str, steps: int
) -> None:
    noise = torch.randn(4, 16, generator=torch.Generator().manual_seed(steps))
    table = solver(PROCESSES[kind], steps=steps)
    found = sample_x(lambda x, i: network(x, table[i].time), noise, steps=table)
    expected = run_diffusers(kind, order=order, steps=steps, noise=noise)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [*STEPS, 1000])
def test_ddpm_agrees_with_diffusers(schedule: str, steps: int) -> None:
    process = PROCESSES[schedule]
    table = ddpm(process, steps=steps)
    scheduler = DDPMScheduler(
        beta_schedule={"cosine": "squaredcos_cap_v2", "linear": "linear"}[schedule],
        prediction_type="v_prediction",
        clip_sample=False,
    )
    # its fp32 table drifts by 1e-3 over 1,000 steps; test_process.py compares the tables
    scheduler.alphas_cumprod = torch.from_numpy(process.alphas**2)
    scheduler.set_timesteps(timesteps=[step.time for step in table])
    noise = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    x = noise.double()
    for timestep in scheduler.timesteps:
        v = network(x, int(timestep))
        x = scheduler.step(v, timestep, x, generator=generator).prev_sample
    generator = torch.Generator().manual_seed(1)
    found = sample_x(
        lambda x, i: network(x, table[i].time),
        noise,
        steps=table,
        fresh=lambda _: torch.randn(2, 8, generator=generator, dtype=torch.float64).float(),
    )
    atol = 1e-5 if steps <= 50 else 3e-5  # what fp32 adds up to over 1,000 steps
    torch.testing.assert_close(found.double(), x, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", list(PROCESSES))
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_an_ancestral_step_keeps_the_marginals_of_the_process(kind: str, steps: int) -> None:
    """Given x₀, x ~ N(α x₀, σ²) must become x' ~ N(α' x₀, σ'²), with cov(x, x') = α / α' σ'²."""
    table = ddpm(PROCESSES[kind], steps=steps)
    alpha, sigma = PROCESSES[kind].exact_levels([step.time for step in table])
    next_alpha, next_sigma = np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)
    keep, current, fresh = (
        np.array([getattr(step, name) for step in table]) for name in ("keep", "current", "fresh")
    )
    np.testing.assert_allclose(keep * alpha + current, next_alpha, rtol=1e-12)
    np.testing.assert_allclose((keep * sigma) ** 2 + fresh**2, next_sigma**2, atol=1e-12)
    np.testing.assert_allclose(keep * sigma**2, alpha / next_alpha * next_sigma**2, atol=1e-12)


def split(x: torch.Tensor, process: DiffusionProcess, *, time: float) -> Any:
    """(x₀, ε) of the network's prediction, by the definitions of v and velocity."""
    alpha, sigma = (float(level) for level in process.exact_levels(time))
    prediction = network(x, time)
    if process is FLOW:
        x0 = x - sigma * prediction
        return x0, x0 + prediction
    return alpha * x - sigma * prediction, sigma * x + alpha * prediction


def integrate(noise: torch.Tensor, process: DiffusionProcess, *, steps: int, method: str) -> Any:
    """The probability-flow ODE by the textbook, fp64: "karras" is Euler in (x / α, σ / α);
    "euler" and "heun" walk in (x / (α + σ), σ / (α + σ)), where the slope is ε - x₀."""
    times = solver_times(process, steps=steps)
    x = noise.double()
    for time, landing in itertools.pairwise([*times, None]):
        levels = process.exact_levels(time), (1.0, 0.0)
        if landing is not None:
            levels = levels[0], process.exact_levels(landing)
        scale, goal = (float(a if method == "karras" else a + s) for a, s in levels)
        u, v = float(levels[0][1]) / scale, float(levels[1][1]) / goal
        x0, epsilon = split(x, process, time=time)
        slope = epsilon if method == "karras" else epsilon - x0
        y = x / scale + (v - u) * slope
        if method == "heun" and landing is not None:
            x0, epsilon = split(y * goal, process, time=landing)
            y = x / scale + (v - u) * (slope + epsilon - x0) / 2
        x = y * goal
    return x


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    ("kind", "solver", "method"),
    [
        ("cosine", "euler", "karras"),
        ("linear", "euler", "karras"),
        ("linear", "euler", "euler"),
        ("flow", "euler", "euler"),
        ("cosine", "heun", "heun"),
        ("linear", "heun", "heun"),
        ("flow", "heun", "heun"),
    ],
)
def test_euler_and_heun_are_the_textbook_methods(
    kind: str, solver: Any, method: str, steps: int
) -> None:
    process = PROCESSES[kind]
    noise = torch.randn(4, 16, generator=torch.Generator().manual_seed(steps))
    table = SOLVERS[solver](process, steps=steps)
    assert len(table) == (2 * steps - 1 if solver == "heun" else steps)
    found = sample_x(lambda x, i: network(x, table[i].time), noise, steps=table)
    expected = integrate(noise, process, steps=steps, method=method)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def gaussian_noise(*_: int) -> torch.Tensor:
    return torch.randn(400, 50, generator=torch.Generator().manual_seed(5))


def sample_gaussian(process: DiffusionProcess, table: list[SolverStep]) -> torch.Tensor:
    """The table's recurrence with the ideal network for data N(MEAN, STD²)."""

    def denoise(x: torch.Tensor, index: int) -> torch.Tensor:
        alpha, sigma = (float(level) for level in process.exact_levels(table[index].time))
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        x0 = MEAN + gain * (x - alpha * MEAN)
        epsilon = (x - alpha * x0) / sigma
        match process.settings.prediction:
            case "v":
                return alpha * epsilon - sigma * x0
            case "velocity":
                return epsilon - x0
            case "epsilon":
                return epsilon
        return x0

    generator = torch.Generator().manual_seed(6)
    return sample_x(
        denoise,
        gaussian_noise(),
        steps=table,
        fresh=lambda _: torch.randn(400, 50, generator=generator),
    )


def exact_gaussian(
    process: DiffusionProcess, *, start: float, stop: float | None = None
) -> torch.Tensor:
    """Where the probability flow of N(MEAN, STD²) takes that noise: each x keeps its quantile."""
    alpha, sigma = (float(level) for level in process.exact_levels(start))
    after, left = (1.0, 0.0) if stop is None else map(float, process.exact_levels(stop))
    quantile = (gaussian_noise() - alpha * MEAN) / math.hypot(alpha * STD, sigma)
    return after * MEAN + quantile * math.hypot(after * STD, left)


def error(process: DiffusionProcess, solver: Any, *, steps: int) -> float:
    table = SOLVERS[solver](process, steps=steps)
    end = exact_gaussian(process, start=table[0].time)
    return float((sample_gaussian(process, table) - end).abs().mean())


@pytest.mark.parametrize(
    "settings",
    [
        DiffusionSettings(schedule="linear"),
        DiffusionSettings(schedule="linear", prediction="x0"),
        DiffusionSettings(schedule="linear", prediction="epsilon"),
        DiffusionSettings(process="flow", prediction="velocity"),
        DiffusionSettings(process="flow", prediction="epsilon"),
    ],
    ids=lambda settings: f"{settings.process}-{settings.prediction}",
)
def test_solvers_reach_the_exact_flow_and_the_second_order_ones_sooner(
    settings: DiffusionSettings,
) -> None:
    process = DiffusionProcess(settings)
    first = error(process, "ddim", steps=100)
    assert first < 0.03
    assert first < error(process, "ddim", steps=25) / 2.5
    for solver in ("dpm_solver_pp_2m", "heun"):
        second = error(process, solver, steps=100)
        assert second < 0.005
        assert second < first / 3


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("dpm_solver_pp_2m", 2)])
@pytest.mark.parametrize("kind", ["ddpm", "flow"])
def test_solvers_have_their_order_of_convergence(kind: str, solver: Any, order: int) -> None:
    """Over the first three quarters: the last stride of ddpm, σ ~ √t, is first order for all."""
    process = FLOW  # T - 1 is a multiple of every count of steps: rounding moves no time
    if kind == "ddpm":
        process = DiffusionProcess(DiffusionSettings(schedule="linear", timesteps=4801))
    errors = []
    for steps in (20, 40, 80, 160):
        table = SOLVERS[solver](process, steps=steps)
        rows = steps * 3 // 4 * (2 if solver == "heun" else 1)
        expected = exact_gaussian(process, start=table[0].time, stop=table[rows].time)
        found = sample_gaussian(process, table[:rows])
        errors.append(float((found - expected).abs().mean()))
    slopes = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert all(order - 0.1 < slope < order + 0.15 for slope in slopes), slopes


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_heun_survives_the_first_stride_of_the_cosine_schedule(steps: int) -> None:
    """In (x / α, σ / α) it misses by 13, 2 and 0.2, of data with a deviation of 0.4."""
    assert error(COSINE_V, "heun", steps=steps) < 0.75 * error(COSINE_V, "ddim", steps=steps) < 0.1


@pytest.mark.parametrize("kind", ["cosine", "flow"])
def test_ancestral_samples_have_the_distribution_of_the_data(kind: str) -> None:
    process = PROCESSES[kind]
    samples = sample_gaussian(process, ddpm(process, steps=500))
    assert abs(samples.mean() - MEAN) < 4 * STD / 20000**0.5
    assert abs(samples.std() / STD - 1) < 0.02


def test_times_are_those_of_the_paper_code() -> None:
    assert solver_times(COSINE_V, steps=5) == [999, 799, 599, 400, 200]
    assert solver_times(COSINE_V, steps=3) == [999, 666, 333]
    assert solver_times(COSINE_V, steps=20)[:11:10] == [999, 500]
    for steps in (1, 2, 501, 997, 999, 1000):
        found = solver_times(COSINE_V, steps=steps)
        assert len(set(found)) == steps
        assert found == sorted(found, reverse=True)
        assert all(isinstance(time, int) for time in found)
    assert solver_times(COSINE_V, steps=1000) == list(range(1000))[::-1]
    with pytest.raises(ValueError, match=r"sample.steps is 1001; the process has 1000"):
        solver_times(COSINE_V, steps=1001)
    with pytest.raises(ValueError, match=r"sample.steps is 0; the process has 1000: give 1"):
        solver_times(FLOW, steps=0)


@pytest.mark.parametrize("steps", [*STEPS, 999, 1000])
def test_times_of_a_flow_are_those_of_diffusers(steps: int) -> None:
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0
    )
    scheduler.set_timesteps(steps)
    times = np.array(solver_times(FLOW, steps=steps))
    np.testing.assert_allclose(times / 1000, scheduler.sigmas[:-1], rtol=1e-6)
    cut = times - scheduler.timesteps.numpy()  # theirs are cut to integers
    assert ((cut > -1e-9) & (cut < 1 + 1e-9)).all()


@pytest.mark.parametrize("solver", list(SOLVERS))
@pytest.mark.parametrize("kind", list(PROCESSES))
def test_every_table_ends_at_the_data_without_noise(kind: str, solver: Any) -> None:
    for steps in (1, 2, 3, 7, 999, 1000):
        table = solver_table(PROCESSES[kind], SamplerSettings(solver=solver, steps=steps))
        last = table[-1]
        assert (last.keep, last.previous, last.fresh) == (0, 0, 0)
        assert last.current == pytest.approx(1, abs=1e-12)
        assert np.isfinite(np.array(table)).all()


def test_a_noisy_solver_asks_for_noise() -> None:
    with pytest.raises(ValueError, match="give sample_x `fresh`"):
        sample_x(network, torch.randn(1, 2), steps=ddpm(COSINE_V, steps=4))


@pytest.mark.parametrize("solver", ["dpm_solver_pp_2m", "heun", "ddpm"])
def test_the_state_is_fp32_and_no_tensor_of_others_is_written_to(solver: Any) -> None:
    table = SOLVERS[solver](COSINE_V, steps=6)
    noise, seen, given = torch.randn(3, 4), [], []

    def denoise(x: torch.Tensor, index: int) -> torch.Tensor:
        prediction = network(x, table[index].time).bfloat16()
        for tensor, kept in ((x, seen), (prediction, given)):
            kept.append((tensor, tensor.clone()))
        return prediction

    seen.append((noise, noise.clone()))
    found = sample_x(denoise, noise, steps=table, fresh=lambda _: torch.ones(3, 4))
    assert found.dtype == torch.float32
    assert all(torch.equal(tensor, copy) for tensor, copy in seen + given)
    assert all(x.dtype == torch.float32 for x, _ in seen)


def test_sampling_is_one_graph_and_differentiable() -> None:
    table = heun(FLOW, steps=3)

    def sample(noise: torch.Tensor) -> torch.Tensor:
        return sample_x(lambda x, i: network(x, table[i].time), noise, steps=table)

    noise = torch.randn(3, 4, dtype=torch.float32, requires_grad=True)
    whole = torch.compile(sample, backend="eager", fullgraph=True)
    torch.testing.assert_close(whole(noise.detach()), sample(noise.detach()), rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(sample(noise)[0, 0], noise)
    nudged = noise.detach().clone()
    nudged[0, 0] += 1e-2
    slope = (sample(nudged) - sample(noise.detach()))[0, 0] / 1e-2
    torch.testing.assert_close(gradient[0, 0], slope, rtol=0.05, atol=1e-3)
