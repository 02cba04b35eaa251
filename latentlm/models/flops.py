"""Floating-point operations of a training step, counted from a model's own weights."""

import torch

from latentlm.models.code_lm import flops_of_codes
from latentlm.models.dit import flops_per_image
from latentlm.models.latent_lm import LatentLM
from latentlm.settings import CodeLMSettings, DiTSettings, LatentLMSettings, ModelSettings


def flops_per_sequence(
    settings: LatentLMSettings,
    *,
    positions: int,
    latents: int,
    words: int,
    timesteps_per_token: int,
) -> int:
    """FLOPs, forward and backward, of one document: `latents` and `words` of it are predicted.

    Convention: a product by an (m, n) matrix is 2 m n forward and twice that backward, so 6 per
    weight and row; embeddings, norms and activations are free. The backbone's weights meet every
    position, the head's every timestep of every latent, the softmax head's every word. Attention
    adds 12 T² D per layer: scores and mixture of all T² pairs, although a causal kernel may skip
    half (the convention of PaLM, appendix B). Recomputed activations do not count.
    """
    with torch.device("meta"):
        model = LatentLM(settings)
    products = 0
    for name, parameter in model.named_parameters():
        if name.startswith(("class_embedding", "token_embedding")):
            rows = 0
        elif name.startswith("softmax_head"):
            rows = words
        elif name.startswith("head.condition_projection"):
            rows = latents
        elif name.startswith("head."):
            rows = latents * timesteps_per_token
        else:
            rows = positions
        products += 6 * parameter.numel() * rows
    return products + 12 * positions**2 * settings.width * settings.depth


def flops_per_item(settings: ModelSettings, timesteps_per_token: int) -> int:
    """FLOPs, forward and backward, of one image of a class-conditional model.

    LatentLM's backbone sees an image once, a DiT sees it anew at each of its timesteps; codes have
    no timesteps.
    """
    if isinstance(settings, DiTSettings):
        return timesteps_per_token * flops_per_image(settings)
    if isinstance(settings, CodeLMSettings):
        return flops_of_codes(settings)
    count = settings.latent_count or 0
    return flops_per_sequence(
        settings,
        positions=count,
        latents=count,
        words=0,
        timesteps_per_token=timesteps_per_token,
    )
