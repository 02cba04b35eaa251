"""The peer of training: transformers' Llama with a diffusion head trained the way MAR trains its.

What one would write with public parts: `LlamaModel` on packed rows (it finds the documents by
their positions), logits of every position into cross-entropy with ignore_index, and MAR's
diffusion loss: conditions and targets of all positions repeated four times, errors masked
afterwards. transformers' own VibeVoice loss is no peer: its timesteps, noise and shift are wrong.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from latentlm.diffusion.process import DiffusionProcess
from latentlm.sequence import LATENT, PADDING, PackedBatch
from latentlm.settings import LatentLMSettings
from latentlm_platform.benchmarks.peers_scheduler import new_head
from latentlm_platform.benchmarks.weights import (
    Weights,
    backbone_weights,
    draw_weights,
    head_weights,
)

IGNORED = -100


class Draws(NamedTuple):
    """Times (P M,) and noise (P M, Z) of all P positions, copy by copy."""

    times: Tensor
    epsilon: Tensor


class LlamaMarPeer(nn.Module):
    """Embeddings, Llama, a linear head of words and VibeVoice's diffusion head."""

    def __init__(self, settings: LatentLMSettings, *, draws: int) -> None:
        super().__init__()
        vocabulary, width = settings.vocabulary or 0, settings.width
        self.draws, self.process = draws, DiffusionProcess(settings.diffusion)
        self.embedding = nn.Embedding(vocabulary, width)
        self.projection = nn.Linear(settings.latent_width, width, bias=False)
        self.llama = _llama(settings)
        self.words = nn.Linear(width, vocabulary, bias=False)
        self.head = new_head(
            width=width,
            latent_width=settings.latent_width,
            depth=settings.head.depth,
            ffn_width=settings.head.ffn_width,
        )
        draw_weights(self)

    def forward(self, batch: PackedBatch, given: Draws | None = None) -> tuple[Tensor, Tensor]:
        """Means (ℒ_Diff, ℒ_LM) over latents and words; `given` stands in for random draws."""
        ids, latents = batch.ids_BT[:, :-1], batch.latents_BTZ[:, :-1]
        is_latent = (ids == LATENT).unsqueeze(-1)
        embedded = torch.where(
            is_latent, self.projection(latents), self.embedding(ids.clamp(min=0))
        )
        hidden = self.llama(
            inputs_embeds=embedded, position_ids=batch.position_BT[:, :-1], use_cache=False
        ).last_hidden_state
        document, next_ids = batch.document_BT, batch.ids_BT[:, 1:]
        predicted = (document[:, 1:] == document[:, :-1]) & (document[:, 1:] != PADDING)
        predicted = predicted & batch.scored_BT[:, 1:]
        labels = next_ids.masked_fill(~predicted | (next_ids == LATENT), IGNORED)
        words = F.cross_entropy(
            self.words(hidden).float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED
        )
        mask = (predicted & (next_ids == LATENT)).flatten()
        targets = batch.latents_BTZ[:, 1:].flatten(0, 1)
        return self._diffusion(hidden.flatten(0, 1), targets, mask, given), words

    def _diffusion(
        self, hidden: Tensor, targets: Tensor, mask: Tensor, given: Draws | None
    ) -> Tensor:
        hidden, targets = hidden.repeat(self.draws, 1), targets.repeat(self.draws, 1)
        mask = mask.repeat(self.draws)
        if given is None:
            times = torch.randint(self.process.settings.timesteps, (len(targets),))
            given = Draws(times, torch.randn_like(targets))
        noisy = self.process.noised(targets, given.times, epsilon=given.epsilon)
        prediction = self.head(noisy, given.times.float(), condition=hidden)
        wanted = self.process.target(targets, given.times, epsilon=given.epsilon)
        errors = (prediction.float() - wanted).square().mean(dim=-1)
        return (errors * mask).sum() / mask.sum()

    def weights_for_ours(self) -> Weights:
        """These weights under the names of `LatentLM`."""
        last_norm = self.llama.norm.weight.detach().clone()
        return {
            "token_embedding.weight": self.embedding.weight.detach().clone(),
            "latent_projection.weight": self.projection.weight.detach().clone(),
            "softmax_head.weight": self.words.weight.detach().clone(),
            "softmax_head.norm.weight": last_norm,
            "head.condition_norm.weight": last_norm,
            **backbone_weights(self.llama.layers),
            **head_weights(self.head),
        }


def _llama(settings: LatentLMSettings) -> Any:
    """Llama without its embedding: what it sees comes from outside."""
    config = LlamaConfig(
        vocab_size=8,  # its own embedding is not used
        hidden_size=settings.width,
        num_hidden_layers=settings.depth,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads or settings.heads,
        intermediate_size=settings.ffn_width,
        rms_norm_eps=settings.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_base},
        pad_token_id=None,
    )
    llama: Any = LlamaModel(config)
    del llama.embed_tokens
    return llama
