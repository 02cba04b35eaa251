"""The diffusion head for decoding on a CPU: the same function with packed weights.

SiLU and the product of gate and up happen inside the matrix products, and the 1 of every 1 + scale
is added once a latent.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latentlm.diffusion.head import DiffusionHead
from latentlm.packed_linear import pack_weight, packable, packed_product


class PackedHead:
    """A `DiffusionHead` whose `condition`, `modulate` and `denoise` read packed copies."""

    def __init__(self, head: DiffusionHead) -> None:
        self.head, self.width = head, head.condition_projection.in_features
        self.projection = pack_weight(head.noisy_projection.weight)
        self.modulation = pack_weight(head.modulation.weight)
        self.output = pack_weight(head.output.weight)
        self.feedforwards = [_pack_feedforward(block) for block in head.blocks]

    def condition(self, hidden_PD: Tensor) -> Tensor:
        """As the head's."""
        return self.head.condition(hidden_PD)

    def modulate(self, condition_PD: Tensor, embedding_S1D: Tensor) -> Tensor:
        """As the head's, but with 1 added to every scale, which each use of it would add."""
        mixed_SPD = F.silu(condition_PD + embedding_S1D)
        modulation = packed_product(mixed_SPD.flatten(0, -2), self.modulation)
        parts = modulation.unflatten(-1, (-1, self.width))
        for scale in [*range(1, parts.shape[1] - 2, 3), parts.shape[1] - 1]:
            parts[:, scale].add_(1.0)
        return modulation.unflatten(0, mixed_SPD.shape[:-1])

    def denoise(self, x_PZ: Tensor, modulation_PR: Tensor) -> Tensor:
        """As the head's, for a modulation of this `modulate`."""
        parts = modulation_PR.split(self.width, dim=-1)
        x_PD = packed_product(x_PZ, self.projection)
        for index, (gate, up, down) in enumerate(self.feedforwards):
            shift, scale, weight = parts[3 * index : 3 * index + 3]
            seen_PD = _modulated(x_PD, self.head.blocks[index].norm, shift=shift, scale=scale)
            inner = packed_product(seen_PD, gate, activation="swish")
            inner = torch.ops.mkldnn._linear_pointwise.binary(seen_PD, inner, up, None, "mul")
            x_PD = torch.addcmul(x_PD, weight, packed_product(inner, down))
        shift, scale = parts[-2:]
        seen_PD = _modulated(x_PD, self.head.final_norm, shift=shift, scale=scale)
        return packed_product(seen_PD, self.output)


def decoding_head(head: DiffusionHead) -> DiffusionHead | PackedHead:
    """The head as decoding should use it: packed, where that is possible."""
    return PackedHead(head) if packable(head) else head


def _pack_feedforward(block: Any) -> tuple[Tensor, Tensor, Tensor]:
    gate, up = block.feedforward.gate_and_up.weight.chunk(2)
    return pack_weight(gate), pack_weight(up), pack_weight(block.feedforward.down.weight)


def _modulated(x: Tensor, norm: Any, *, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.rms_norm(x, x.shape[-1:], norm.weight, eps=norm.eps), scale)
