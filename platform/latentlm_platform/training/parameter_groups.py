"""Parameter groups for AdamW: who is decayed, and at which share of the learning rate.

A pure function of a module: every trainable parameter is in exactly one group. The layer-wise decay
is the paper's for the encoder of the σ-VAE (App. B: 0.65), counted as BEiT-3 counts it.
"""

import re
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.optim import Optimizer

from latentlm_platform.errors import UserError

FIRST_LAYER = re.compile(r"encoder\.(patches\.|trunk\.position_ND$)")
BLOCK = re.compile(r"encoder\.trunk\.blocks\.(\d+)\.")


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices, none for vectors."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def layer_decay_groups(
    codec: nn.Module, *, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """`decay_groups`, each with its `scale` of the learning rate, for encoders of L blocks.

    Layer 0 is the patch embedding with the positions, layer l the l-th block; both have scale
    layer_decay^(L + 1 - layer). The encoder's final norm, its head and the decoder have scale 1.
    Raises UserError where a decay below 1 meets a codec without encoder blocks.
    """
    layers = dict(_encoder_layers(codec))
    depth = max(layers.values(), default=0)
    if layer_decay < 1 and not depth:
        raise UserError(
            f"codec.training.encoder_layer_decay = {layer_decay} needs an encoder of Transformer"
            f" blocks, but {type(codec).__name__} has none; set it to 1 or use codec.kind image_vit"
        )
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in codec.named_parameters():
        if not parameter.requires_grad:
            continue
        away = depth + 1 - layers[name] if name in layers and layer_decay < 1 else 0
        is_matrix = parameter.ndim >= 2
        empty = {
            "params": [],
            "weight_decay": weight_decay if is_matrix else 0.0,
            "scale": layer_decay**away,
        }
        groups.setdefault((away, is_matrix), empty)["params"].append(parameter)
    return list(groups.values())


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Give every group its `scale` of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["scale"]


def _encoder_layers(codec: nn.Module) -> Iterator[tuple[str, int]]:
    """(name, layer) of the parameters before the encoder's final norm."""
    for name, _ in codec.named_parameters():
        if FIRST_LAYER.match(name):
            yield name, 0
        elif block := BLOCK.match(name):
            yield name, int(block[1]) + 1
