"""Floating-point operations of a training step, counted from a model's own weights."""

from typing import NamedTuple

import torch

from latentlm.models.code_lm import flops_of_codes
from latentlm.models.dit import flops_per_image
from latentlm.models.latent_lm import LatentLM
from latentlm.settings import CodeLMSettings, DiTSettings, LatentLMSettings, ModelSettings


class FlopLaw(NamedTuple):
    """FLOPs, forward and backward, that each thing in a batch costs a model.

    Convention: a product by an (m, n) matrix is 2 m n forward and twice that backward, so 6 per
    weight and row; embeddings, norms and activations are free. The backbone's weights meet every
    position, the head's every timestep of every latent, the softmax head's every word. Attention
    adds 12 T² D per layer: scores and mixture of all T² pairs of a document, although a causal
    kernel may skip half (the convention of PaLM, appendix B). Recomputed activations do not count.
    """

    item: int = 0
    position: int = 0
    latent: int = 0
    word: int = 0
    pair: int = 0

    def of(
        self, *, items: float, positions: float, latents: float, words: float, pairs: float
    ) -> float:
        """FLOPs of a batch: documents, positions, predicted latents and words, and the sum of the
        squares of its documents' lengths."""
        counts = (items, positions, latents, words, pairs)
        return sum(cost * count for cost, count in zip(self, counts, strict=True))


def flop_law(settings: ModelSettings, timesteps_per_token: int) -> FlopLaw:
    """What a batch of this model costs; a model that sees an item as a whole is charged by item."""
    if isinstance(settings, DiTSettings):
        return FlopLaw(item=timesteps_per_token * flops_per_image(settings))
    if isinstance(settings, CodeLMSettings):
        return FlopLaw(item=flops_of_codes(settings))
    with torch.device("meta"):
        model = LatentLM(settings)
    position = latent = word = 0
    for name, parameter in model.named_parameters():
        cost = 6 * parameter.numel()
        if name.startswith(("class_embedding", "token_embedding")):
            continue
        if name.startswith("softmax_head"):
            word += cost
        elif name.startswith("head.condition_projection"):
            latent += cost
        elif name.startswith("head."):
            latent += cost * timesteps_per_token
        else:
            position += cost
    return FlopLaw(0, position, latent, word, 12 * settings.width * settings.depth)


def flops_per_sequence(
    settings: LatentLMSettings,
    *,
    positions: int,
    latents: int,
    words: int,
    timesteps_per_token: int,
) -> int:
    """FLOPs, forward and backward, of one document: `latents` and `words` of it are predicted."""
    law = flop_law(settings, timesteps_per_token)
    counts = {"positions": positions, "latents": latents, "words": words, "pairs": positions**2}
    return int(law.of(items=1, **counts))


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
