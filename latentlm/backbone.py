"""The causal Transformer of §2: embeddings in, hidden states h out."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentlm.attention import (
    CausalSelfAttention,
    KeyValueCache,
    Mask,
    Rotary,
    packed_mask,
    rotary_table,
)
from latentlm.layers import RMSNorm, SwiGLU
from latentlm.settings import CodeLMSettings, LatentLMSettings


class BackboneCache:
    """What decoding keeps between calls: every layer's keys and values, and each row's padding.

    Prompts of different lengths stand flush right: row b has `padding_B[b]` empty columns before
    its first position, which nobody sees. Without padding no mask is needed.
    """

    def __init__(self, *, capacity: int, layers: int, rotary: Rotary, padding_B: Tensor | None):
        self.rotary = rotary
        self.padding_B = padding_B
        self.columns = torch.arange(capacity, device=rotary.cos.device)
        self.layers = [KeyValueCache(capacity=capacity) for _ in range(layers)]

    @property
    def length(self) -> int:
        """Columns decoded so far."""
        return self.layers[0].length

    def mask(self, count: int) -> Tensor | None:
        """bool (B, 1, count, length + count): causal, without the padding; None where not needed.

        A column of padding sees itself, so that no softmax is empty.
        """
        if self.padding_B is None:
            return None
        start, stop = self.length, self.length + count
        queries, keys = self.columns[start:stop, None], self.columns[None, :stop]
        real_B1L = keys >= self.padding_B[:, None, None]
        return ((keys <= queries) & (real_B1L | (keys == queries))).unsqueeze(1)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        if self.padding_B is not None:
            self.padding_B = self.padding_B[rows]
            self.rotary = self.rotary._replace(cos=self.rotary.cos[rows], sin=self.rotary.sin[rows])
        for layer in self.layers:
            layer.keep(rows)


class BackboneLayer(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x))."""

    def __init__(self, settings: LatentLMSettings | CodeLMSettings) -> None:
        super().__init__()
        width, eps = settings.width, settings.norm_eps
        learned = width if settings.norm == "learned" else None
        self.attention_norm = RMSNorm(eps=eps, learned_width=learned)
        self.attention = CausalSelfAttention(
            width=width, heads=settings.heads, kv_heads=settings.kv_heads or settings.heads
        )
        self.feedforward_norm = RMSNorm(eps=eps, learned_width=learned)
        self.feedforward = SwiGLU(width=width, ffn_width=settings.ffn_width)

    def forward(
        self, x_BTD: Tensor, rotary: Rotary, mask: Mask = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotary, mask=mask, cache=cache)
        return x_BTD + self.feedforward(self.feedforward_norm(x_BTD))


class Backbone(nn.Module):
    """`depth` pre-norm layers. The last norm belongs to the heads that read the hidden states.

    `recompute` keeps only each layer's input for the backward pass (activation checkpointing).
    """

    def __init__(self, settings: LatentLMSettings | CodeLMSettings) -> None:
        super().__init__()
        self.settings = settings
        self.recompute = False
        self.layers = nn.ModuleList(BackboneLayer(settings) for _ in range(settings.depth))

    def forward(
        self,
        x_BTD: Tensor,
        *,
        document_BT: Tensor | None = None,
        position_BT: Tensor | None = None,
    ) -> Tensor:
        """Embeddings (B, T, D) → hidden states (B, T, D); position i sees positions ≤ i.

        With document_BT and position_BT, rows are packed: a position sees its own document only,
        and is turned by its position there.
        """
        if position_BT is None:
            position_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device)
        rotary = self.rotary(position_BT)
        mask = None if document_BT is None else packed_mask(document_BT)
        for layer in self.layers:
            if self.recompute and self.training:
                # what is recomputed under ZeRO-3 has other metadata while weights are away
                x_BTD = checkpoint(
                    layer, x_BTD, rotary, mask, use_reentrant=False, determinism_check="none"
                )
            else:
                x_BTD = layer(x_BTD, rotary, mask)
        return x_BTD

    def extend(self, x_BTD: Tensor, *, cache: BackboneCache) -> Tensor:
        """Hidden states (B, T, D) of the T positions that follow those in the cache.

        Raises ValueError where they do not fit it.
        """
        count = x_BTD.shape[1]
        if cache.length + count > len(cache.columns):
            raise ValueError(
                f"position {cache.length + count} does not fit a cache of {len(cache.columns)}"
                " positions; make it with a larger capacity"
            )
        rotary = cache.rotary.part(cache.length, cache.length + count)
        mask = cache.mask(count)
        for layer, kept in zip(self.layers, cache.layers, strict=True):
            x_BTD = layer(x_BTD, rotary, mask, kept)
        return x_BTD

    def rotary(self, positions: Tensor) -> Rotary:
        """The rotary table of integer positions (T,) or (B, T)."""
        settings = self.settings
        return rotary_table(
            positions,
            head_width=settings.width // settings.heads,
            base=settings.rope_base,
            style=settings.rotary,
        )

    def new_cache(
        self, *, capacity: int, device: torch.device, padding_B: Tensor | None = None
    ) -> BackboneCache:
        """An empty cache for rows of up to `capacity` columns, padding included."""
        columns = torch.arange(capacity, device=device)
        if padding_B is not None:
            columns = (columns[None] - padding_B[:, None]).clamp(min=0)
        return BackboneCache(
            capacity=capacity,
            layers=len(self.layers),
            rotary=self.rotary(columns),
            padding_B=padding_B,
        )
