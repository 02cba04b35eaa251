"""The law of the noise levels at which the head trains, and how one latent's draws are spread.

In come uniform numbers, so that the randomness stays with its owner (`RowNoise.uniform`); out go
times of the process. Every spread keeps the law of each single draw; stratified and antithetic
draws of one latent depend on each other, which lowers the variance of their mean.
"""

import torch
from torch import Tensor

from latentlm.settings import DiffusionSettings

HALF_STEP = 2.0**-25  # uniforms are multiples of 2⁻²⁴; their middles have no 0 and mirror exactly


def draw_times(uniforms: Tensor, *, settings: DiffusionSettings) -> Tensor:
    """M training times for each latent, in the shape (…, M) of fp32 uniforms in [0, 1).

    ddpm: int64, each of 0 … T - 1 equally likely. flow: fp32 in [0, T], uniform, or T sigmoid(z)
    with z standard normal (Esser et al. 2024, §3.1, location 0 and scale 1).
    """
    if uniforms.dtype != torch.float32:
        raise ValueError(f"uniforms are {uniforms.dtype}; draw_times needs torch.float32 in [0, 1)")
    spread = _spread(uniforms.double() + HALF_STEP, settings=settings)
    if settings.process == "ddpm":
        return (spread * settings.timesteps).long()
    if settings.timestep_law == "logit_normal":
        spread = torch.special.ndtri(spread).sigmoid()
    return (spread * settings.timesteps).float()


def _spread(uniforms: Tensor, *, settings: DiffusionSettings) -> Tensor:
    """(…, M) independent numbers in (0, 1) → as many there, spread as `timestep_draw` says."""
    count = uniforms.shape[-1]
    match settings.timestep_draw:
        case "independent":
            return uniforms
        case "stratified":
            return (torch.arange(count, device=uniforms.device) + uniforms) / count
        case "antithetic":  # an odd one out stays alone
            first = uniforms[..., : (count + 1) // 2]
            return torch.cat((first, 1.0 - first[..., : count // 2]), dim=-1)
