"""Pixels ↔ signals: what a decoded image is outside (uint8) and inside (fp32 in [-1, 1])."""

import torch
from torch import Tensor


def pixels_to_signal(pixels_BYXC: Tensor) -> Tensor:
    """uint8 (B, Y, X, C) → fp32 (B, C, Y, X) in [-1, 1]: 0 → -1, 255 → 1."""
    return pixels_BYXC.movedim(-1, 1).float().div(127.5).sub(1.0)


def signal_to_pixels(signal_BCYX: Tensor) -> Tensor:
    """The inverse, clamped and rounded: (B, C, Y, X) → uint8 (B, Y, X, C)."""
    levels = signal_BCYX.float().add(1.0).mul(127.5).round().clamp(0, 255)
    return levels.to(torch.uint8).movedim(1, -1).contiguous()
