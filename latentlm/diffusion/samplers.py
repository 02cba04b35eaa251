"""Solvers as tables: every solver here is the same linear recurrence with its own coefficients.

    x₀ = a x + b prediction(x, t)
    x ← keep · x + current · x₀ + previous · x₀(one step ago) + fresh · N(0, I)

The coefficients come from the process in fp64, once; the state stays in fp32. The final x is the
last x₀, without noise. A table is a value: nothing is shared between calls.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from latentlm.diffusion.process import DiffusionProcess, FloatArray

Denoiser = Callable[[Tensor, int], Tensor]
"""(x_t (B, Z), index of the step) → prediction (B, Z)."""

Fresh = Callable[[int], Tensor]
"""Index of the step → standard normal noise (B, Z)."""


class SolverStep(NamedTuple):
    """One step: the timestep the network sees, and the coefficients of the recurrence."""

    timestep: int
    a: float
    b: float
    keep: float
    current: float
    previous: float
    fresh: float


def solver_timesteps(timesteps: int, *, steps: int) -> list[int]:
    """`steps` timesteps from T - 1 downwards, evenly spaced over 0 … T - 1 without 0 itself.

    All T of them when steps = T. Raises ValueError when steps is not within 1 … T.
    """
    if not 1 <= steps <= timesteps:
        raise ValueError(f"sampler.steps is {steps}; the process has {timesteps}: give 1 to that")
    if steps == timesteps:
        return list(range(timesteps))[::-1]
    return [int(t) for t in np.linspace(0, timesteps - 1, steps + 1).round()[:0:-1]]


class _Levels(NamedTuple):
    """α and σ where each step starts (S,) and where it lands (S,); it lands last on α 1, σ 0."""

    alpha: FloatArray
    sigma: FloatArray
    next_alpha: FloatArray
    next_sigma: FloatArray


def _levels(process: DiffusionProcess, timesteps: Sequence[int]) -> _Levels:
    alpha, sigma = process.alphas[list(timesteps)], process.sigmas[list(timesteps)]
    return _Levels(alpha, sigma, np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0))


def dpm_solver_pp_2m(process: DiffusionProcess, *, steps: int) -> list[SolverStep]:
    """DPM-Solver++(2M), midpoint (Lu et al. 2022); the first and the last step are first order."""
    timesteps = solver_timesteps(process.settings.timesteps, steps=steps)
    levels = _levels(process, timesteps)
    with np.errstate(divide="ignore"):  # the last λ is +∞
        start, stop = (
            np.log(levels.alpha) - np.log(levels.sigma),
            np.log(levels.next_alpha) - np.log(levels.next_sigma),
        )
    h = stop - start
    weight = levels.next_alpha * -np.expm1(-h)
    extrapolated = np.zeros(steps)
    extrapolated[1:-1] = h[1:-1] / (2.0 * h[:-2])  # 1 / (2 r), r = h of the step before / h
    return _table(
        process,
        timesteps,
        keep=levels.next_sigma / levels.sigma,
        current=weight * (1.0 + extrapolated),
        previous=-weight * extrapolated,
    )


def ddim(process: DiffusionProcess, *, steps: int) -> list[SolverStep]:
    """DDIM with η = 0 (Song et al. 2020): x₀ and ε are held, only their mixture moves."""
    timesteps = solver_timesteps(process.settings.timesteps, steps=steps)
    levels = _levels(process, timesteps)
    ratio = levels.next_sigma / levels.sigma
    return _table(process, timesteps, keep=ratio, current=levels.next_alpha - ratio * levels.alpha)


def ddpm(process: DiffusionProcess, *, steps: int) -> list[SolverStep]:
    """Ancestral sampling (Ho et al. 2020) with the posterior variance β̃, over any subset of t."""
    timesteps = solver_timesteps(process.settings.timesteps, steps=steps)
    levels = _levels(process, timesteps)
    step_alpha = (levels.alpha / levels.next_alpha) ** 2
    variance, next_variance = levels.sigma**2, levels.next_sigma**2
    return _table(
        process,
        timesteps,
        keep=np.sqrt(step_alpha) * next_variance / variance,
        current=levels.next_alpha * (1.0 - step_alpha) / variance,
        fresh=np.sqrt(next_variance / variance * (1.0 - step_alpha)),
    )


def _table(
    process: DiffusionProcess,
    timesteps: Sequence[int],
    *,
    keep: FloatArray,
    current: FloatArray,
    previous: FloatArray | None = None,
    fresh: FloatArray | None = None,
) -> list[SolverStep]:
    from_x, from_prediction = process.x0_coefficients
    none = np.zeros(len(timesteps))
    columns = (
        from_x[list(timesteps)],
        from_prediction[list(timesteps)],
        keep,
        current,
        none if previous is None else previous,
        none if fresh is None else fresh,
    )
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [SolverStep(t, *row) for t, row in zip(timesteps, rows, strict=True)]


SOLVERS: dict[Literal["dpm_solver_pp_2m", "ddim", "ddpm"], Callable[..., list[SolverStep]]] = {
    "dpm_solver_pp_2m": dpm_solver_pp_2m,
    "ddim": ddim,
    "ddpm": ddpm,
}


def sample_x(
    denoise: Denoiser, noise_BZ: Tensor, *, steps: Sequence[SolverStep], fresh: Fresh | None = None
) -> Tensor:
    """x₀ (B, Z) fp32 from noise x_T (B, Z) by the recurrence above.

    Raises ValueError when the table adds noise (ddpm) and `fresh` is not given.
    """
    x_BZ, previous_BZ = noise_BZ.float(), None
    for index, step in enumerate(steps):
        x0_BZ = step.b * denoise(x_BZ, index).float()
        x0_BZ = x0_BZ.add(x_BZ, alpha=step.a)
        x_BZ = (step.keep * x_BZ).add(x0_BZ, alpha=step.current)
        if step.previous and previous_BZ is not None:
            x_BZ = x_BZ.add(previous_BZ, alpha=step.previous)
        if step.fresh:
            if fresh is None:
                raise ValueError("this solver adds noise at every step; give sample_x `fresh`")
            x_BZ = x_BZ.add(fresh(index), alpha=step.fresh)
        previous_BZ = x0_BZ
    return x_BZ


def guided(denoise: Denoiser, *, scales_B: Tensor, rows: Tensor) -> Denoiser:
    """Classifier-free guidance u + s (c - u) with a scale s for each row.

    `rows` = `guided_rows(scales_B)`. `denoise` must answer for the B conditional rows followed by
    the null twins of `rows`, in that order; a row without a twin gets exactly c.
    """
    batch = len(scales_B)
    scales = scales_B[rows, None].float()

    def denoise_guided(x_BZ: Tensor, index: int) -> Tensor:
        prediction = denoise(torch.cat((x_BZ, x_BZ[rows])), index).float()
        conditional_BZ, null = prediction[:batch], prediction[batch:]
        mixed = null + scales * (conditional_BZ[rows] - null)
        return conditional_BZ.index_copy(0, rows, mixed)

    return denoise_guided


def guided_rows(scales_B: Tensor) -> Tensor:
    """Indices of the rows that need a null twin: those whose scale is not exactly 1."""
    return (scales_B != 1).nonzero().squeeze(1)
