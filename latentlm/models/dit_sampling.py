"""Sampling of a Diffusion Transformer: the solver moves all latents of an image at once.

Solvers, guidance and noise are those of LatentLM's head, so that a latent starts from the same
noise in both models; what differs is that one solver loop serves the whole image.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from latentlm.diffusion.samplers import (
    Watch,
    guided,
    guided_rows,
    guided_steps,
    sample_x,
    solver_table,
)
from latentlm.models.dit import DiT
from latentlm.randomness import Draw, RowNoise
from latentlm.settings import SamplerSettings


def sample_all_latents(
    model: DiT,
    labels_B: Tensor,
    *,
    cfg_scales_B: Tensor,
    sampler: SamplerSettings,
    noise: RowNoise,
    progress: Callable[[int, int], None] | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Normalised latents (B, N, Z) fp32 for labels (B,), as `latentlm.generate.sample_latents`.

    `progress` is called with (evaluations done, of how many), `watch` with the solver's states
    (B, N, Z). Raises ValueError for a guidance
    schedule along latents, which here have no order.
    """
    if sampler.guidance_schedule != "constant":
        raise ValueError(
            f"sample.guidance_schedule = {sampler.guidance_schedule} follows latents one after"
            " another; a dit draws all at once: choose constant"
        )
    table = solver_table(model.process, sampler)
    times = [step.time for step in table]
    active_S = guided_steps(
        times,
        process_timesteps=model.process.settings.timesteps,
        interval=sampler.guidance_interval,
    )
    scales_SB = cfg_scales_B.expand(len(table), -1)  # where a step is not active none is read
    twins = guided_rows(cfg_scales_B)
    null_R = torch.full_like(labels_B[twins], model.settings.classes)
    labels_P = torch.cat((labels_B, null_R))
    shape = (model.settings.latent_count, model.settings.latent_width)
    own = _by_latent(noise, count=shape[0], device=labels_B.device)

    def denoise(x_PW: Tensor, index: int) -> Tensor:
        rows = len(x_PW)  # without the twins where a step is not guided
        times_P = torch.full((rows,), times[index], device=x_PW.device)
        prediction_PNZ = model.denoise(x_PW.unflatten(1, shape), times_P, labels_B=labels_P[:rows])
        if progress is not None:
            progress(index + 1, len(table))
        return prediction_PNZ.flatten(1)

    def drawn(rows: RowNoise, draw: Draw) -> Tensor:
        return rows.normal(draw, shape[1]).reshape(len(labels_B), -1)

    latents_BW = sample_x(
        guided(denoise, scales_SB=scales_SB, rows=twins, active_S=active_S),
        drawn(own, Draw.INITIAL_NOISE) * sampler.temperature,
        steps=table,
        fresh=lambda index: drawn(own.at(index), Draw.ANCESTRAL_NOISE),
        watch=watch and (lambda x_BW: watch(x_BW.unflatten(1, shape))),
    )
    return latents_BW.unflatten(1, shape)


def _by_latent(noise: RowNoise, *, count: int, device: torch.device) -> RowNoise:
    """The noise of each latent of each row: keyed by its position behind the label."""
    rows = torch.arange(len(noise), device=device)
    positions = torch.arange(1, count + 1, device=device)
    return noise.rows(rows.repeat_interleave(count)).at(positions.repeat(len(noise)))
