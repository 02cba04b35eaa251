"""Decoding (§2.2): one latent after another, with a key-value cache and guidance.

Rows that are guided get a second stream with the null label, which is fed the same latents; both
kinds of stream share every forward pass.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from latentlm.diffusion.samplers import SOLVERS, guided, guided_rows, sample_x
from latentlm.models.latent_lm import LatentLM
from latentlm.randomness import Draw, RowNoise
from latentlm.settings import SamplerSettings


@torch.inference_mode()
def sample_latents(
    model: LatentLM,
    labels_B: Tensor,
    *,
    cfg_scales_B: Tensor,
    sampler: SamplerSettings,
    noise: RowNoise,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Normalised latents (B, N, Z) fp32 for labels (B,).

    cfg_scales_B (B,) is each row's guidance scale and stands in for `sampler.cfg_scale`; a row of
    scale 1 runs no null stream. labels, scales and noise are on the model's device. `progress` is
    called with (latents done, N). Raises ValueError when labels and scales differ in length.
    """
    if labels_B.shape != cfg_scales_B.shape:
        raise ValueError(
            f"{len(labels_B)} labels came with {len(cfg_scales_B)} guidance scales; give one each"
        )
    settings = model.settings
    steps = SOLVERS[sampler.solver](model.process, steps=sampler.steps)
    twins = guided_rows(cfg_scales_B)
    null_labels = torch.full_like(labels_B[twins], settings.classes)
    timesteps_S = torch.tensor([step.timestep for step in steps], device=labels_B.device)
    embedding_S1D = model.head.embed_timesteps(timesteps_S).unsqueeze(1)

    def sample_latent(condition_BD: Tensor, noise: RowNoise) -> Tensor:
        modulation_SBR = model.head.modulate(condition_BD, embedding_S1D)  # all steps at once

        def denoise(x_BZ: Tensor, index: int) -> Tensor:
            return model.head.denoise(x_BZ, modulation_SBR[index])

        return sample_x(
            guided(denoise, scales_B=cfg_scales_B, rows=twins),
            noise.normal(Draw.INITIAL_NOISE, settings.latent_width) * sampler.temperature,
            steps=steps,
            fresh=lambda i: noise.at(i).normal(Draw.ANCESTRAL_NOISE, settings.latent_width),
        )

    cache = model.backbone.new_cache(capacity=settings.latent_count, device=labels_B.device)
    x_B1D = model.embed_labels(torch.cat((labels_B, null_labels)))
    latents = []
    for position in range(settings.latent_count):
        condition_BD = model.head.condition(model.hidden_next(x_B1D, cache=cache))
        latent_BZ = sample_latent(condition_BD, noise.at(position))
        latents.append(latent_BZ)
        x_B1D = model.embed_latent(torch.cat((latent_BZ, latent_BZ[twins])))
        if progress is not None:
            progress(position + 1, settings.latent_count)
    return torch.stack(latents, dim=1)
