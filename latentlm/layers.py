"""Layers that the backbone and the diffusion head share: RMSNorm, SwiGLU, rotary attention.

None has a bias or a learnable norm scale, as in the official code of the paper. Every parameter
is read only inside the forward of the module that owns it, which is what ZeRO-3 needs.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / √(mean x² + eps) over the last dimension, without a scale, computed in fp32."""

    def __init__(self, *, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)), Shazeer 2020; gate and up are one matrix."""

    def __init__(self, *, width: int, ffn_width: int) -> None:
        super().__init__()
        self.gate_and_up = nn.Linear(width, 2 * ffn_width, bias=False)
        self.down = nn.Linear(ffn_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_and_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Rotary(NamedTuple):
    """cos and sin of position · frequency, fp32 (T, K / 2)."""

    cos: Tensor
    sin: Tensor

    def part(self, start: int, stop: int) -> "Rotary":
        """The table of positions start … stop - 1."""
        return Rotary(self.cos[start:stop], self.sin[start:stop])


def rotary_table(*, length: int, head_width: int, base: float, device: torch.device) -> Rotary:
    """Angles of positions 0 … length - 1 for an even head width.

    The frequencies are base^-u, u from 0 to 1 with both ends included, as in the official code;
    Llama's leave out the end.
    """
    exponents = torch.linspace(0.0, 1.0, head_width // 2, device=device)
    positions = torch.arange(length, device=device, dtype=torch.float32)
    angles = torch.outer(positions, base**-exponents)
    return Rotary(angles.cos(), angles.sin())


def rotate(x_BHTK: Tensor, rotary: Rotary) -> Tensor:
    """Rotary position embedding (Su et al. 2021) on interleaved pairs (x₀, x₁), (x₂, x₃), …"""
    even, odd = x_BHTK.float().unflatten(-1, (-1, 2)).unbind(-1)
    pairs = (even * rotary.cos - odd * rotary.sin, even * rotary.sin + odd * rotary.cos)
    return torch.stack(pairs, dim=-1).flatten(-2).to(x_BHTK.dtype)


class KeyValueCache:
    """Keys and values of one attention layer, written in place.

    The buffers for `capacity` positions are allocated by the first call, which knows batch,
    precision (autocast included) and device.
    """

    def __init__(self, *, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, keys_BHTK: Tensor, values_BHTK: Tensor) -> tuple[Tensor, Tensor]:
        """Store T more positions; return the keys and values of all positions so far."""
        batch, heads, added, head_width = keys_BHTK.shape
        start, stop = self.length, self.length + added
        if stop > self.capacity:
            raise ValueError(f"position {stop} does not fit a cache of {self.capacity} positions")
        if self._keys is None or self._values is None:
            shape = (batch, heads, self.capacity, head_width)
            self._keys, self._values = keys_BHTK.new_empty(shape), values_BHTK.new_empty(shape)
        self._keys[:, :, start:stop] = keys_BHTK
        self._values[:, :, start:stop] = values_BHTK
        self.length = stop
        return self._keys[:, :, :stop], self._values[:, :, :stop]


class CausalSelfAttention(nn.Module):
    """Grouped-query attention with rotary positions: `heads` queries share `kv_heads` keys."""

    def __init__(self, *, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        self.head_width = width // heads
        rows = (heads + 2 * kv_heads) * self.head_width
        self.query_key_value = nn.Linear(width, rows, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD: Tensor, rotary: Rotary, *, cache: KeyValueCache | None) -> Tensor:
        """(B, T, D) → (B, T, D); with a cache, x continues the positions already in it."""
        packed_BHTK = self.query_key_value(x_BTD).unflatten(-1, (-1, self.head_width))
        packed_BHTK = packed_BHTK.transpose(1, 2)
        turned, values = packed_BHTK.split((self.heads + self.kv_heads, self.kv_heads), dim=1)
        queries, keys = rotate(turned, rotary).split((self.heads, self.kv_heads), dim=1)
        if cache is not None:
            keys, values = cache.append(keys, values)
        mixed_BHTK = attend(queries, keys, values)
        return self.output(mixed_BHTK.transpose(1, 2).flatten(2))


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal attention of the last T of L positions: (B, H, T, K), (B, G, L, K) → (B, H, T, K)."""
    count, total = queries.shape[2], keys.shape[2]
    mask = None
    if 1 < count < total:  # is_causal aligns the triangle with the first key, not with the last
        mask = torch.ones(count, total, dtype=torch.bool, device=queries.device)
        mask = mask.tril(total - count)
    return F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=mask,
        is_causal=1 < count == total,
        enable_gqa=queries.shape[1] != keys.shape[1],
    )
