"""The forward process of Eq. 2, its targets, and the way back from a prediction to the data.

x_t = α_t x₀ + σ_t ε with α_t = √ᾱ_t and σ_t = √(1 - ᾱ_t), t = 0 … T - 1, fp64 tables. A network
predicts one of: ε; x₀; v = α ε - σ x₀ (Salimans and Ho 2022), the paper's choice for images.
Nothing here has state. At t = T - 1 the cosine schedule has α = 4.9e-5, by which an ε-prediction
must be divided: prefer v.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latentlm.settings import DiffusionSettings

FloatArray = npt.NDArray[np.float64]


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
    """Tables and targets of one `DiffusionSettings`. Latents end in Z; timesteps are integers."""

    settings: DiffusionSettings

    @cached_property
    def alphas(self) -> FloatArray:
        """α_t = √ᾱ_t, fp64 (T,)."""
        return np.sqrt(np.cumprod(1.0 - betas(self.settings.schedule, self.settings.timesteps)))

    @cached_property
    def sigmas(self) -> FloatArray:
        """σ_t = √(1 - ᾱ_t), fp64 (T,)."""
        return np.sqrt(1.0 - self.alphas**2)

    @cached_property
    def x0_coefficients(self) -> tuple[FloatArray, FloatArray]:
        """(a, b), each (T,): x₀ = a_t x_t + b_t prediction."""
        match self.settings.prediction:
            case "v":
                return self.alphas, -self.sigmas
            case "epsilon":
                return 1.0 / self.alphas, -self.sigmas / self.alphas
            case "x0":
                return np.zeros_like(self.alphas), np.ones_like(self.alphas)

    def noised(self, x0: Tensor, timesteps: Tensor, *, epsilon: Tensor) -> Tensor:
        """x_t of Eq. 2. timesteps has the shape of x0 (or one it broadcasts with) without Z."""
        return _at(self.alphas, timesteps) * x0 + _at(self.sigmas, timesteps) * epsilon

    def target(self, x0: Tensor, timesteps: Tensor, *, epsilon: Tensor) -> Tensor:
        """What the network should predict, in the shape of epsilon."""
        match self.settings.prediction:
            case "v":
                return _at(self.alphas, timesteps) * epsilon - _at(self.sigmas, timesteps) * x0
            case "epsilon":
                return epsilon
            case "x0":
                return x0.expand_as(epsilon)

    def to_x0(self, x_t: Tensor, timesteps: Tensor, *, prediction: Tensor) -> Tensor:
        """The data that a prediction at x_t stands for."""
        from_x, from_prediction = self.x0_coefficients
        return _at(from_x, timesteps) * x_t + _at(from_prediction, timesteps) * prediction


def _at(table_T: FloatArray, timesteps: Tensor) -> Tensor:
    """fp32 entries of a table, with a last dimension to broadcast over Z."""
    table = torch.from_numpy(table_T.astype(np.float32)).to(timesteps.device)
    return table[timesteps].unsqueeze(-1)
