"""The forward process of Eq. 2, its targets, and the way back from a prediction to the data.

x_t = α x₀ + σ ε, two ways, told apart by `DiffusionSettings.process`:

- ddpm: α_t = √ᾱ_t and σ_t = √(1 - ᾱ_t) at integer times t = 0 … T - 1, fp64 tables;
- flow: α = 1 - σ on the straight path of flow matching (Lipman et al. 2022), at real times T σ
  in [0, T], so that one timestep embedding serves both.

A network predicts one of: ε; x₀; v = α ε - σ x₀ (Salimans and Ho 2022), the paper's choice for
images; the velocity ε - x₀ of flow matching. Nothing here has state. At t = T - 1 the cosine
schedule has α = 4.9e-5, by which an ε-prediction must be divided: prefer v.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latentlm.settings import DiffusionSettings

FloatArray = npt.NDArray[np.float64]
Level = TypeVar("Level", FloatArray, Tensor)


def betas(schedule: Literal["cosine", "linear"], timesteps: int) -> FloatArray:
    """β_t, fp64 (T,). Cosine: Nichol and Dhariwal 2021, capped at 0.999. Linear: Ho et al. 2020,
    10⁻⁴ … 0.02 for 1,000 timesteps, scaled by 1000 / T for others."""
    if schedule == "linear":
        scale = 1000.0 / timesteps
        return np.minimum(np.linspace(1e-4 * scale, 0.02 * scale, timesteps), 0.999)
    bounds = np.arange(timesteps + 1) / timesteps
    survival = np.cos((bounds + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1.0 - survival[1:] / survival[:-1], 0.999)


@dataclass(frozen=True)
class DiffusionProcess:
    """Levels and targets of one `DiffusionSettings`. Latents end in Z.

    Times are what the network sees: int64 for ddpm, fp32 for flow, in the shape of the latents
    (or one that broadcasts with it) without Z. Both grow from data to noise.
    """

    settings: DiffusionSettings

    def __post_init__(self) -> None:
        """Raises ValueError for settings that contradict themselves, such as a flow with v."""
        for path, problem in self.settings.problems():
            raise ValueError(f"diffusion.{path}: {problem}")

    @cached_property
    def alphas(self) -> FloatArray:
        """α at times 0 … T - 1, fp64 (T,)."""
        timesteps = self.settings.timesteps
        if self.settings.process == "flow":
            return 1.0 - np.arange(timesteps) / timesteps
        return np.sqrt(np.cumprod(1.0 - betas(self.settings.schedule, timesteps)))

    @cached_property
    def sigmas(self) -> FloatArray:
        """σ at times 0 … T - 1, fp64 (T,)."""
        if self.settings.process == "flow":
            return np.arange(self.settings.timesteps) / self.settings.timesteps
        return np.sqrt(1.0 - self.alphas**2)

    def levels(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """(α, σ), each fp32 (…, 1), at times (…)."""
        alpha, sigma = self._levels(times)
        return alpha.float(), sigma.float()

    def exact_levels(self, times: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """(α, σ), each fp64 (…), at times (…): for tables of solvers."""
        if self.settings.process == "flow":
            sigma = np.asarray(times, dtype=np.float64) / self.settings.timesteps
            return 1.0 - sigma, sigma
        index = np.asarray(times, dtype=np.int64)
        return self.alphas[index], self.sigmas[index]

    def x0_coefficients(self, alpha: Level, sigma: Level) -> tuple[Level, Level]:
        """(a, b) of x₀ = a x_t + b prediction, from α and σ of any shape."""
        match self.settings.prediction:
            case "v":
                return alpha, -sigma
            case "epsilon":
                return 1.0 / alpha, -sigma / alpha
            case "velocity":
                return 1.0 / (alpha + sigma), -sigma / (alpha + sigma)
            case "x0":
                return 0.0 * alpha, 0.0 * alpha + 1.0

    def noised(self, x0: Tensor, times: Tensor, *, epsilon: Tensor) -> Tensor:
        """x_t of Eq. 2, in the shape of epsilon."""
        alpha, sigma = self.levels(times)
        return alpha * x0 + sigma * epsilon

    def target(self, x0: Tensor, times: Tensor, *, epsilon: Tensor) -> Tensor:
        """What the network should predict, in the shape of epsilon."""
        match self.settings.prediction:
            case "v":
                alpha, sigma = self.levels(times)
                return alpha * epsilon - sigma * x0
            case "epsilon":
                return epsilon
            case "velocity":
                return epsilon - x0
            case "x0":
                return x0.expand_as(epsilon)

    def to_x0(self, x_t: Tensor, times: Tensor, *, prediction: Tensor) -> Tensor:
        """The data that a prediction at x_t stands for."""
        from_x, from_prediction = self.x0_coefficients(*self._levels(times))
        return from_x.float() * x_t + from_prediction.float() * prediction

    def bin_of(self, times: Tensor, bins: int) -> Tensor:
        """Which of `bins` equal parts of the process each time falls in, int64 (…): 0 is data."""
        part = torch.div(times * bins, self.settings.timesteps, rounding_mode="floor")
        return part.long().clamp(0, bins - 1)

    def _levels(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """`levels` in fp64."""
        if self.settings.process == "flow":
            sigma = times.double().unsqueeze(-1) / self.settings.timesteps
            return 1.0 - sigma, sigma
        return _at(self.alphas, times), _at(self.sigmas, times)


def _at(table_T: FloatArray, times: Tensor) -> Tensor:
    """Entries of a table, with a last dimension to broadcast over Z."""
    # the tensor is made anew: a kept one, if first made in inference mode, could not be trained on
    return torch.from_numpy(table_T).to(times.device)[times].unsqueeze(-1)
