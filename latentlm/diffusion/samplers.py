"""Solvers as tables: every solver here is the same linear recurrence with its own coefficients.

    x₀ = a x + b prediction(x, time)
    x ← keep · x + current · x₀ + previous · x₀(one row ago) + fresh · N(0, I)

A row of a table is one evaluation of the network. The coefficients come from α and σ in fp64,
once, so that each solver serves ddpm and flow alike; the state stays in fp32. The final x is the
last x₀, without noise. A table is a value: nothing is shared between calls.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from latentlm.diffusion.process import DiffusionProcess, FloatArray
from latentlm.settings import SamplerSettings, Solver

Denoiser = Callable[[Tensor, int], Tensor]
"""(x_t (B, Z), index of the row) → prediction (B, Z)."""

Fresh = Callable[[int], Tensor]
"""Index of the row → standard normal noise (B, Z)."""

Watch = Callable[[Tensor], None]
"""Called with every state of a solver, the noise first; it must not write to them."""

Scale = TypeVar("Scale", float, Tensor)


class SolverStep(NamedTuple):
    """One row: the time that the network sees (ddpm: an int) and the recurrence's coefficients."""

    time: float
    a: float
    b: float
    keep: float
    current: float
    previous: float
    fresh: float


def solver_times(process: DiffusionProcess, *, steps: int) -> list[int] | list[float]:
    """`steps` times from T - 1 downwards, evenly spaced over 0 … T - 1 without 0 itself.

    ddpm: rounded to integers, and all T of them when steps = T. flow: unrounded, so σ starts at
    1 - 1/T. Raises ValueError when steps is below 1 or, for ddpm, above T.
    """
    timesteps = process.settings.timesteps
    discrete = process.settings.process == "ddpm"
    if steps < 1 or (discrete and steps > timesteps):
        bound = f" to {timesteps}" if discrete else " or more"
        raise ValueError(f"sample.steps is {steps}; the process has {timesteps}: give 1{bound}")
    if discrete and steps == timesteps:
        return list(range(timesteps))[::-1]
    grid = np.linspace(0, timesteps - 1, steps + 1)[:0:-1]
    return [int(time) for time in grid.round()] if discrete else grid.tolist()


class _Grid(NamedTuple):
    """Times (S,), α and σ there, and where each step lands: at last on α = 1, σ = 0."""

    times: Sequence[float]
    alpha: FloatArray
    sigma: FloatArray
    next_alpha: FloatArray
    next_sigma: FloatArray


def _grid(process: DiffusionProcess, *, steps: int) -> _Grid:
    times = solver_times(process, steps=steps)
    alpha, sigma = process.exact_levels(times)
    return _Grid(times, alpha, sigma, np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0))


def dpm_solver_pp_2m(process: DiffusionProcess, *, steps: int) -> list[SolverStep]:
    """DPM-Solver++(2M), midpoint (Lu et al. 2022); the first and the last step are first order."""
    grid = _grid(process, steps=steps)
    with np.errstate(divide="ignore"):  # the last λ is +∞
        start, stop = (
            np.log(grid.alpha) - np.log(grid.sigma),
            np.log(grid.next_alpha) - np.log(grid.next_sigma),
        )
    h = stop - start
    weight = grid.next_alpha * -np.expm1(-h)
    extrapolated = np.zeros(steps)
    extrapolated[1:-1] = h[1:-1] / (2.0 * h[:-2])  # 1 / (2 r), r = h of the step before / h
    return _table(
        process,
        grid.times,
        keep=grid.next_sigma / grid.sigma,
        current=weight * (1.0 + extrapolated),
        previous=-weight * extrapolated,
    )


def ddim(process: DiffusionProcess, *, steps: int) -> list[SolverStep]:
    """DDIM with η = 0 (Song et al. 2020): x₀ and ε are held, only their mixture moves.

    The same table is Euler's method for the probability-flow ODE, in (x / α, σ / α) for ddpm
    (Karras et al. 2022) as in (x, σ) for flow: with x₀ and ε held, both paths are straight.
    """
    grid = _grid(process, steps=steps)
    keep, current = _euler(grid)
    return _table(process, grid.times, keep=keep, current=current)


def heun(process: DiffusionProcess, *, steps: int) -> list[SolverStep]:
    """Heun's second-order method, 2 · steps - 1 evaluations: a last corrector would start at σ = 0.

    It integrates dy/du = ε - x₀ in y = x / (α + σ) and u = σ / (α + σ), which is (x, σ) for flow.
    Karras et al. 2022 take (x / α, σ / α), where the cosine schedule begins with a stride from
    20,291 to below 13 at 20 steps, and a trapezium over that destroys the sample. Euler's step
    leaves y' = y + (u' - u) d₁; since y = x₀₁ + u d₁, the slope where it lands is
    d₂ = d₁ + (x₀₁ - x₀₂) / u', so the corrector is y' + (u' - u) / (2 u') · (x₀₁ - x₀₂).
    """
    grid = _grid(process, steps=steps)
    euler_keep, euler_current = _euler(grid)
    total = grid.alpha + grid.sigma
    u = grid.sigma / total
    correction = total[1:] * (1.0 - u[:-1] / u[1:]) / 2.0
    rows = 2 * steps - 1
    keep, current, previous = np.ones(rows), np.zeros(rows), np.zeros(rows)
    keep[::2], current[::2] = euler_keep, euler_current
    current[1::2], previous[1::2] = -correction, correction
    times = [grid.times[(row + 1) // 2] for row in range(rows)]
    return _table(process, times, keep=keep, current=current, previous=previous)


def ddpm(process: DiffusionProcess, *, steps: int) -> list[SolverStep]:
    """Ancestral sampling (Ho et al. 2020) over any subset of times: x' from p(x' | x, x₀).

    On any Gaussian path x = r x' + N(0, v) with r = α / α' and v = σ² - r² σ'², so that the
    posterior has mean r σ'² / σ² · x + α' v / σ² · x₀ and variance v σ'² / σ² (ddpm: β̃).
    """
    grid = _grid(process, steps=steps)
    ratio = grid.alpha / grid.next_alpha
    variance, next_variance = grid.sigma**2, grid.next_sigma**2
    added = variance - ratio**2 * next_variance
    return _table(
        process,
        grid.times,
        keep=ratio * next_variance / variance,
        current=grid.next_alpha * added / variance,
        fresh=np.sqrt(next_variance * added / variance),
    )


def _euler(grid: _Grid) -> tuple[FloatArray, FloatArray]:
    """(keep, current) of the first-order step."""
    keep = grid.next_sigma / grid.sigma
    return keep, grid.next_alpha - keep * grid.alpha


def _table(
    process: DiffusionProcess,
    times: Sequence[float],
    *,
    keep: FloatArray,
    current: FloatArray,
    previous: FloatArray | None = None,
    fresh: FloatArray | None = None,
) -> list[SolverStep]:
    from_x, from_prediction = process.x0_coefficients(*process.exact_levels(times))
    none = np.zeros(len(times))
    columns = (
        from_x,
        from_prediction,
        keep,
        current,
        none if previous is None else previous,
        none if fresh is None else fresh,
    )
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [SolverStep(time, *row) for time, row in zip(times, rows, strict=True)]


SOLVERS: dict[Solver, Callable[..., list[SolverStep]]] = {
    "dpm_solver_pp_2m": dpm_solver_pp_2m,
    "ddim": ddim,
    "ddpm": ddpm,
    "euler": ddim,
    "heun": heun,
}


def solver_table(process: DiffusionProcess, sampler: SamplerSettings) -> list[SolverStep]:
    """The rows of `sampler.solver` for `sampler.steps`; heun has two a step, less one."""
    return SOLVERS[sampler.solver](process, steps=sampler.steps)


def sample_x(
    denoise: Denoiser,
    noise_BZ: Tensor,
    *,
    steps: Sequence[SolverStep],
    fresh: Fresh | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """x₀ (B, Z) fp32 from noise x_T (B, Z) by the recurrence above.

    Nothing here waits for the device, and only Python numbers decide what runs: it can be
    compiled or captured whole. `denoise` may keep its x_t: no tensor it saw is written to. `watch`
    is called with each state, x_T first and x₀ last.
    Raises ValueError when the table adds noise (ddpm) and `fresh` is not given.
    """
    if fresh is None and any(step.fresh for step in steps):
        raise ValueError("this solver adds noise at every step; give sample_x `fresh`")
    x_BZ, previous_BZ = noise_BZ.float(), None
    if watch is not None:
        watch(x_BZ)
    for index, step in enumerate(steps):
        # a 16-bit prediction is widened inside the addition, which is in place on a new tensor
        x0_BZ = (step.a * x_BZ).add_(denoise(x_BZ, index), alpha=step.b)
        x_BZ = (step.keep * x_BZ).add_(x0_BZ, alpha=step.current)
        if step.previous and previous_BZ is not None:
            x_BZ.add_(previous_BZ, alpha=step.previous)
        if step.fresh and fresh is not None:
            x_BZ.add_(fresh(index), alpha=step.fresh)
        previous_BZ = x0_BZ
        if watch is not None:
            watch(x_BZ)
    return x_BZ


def guidance_table(
    scales_B: Tensor,
    *,
    times_S: Sequence[float],
    process_timesteps: int,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """(S, B) fp32: each row's own scale at each evaluation; outside the interval it is 1.

    times_S are the table's times, on the host; for the interval see `guided_steps`.
    """
    inside_S = guided_steps(times_S, process_timesteps=process_timesteps, interval=interval)
    inside_S1 = torch.tensor(inside_S, device=scales_B.device).unsqueeze(1)
    return torch.where(inside_S1, scales_B.float(), 1.0)


def guided_steps(
    times_S: Sequence[float], *, process_timesteps: int, interval: tuple[float, float] = (0.0, 1.0)
) -> tuple[bool, ...]:
    """Whether each evaluation's time / T is above the interval's low end and up to its high end.

    An interval from 0 has time 0 in it, so that [0, 1] is no restriction.
    """
    low, high = interval
    fractions = (time / process_timesteps for time in times_S)
    return tuple(bool(low < part <= high or low == part == 0) for part in fractions)


def scheduled_scale(
    scale: Scale,
    *,
    fraction: float,
    schedule: Literal["constant", "rising", "falling"] = "constant",
) -> Scale:
    """The guidance scale at a fraction (0 first … 1 last) of the latents of an item.

    rising: 1 + (s - 1) · fraction (Li et al. 2024, MAR); falling: the same from the other end.
    """
    match schedule:
        case "constant":
            return scale
        case "rising":
            return 1.0 + (scale - 1.0) * fraction
        case "falling":
            return 1.0 + (scale - 1.0) * (1.0 - fraction)


def guided_rows(scales: Tensor) -> Tensor:
    """Indices of the rows that need a null twin: those whose scale is ever not exactly 1.

    scales are (B,) or a `guidance_table` (S, B). Waits for the device: call it once a decoding.
    """
    return (scales != 1).reshape(-1, scales.shape[-1]).any(dim=0).nonzero().squeeze(1)


def guided(
    denoise: Denoiser,
    *,
    scales_SB: Tensor,
    rows: Tensor,
    active_S: Sequence[bool] | None = None,
) -> Denoiser:
    """Classifier-free guidance u + s (c - u), in fp32, with a scale s for each evaluation and row.

    `rows` = `guided_rows(scales_SB)`, in any order. `denoise` must answer for the B conditional
    rows followed by the null twins of `rows`, in that order, and for the B rows alone where
    `active_S` is False: there no twin is evaluated, and every row gets exactly c. So does a row
    without a twin, and one whose scale is 1.
    """
    if not len(rows):
        return denoise
    batch = scales_SB.shape[1]
    scales_SR1 = scales_SB[:, rows, None].float()

    def denoise_guided(x_BZ: Tensor, index: int) -> Tensor:
        if active_S is not None and not active_S[index]:
            return denoise(x_BZ, index)
        prediction = denoise(torch.cat((x_BZ, x_BZ[rows])), index).float()
        conditional_BZ, null = prediction[:batch], prediction[batch:]
        # lerp gives exactly c at scale 1 and exactly u at 0
        mixed = torch.lerp(null, conditional_BZ[rows], scales_SR1[index])
        return conditional_BZ.index_copy(0, rows, mixed)

    return denoise_guided
