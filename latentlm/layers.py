"""Layers that backbone, diffusion head and Diffusion Transformer share: RMSNorm and SwiGLU.

None has a bias. Every parameter is read only inside the forward of the module that owns it, which
is what ZeRO-3 needs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / √(mean x² + eps) over the last dimension, computed in fp32.

    Without a scale, as in the official code of the paper; with `learned_width` channels, it has
    one that starts at 1, as in Llama.
    """

    def __init__(self, *, eps: float, learned_width: int | None = None) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(learned_width)) if learned_width else None

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.float()
        return F.rms_norm(x.float(), x.shape[-1:], weight, eps=self.eps).to(x.dtype)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)), Shazeer 2020; gate and up are one matrix."""

    def __init__(self, *, width: int, ffn_width: int) -> None:
        super().__init__()
        self.gate_and_up = nn.Linear(width, 2 * ffn_width, bias=False)
        self.down = nn.Linear(ffn_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_and_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)
