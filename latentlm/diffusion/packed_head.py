"""The diffusion head for decoding on a CPU: the same function, its weights laid out once.

The head sees the same few rows tens of times for each latent. A plain product of so few rows spends
much of its time rearranging the weights; here oneDNN rearranges them once, and SiLU and the product
of gate and up happen inside the matrix products. These are the kernels that torch.compile reaches
with freezing, without waiting for a compiler.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latentlm.diffusion.head import DiffusionHead
from latentlm.layers import RMSNorm

ROWS_HINT = 64  # the layout is chosen for about so many rows; others work as well


class PackedHead:
    """A `DiffusionHead` whose `condition`, `modulate` and `denoise` read packed copies."""

    def __init__(self, head: DiffusionHead) -> None:
        self.head, self.width = head, head.condition_projection.in_features
        self.projection = _packed(head.noisy_projection.weight)
        self.modulation = _packed(head.modulation.weight)
        self.output = _packed(head.output.weight)
        self.feedforwards = [_packed_feedforward(block) for block in head.blocks]

    def condition(self, hidden_PD: Tensor) -> Tensor:
        """As the head's."""
        return self.head.condition(hidden_PD)

    def modulate(self, condition_PD: Tensor, embedding_S1D: Tensor) -> Tensor:
        """As the head's, but with 1 added to every scale, which each use of it would add."""
        mixed_SPD = F.silu(condition_PD + embedding_S1D)
        modulation = _product(mixed_SPD.flatten(0, -2), self.modulation)
        parts = modulation.unflatten(-1, (-1, self.width))
        for scale in [*range(1, parts.shape[1] - 2, 3), parts.shape[1] - 1]:
            parts[:, scale].add_(1.0)
        return modulation.unflatten(0, mixed_SPD.shape[:-1])

    def denoise(self, x_PZ: Tensor, modulation_PR: Tensor) -> Tensor:
        """As the head's, for a modulation of this `modulate`."""
        parts = modulation_PR.split(self.width, dim=-1)
        x_PD = _product(x_PZ, self.projection)
        for index, (gate, up, down) in enumerate(self.feedforwards):
            shift, scale, weight = parts[3 * index : 3 * index + 3]
            seen_PD = torch.addcmul(shift, _normed(x_PD, self.head.blocks[index].norm), scale)
            inner = _product(seen_PD, gate, activation="swish")
            inner = torch.ops.mkldnn._linear_pointwise.binary(seen_PD, inner, up, None, "mul")
            x_PD = torch.addcmul(x_PD, weight, _product(inner, down))
        shift, scale = parts[-2:]
        return _product(
            torch.addcmul(shift, _normed(x_PD, self.head.final_norm), scale), self.output
        )


def decoding_head(head: DiffusionHead) -> DiffusionHead | PackedHead:
    """The head, packed where that is possible: fp32 weights on a CPU, whole and not autocast.

    Under ZeRO-3 a rank holds no whole weights between forward passes; then it is the head itself.
    """
    weights = [p for p in head.parameters() if p.ndim > 1 or not p.numel()]
    whole = all(p.ndim == 2 and p.dtype == torch.float32 for p in weights)
    on_cpu = all(p.device.type == "cpu" for p in weights)
    if not (whole and on_cpu and torch.backends.mkldnn.is_available()):
        return head
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return head
    return PackedHead(head)


def _packed_feedforward(block: Any) -> tuple[Tensor, Tensor, Tensor]:
    gate, up = block.feedforward.gate_and_up.weight.chunk(2)
    return _packed(gate), _packed(up), _packed(block.feedforward.down.weight)


def _packed(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(
        weight.detach().contiguous(), ROWS_HINT
    )
    return packed


def _product(x: Tensor, packed: Tensor, *, activation: str = "none") -> Tensor:
    arguments: list[Any] = []
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, None, activation, arguments, "")
    return product


def _normed(x: Tensor, norm: Any) -> Tensor:
    assert isinstance(norm, RMSNorm)
    return F.rms_norm(x, x.shape[-1:], norm.weight, eps=norm.eps)
