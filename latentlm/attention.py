"""Causal grouped-query attention with rotary positions: packed documents, key-value cache.

Shapes: queries (B, H, T, K), keys and values (B, G, L, K) with G groups of heads, T ≤ L.
"""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:  # half a second that a CPU never needs
    from torch.nn.attention.flex_attention import BlockMask

RotaryStyle = Literal["interleaved", "llama"]
Mask: TypeAlias = "Tensor | BlockMask | None"
"""Which keys a query sees beyond causality: nothing, bool (B, 1, T, L), or FlexAttention's."""


class Rotary(NamedTuple):
    """cos and sin of position · frequency, fp32 (T, K/2), or (B, 1, T, K/2) by row."""

    cos: Tensor
    sin: Tensor
    style: RotaryStyle

    def part(self, start: int, stop: int) -> "Rotary":
        """The table of the positions in columns start … stop - 1."""
        return self._replace(cos=self.cos[..., start:stop, :], sin=self.sin[..., start:stop, :])


def rotary_table(positions: Tensor, *, head_width: int, base: float, style: RotaryStyle) -> Rotary:
    """Angles of integer positions (T,) or (B, T) for an even head width.

    The frequencies are base^-u. interleaved: u from 0 to 1 with both ends included, as in the
    official code. llama: u = 0, 2/K, …, without the end.
    """
    half = head_width // 2
    if style == "interleaved":
        exponents = torch.linspace(0.0, 1.0, half, device=positions.device)
    else:
        exponents = torch.arange(half, device=positions.device, dtype=torch.float32) / half
    angles = positions.float().unsqueeze(-1) * base**-exponents
    if positions.ndim == 2:
        angles = angles.unsqueeze(1)
    return Rotary(angles.cos(), angles.sin(), style)


def rotate(x_BHTK: Tensor, rotary: Rotary) -> Tensor:
    """Rotary position embedding (Su et al. 2021).

    interleaved turns the pairs (x₀, x₁), (x₂, x₃), …; llama turns (x₀, x_{K/2}), ….
    """
    x = x_BHTK.float()
    if rotary.style == "llama":
        first, second = x.chunk(2, dim=-1)
    else:
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = (first * rotary.cos - second * rotary.sin, first * rotary.sin + second * rotary.cos)
    if rotary.style == "llama":
        return torch.cat(turned, dim=-1).to(x_BHTK.dtype)
    return torch.stack(turned, dim=-1).flatten(-2).to(x_BHTK.dtype)


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

    def append(self, keys_BGTK: Tensor, values_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Store T more positions; return the keys and values of all positions so far."""
        batch, groups, added, head_width = keys_BGTK.shape
        start, stop = self.length, self.length + added
        if self._keys is None or self._values is None:
            shape = (batch, groups, self.capacity, head_width)
            self._keys, self._values = keys_BGTK.new_empty(shape), values_BGTK.new_empty(shape)
        self._keys[:, :, start:stop] = keys_BGTK
        self._values[:, :, start:stop] = values_BGTK
        self.length = stop
        return self._keys[:, :, :stop], self._values[:, :, :stop]

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but these."""
        if self._keys is not None and self._values is not None:
            self._keys, self._values = self._keys[rows], self._values[rows]


class CausalSelfAttention(nn.Module):
    """Grouped-query attention with rotary positions: `heads` queries share `kv_heads` keys."""

    def __init__(self, *, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        self.head_width = width // heads
        rows = (heads + 2 * kv_heads) * self.head_width
        self.query_key_value = nn.Linear(width, rows, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(
        self, x_BTD: Tensor, rotary: Rotary, *, mask: Mask, cache: KeyValueCache | None
    ) -> Tensor:
        """(B, T, D) → (B, T, D); with a cache, x continues the positions already in it."""
        packed_BHTK = self.query_key_value(x_BTD).unflatten(-1, (-1, self.head_width))
        packed_BHTK = packed_BHTK.transpose(1, 2)
        turned, values = packed_BHTK.split((self.heads + self.kv_heads, self.kv_heads), dim=1)
        queries, keys = rotate(turned, rotary).split((self.heads, self.kv_heads), dim=1)
        if cache is not None:
            keys, values = cache.append(keys, values)
        mixed_BHTK = attend(queries, keys, values, mask=mask)
        return self.output(mixed_BHTK.transpose(1, 2).flatten(2))


def attend(queries: Tensor, keys: Tensor, values: Tensor, *, mask: Mask = None) -> Tensor:
    """Attention (B, H, T, K) of the last T of L positions; causal where no mask is given."""
    grouped = queries.shape[1] != keys.shape[1]
    if mask is not None and not isinstance(mask, Tensor):
        mixed: Tensor = _compiled_flex()(queries, keys, values, block_mask=mask, enable_gqa=grouped)
        return mixed
    count, total = queries.shape[2], keys.shape[2]
    if mask is None and 1 < count < total:
        # is_causal aligns the triangle with the first key, not with the last
        mask = torch.ones(count, total, dtype=torch.bool, device=queries.device)
        mask = mask.tril(total - count)
    return F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None and count > 1,
        enable_gqa=grouped,
    )


def packed_mask(document_BT: Tensor) -> Mask:
    """Position i sees the positions up to i of its own document.

    bool (B, 1, T, T) for SDPA on a CPU, a sparse block mask for FlexAttention elsewhere. Padding
    (document -1) is a document like any other, so that no softmax is empty.
    """
    batch, length = document_BT.shape
    if document_BT.device.type == "cpu":
        same_BTT = document_BT.unsqueeze(2) == document_BT.unsqueeze(1)
        return same_BTT.tril().unsqueeze(1)

    from torch.nn.attention.flex_attention import create_block_mask

    def visible(b: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (document_BT[b, query] == document_BT[b, key])

    return create_block_mask(
        visible, B=batch, H=None, Q_LEN=length, KV_LEN=length, device=document_BT.device.type
    )


@cache
def _compiled_flex() -> Callable[..., Any]:
    """FlexAttention pays only when compiled: once, at first use."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)
