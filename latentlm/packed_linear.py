"""Matrix products of few rows on a CPU, with weights laid out once.

Decoding makes thousands of products of a few rows with the same weights, and a plain product spends
much of its time bringing the weight into the order in which the kernel reads it. Here oneDNN does
so once. These are the kernels that torch.compile reaches with freezing, without a compiler.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

ROWS_HINT = 64  # the layout is chosen for about so many rows; others work as well
Module = TypeVar("Module", bound=nn.Module)


def packable(module: nn.Module) -> bool:
    """Whether weights are whole, fp32, on a CPU, and wanted for inference without autocast.

    Under ZeRO-3 a rank holds no whole weights between forward passes: a sharded one is empty.
    """
    weights = list(module.parameters())
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    whole = all(p.numel() and p.dtype == torch.float32 for p in weights)
    on_cpu = all(p.device.type == "cpu" for p in weights)
    return whole and on_cpu and torch.backends.mkldnn.is_available()


def pack_weight(weight: Tensor) -> Tensor:
    """A Linear's weight (out, in) in oneDNN's own layout, for `packed_product`."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(
        weight.detach().contiguous(), ROWS_HINT
    )
    return packed


def packed_product(x: Tensor, packed: Tensor, *, activation: str = "none") -> Tensor:
    """activation(x Wᵀ) for x (…, in); `swish` is SiLU."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, None, activation, [], "")
    return product


class PackedLinear(nn.Module):
    """A Linear without bias, packed; for inference alone."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self._packed = pack_weight(weight)  # no buffer: this layout cannot be saved or moved

    def forward(self, x: Tensor) -> Tensor:
        return packed_product(x, self._packed)


def packed(module: Module) -> Module:
    """The module with its bias-free Linears packed, or itself where `packable` says no.

    Nothing of the module is changed; later changes of its weights do not show.
    """
    return _twin(module) if packable(module) else module


def _twin(module: Module) -> Module:
    twin = copy.copy(module)
    twin._modules = {
        name: child if child is None else _packed_child(child)
        for name, child in module._modules.items()
    }
    return twin


def _packed_child(child: nn.Module) -> nn.Module:
    if isinstance(child, nn.Linear) and child.bias is None:
        return PackedLinear(child.weight)
    return _twin(child)
