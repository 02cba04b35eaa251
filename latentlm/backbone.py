"""The causal Transformer of §2: latents' embeddings in, hidden states h out."""

import torch
from torch import Tensor, nn

from latentlm.layers import (
    CausalSelfAttention,
    KeyValueCache,
    RMSNorm,
    Rotary,
    SwiGLU,
    rotary_table,
)


class BackboneCache:
    """What decoding keeps between calls: every layer's keys and values, and the rotary table."""

    def __init__(self, *, rotary: Rotary, layers: list[KeyValueCache]) -> None:
        self.rotary = rotary
        self.layers = layers

    @property
    def length(self) -> int:
        """Positions decoded so far."""
        return self.layers[0].length


class BackboneLayer(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x))."""

    def __init__(
        self, *, width: int, heads: int, kv_heads: int, ffn_width: int, norm_eps: float
    ) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(eps=norm_eps)
        self.attention = CausalSelfAttention(width=width, heads=heads, kv_heads=kv_heads)
        self.feedforward_norm = RMSNorm(eps=norm_eps)
        self.feedforward = SwiGLU(width=width, ffn_width=ffn_width)

    def forward(self, x_BTD: Tensor, rotary: Rotary, *, cache: KeyValueCache | None) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotary, cache=cache)
        return x_BTD + self.feedforward(self.feedforward_norm(x_BTD))


class Backbone(nn.Module):
    """`depth` pre-norm layers. The last norm belongs to the head that reads the hidden states."""

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        kv_heads: int,
        ffn_width: int,
        rope_base: float,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.head_width = width // heads
        self.rope_base = rope_base
        self.layers = nn.ModuleList(
            BackboneLayer(
                width=width,
                heads=heads,
                kv_heads=kv_heads,
                ffn_width=ffn_width,
                norm_eps=norm_eps,
            )
            for _ in range(depth)
        )

    def forward(self, x_BTD: Tensor, *, cache: BackboneCache | None = None) -> Tensor:
        """Embeddings (B, T, D) → hidden states (B, T, D); position i sees positions ≤ i.

        With a cache, x holds the T positions that follow the `cache.length` already decoded.
        """
        count = x_BTD.shape[1]
        if cache is None:
            rotary = self.rotary(count, device=x_BTD.device)
        else:
            rotary = cache.rotary.part(cache.length, cache.length + count)
        for index, layer in enumerate(self.layers):
            x_BTD = layer(x_BTD, rotary, cache=cache.layers[index] if cache is not None else None)
        return x_BTD

    def rotary(self, length: int, *, device: torch.device) -> Rotary:
        """The rotary table of positions 0 … length - 1."""
        return rotary_table(
            length=length, head_width=self.head_width, base=self.rope_base, device=device
        )

    def new_cache(self, *, capacity: int, device: torch.device) -> BackboneCache:
        """An empty cache for sequences of up to `capacity` positions."""
        return BackboneCache(
            rotary=self.rotary(capacity, device=device),
            layers=[KeyValueCache(capacity=capacity) for _ in self.layers],
        )
