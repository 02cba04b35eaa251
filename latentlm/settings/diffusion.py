"""Settings of the diffusion process (§2.1) and of its sampler."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Literal

from latentlm.settings.rules import STRICT, Problem, positive

Solver = Literal["dpm_solver_pp_2m", "ddim", "ddpm", "euler", "heun"]


@dataclass(frozen=True, kw_only=True)
class DiffusionSettings:
    """Forward process and target. The paper's images: DDPM, 1,000 steps, cosine, v-prediction.

    `ddpm` has `timesteps` levels of a `schedule`; `flow` is the straight path
    x_t = (1 - t) x₀ + t ε, whose network predicts the velocity ε - x₀. `timestep_law` weighs the
    noise levels of training (logit-normal: flow alone), `timestep_draw` says how the several
    draws of one latent are spread: each by itself, one in each stratum, or in mirrored pairs.
    """

    __pydantic_config__ = STRICT
    process: Literal["ddpm", "flow"] = "ddpm"
    schedule: Literal["cosine", "linear"] = "cosine"
    prediction: Literal["v", "epsilon", "x0", "velocity"] = "v"
    timesteps: int = 1000
    timestep_law: Literal["uniform", "logit_normal"] = "uniform"
    timestep_draw: Literal["independent", "stratified", "antithetic"] = "independent"

    def problems(self) -> Iterator[Problem]:
        if self.timesteps < 2:
            yield "timesteps", f"{self.timesteps} is too few; a process has at least 2 timesteps"
        if self.process == "flow" and self.prediction == "v":
            yield "prediction", "v belongs to ddpm; flow predicts velocity, x0 or epsilon"
        if self.process == "ddpm" and self.prediction == "velocity":
            yield "prediction", "velocity belongs to flow; ddpm predicts v, epsilon or x0"
        if self.process == "ddpm" and self.timestep_law == "logit_normal":
            yield "timestep_law", "logit_normal belongs to flow; ddpm draws uniform timesteps"


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """How latents are drawn: solver, its steps per latent, and classifier-free guidance.

    `cfg_scale` s guides as u + s (c - u): 1 is no guidance. `guidance_interval` are the noise
    levels, as fractions of the process from data (0) to noise (1), at which it applies;
    `guidance_schedule` lets s - 1 rise from 0 (MAR) or fall to 0 along the latents of an item.
    `temperature` scales the initial noise.
    """

    __pydantic_config__ = STRICT
    solver: Solver = "dpm_solver_pp_2m"
    steps: int = 20
    cfg_scale: float = 1.65
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_schedule: Literal["constant", "rising", "falling"] = "constant"
    temperature: float = 1.0

    def problems(self) -> Iterator[Problem]:
        yield from positive(self, "steps", "temperature")
        if not 0 <= self.cfg_scale < inf:
            yield "cfg_scale", f"{self.cfg_scale} is no number from 0 up; 1 means no guidance"
        low, high = self.guidance_interval
        if not 0 <= low < high <= 1:
            yield "guidance_interval", f"[{low:g}, {high:g}] is no part of [0, 1] from low to high"

    def problems_with(self, diffusion: DiffusionSettings) -> Iterator[Problem]:
        """What this sampler asks of a process that it cannot give."""
        if diffusion.process == "ddpm" and self.steps > diffusion.timesteps:
            yield (
                "steps",
                f"{self.steps} is more than the process has; give 1 to {diffusion.timesteps}",
            )


@dataclass(frozen=True, kw_only=True)
class TextSamplerSettings:
    """How text tokens are drawn (Eq. 1): `temperature` 0 takes the likeliest one.

    `top_k` keeps the k likeliest, `top_p` the fewest that together reach probability p.
    """

    __pydantic_config__ = STRICT
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def problems(self) -> Iterator[Problem]:
        if self.temperature < 0:
            yield "temperature", f"{self.temperature} is negative; 0 takes the likeliest token"
        if self.top_k is not None:
            yield from positive(self, "top_k")
        if not 0 < self.top_p <= 1:
            yield "top_p", f"{self.top_p} is no probability above 0 and up to 1"
