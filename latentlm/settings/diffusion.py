"""Settings of the diffusion process (§2.1) and of its sampler."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from latentlm.settings.rules import STRICT, Problem, positive


@dataclass(frozen=True, kw_only=True)
class DiffusionSettings:
    """Forward process and target. The paper's images: DDPM, 1,000 steps, cosine, v-prediction."""

    __pydantic_config__ = STRICT
    process: Literal["ddpm"] = "ddpm"
    schedule: Literal["cosine", "linear"] = "cosine"
    prediction: Literal["v", "epsilon", "x0"] = "v"
    timesteps: int = 1000

    def problems(self) -> Iterator[Problem]:
        if self.timesteps < 2:
            yield "timesteps", f"{self.timesteps} is too few; a process has at least 2 timesteps"


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """How latents are drawn: solver, its steps per latent, and classifier-free guidance.

    `cfg_scale` s guides as u + s (c - u): 1 is no guidance. `temperature` scales the initial noise.
    """

    __pydantic_config__ = STRICT
    solver: Literal["dpm_solver_pp_2m", "ddim", "ddpm"] = "dpm_solver_pp_2m"
    steps: int = 20
    cfg_scale: float = 1.65
    temperature: float = 1.0

    def problems(self) -> Iterator[Problem]:
        yield from positive(self, "steps", "temperature")
        if self.cfg_scale < 0:
            yield "cfg_scale", f"{self.cfg_scale} is negative; 1 means no guidance"
