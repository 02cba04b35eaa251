"""The diffusion head of §2.1: hidden state, timestep and noisy latent in, prediction out.

A residual network as wide as the backbone, each block conditioned by AdaLN-Zero (Peebles and
Xie 2022) on the sum of the projected hidden state and the timestep's embedding. Leading
dimensions are free and broadcast: training has (B, N, M) with M timesteps for each latent,
decoding has (B,).
"""

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentlm.layers import RMSNorm, SwiGLU

SINUSOID_WIDTH = 256
MAX_PERIOD = 10_000.0


class ZeroLinear(nn.Linear):
    """A Linear that starts at zero, so that every residual block starts as the identity.

    The start is set while the layer is built, because ZeRO-3 may split weights right after.
    """

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class TimestepLinear(nn.Linear):
    """A Linear that starts at N(0, 0.02²), as the timestep networks of DiT and LatentLM."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)


def sinusoid(timesteps: Tensor) -> Tensor:
    """[cos, sin] of t · 10000^(-i/128), fp32 (…, 256), for integer or fp32 timesteps (…).

    Always fp32: bf16 has room for only 507 of 1,000 timesteps.
    """
    half = SINUSOID_WIDTH // 2
    index = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps.float().unsqueeze(-1) * torch.exp(index * (-log(MAX_PERIOD) / half))
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class HeadBlock(nn.Module):
    """x + gate · SwiGLU(RMSNorm(x) · (1 + scale) + shift)."""

    def __init__(self, *, width: int, ffn_width: int, norm_eps: float, learned_norm: bool) -> None:
        super().__init__()
        self.norm = RMSNorm(eps=norm_eps, learned_width=width if learned_norm else None)
        self.feedforward = SwiGLU(width=width, ffn_width=ffn_width)

    def forward(self, x: Tensor, *, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        return x + gate * self.feedforward(self.norm(x) * (1 + scale) + shift)


class DiffusionHead(nn.Module):
    """ε_θ(x_t, t, h) of Eq. 3 or its v- and x₀-predicting twins, D wide, Z in and out.

    One matrix gives the modulations of all blocks (shift, scale, gate each) and of the output
    (shift, scale): R = 3 depth + 2 parts of D. Learned norms scale the condition and the blocks,
    never the output, which AdaLN scales.
    """

    def __init__(
        self,
        *,
        width: int,
        latent_width: int,
        depth: int,
        ffn_width: int,
        norm_eps: float,
        learned_norm: bool = False,
    ) -> None:
        super().__init__()
        learned_width = width if learned_norm else None
        self.condition_norm = RMSNorm(eps=norm_eps, learned_width=learned_width)
        self.condition_projection = nn.Linear(width, width, bias=False)
        self.timestep_network = nn.Sequential(
            TimestepLinear(SINUSOID_WIDTH, width, bias=False),
            nn.SiLU(),
            TimestepLinear(width, width, bias=False),
        )
        self.noisy_projection = nn.Linear(latent_width, width, bias=False)
        self.blocks = nn.ModuleList(
            HeadBlock(
                width=width, ffn_width=ffn_width, norm_eps=norm_eps, learned_norm=learned_norm
            )
            for _ in range(depth)
        )
        self.modulation = ZeroLinear(width, (3 * depth + 2) * width, bias=False)
        self.final_norm = RMSNorm(eps=norm_eps)
        self.output = ZeroLinear(width, latent_width, bias=False)

    def forward(self, x_t: Tensor, timesteps: Tensor, *, condition: Tensor) -> Tensor:
        """Prediction (…, Z) at noisy latents x_t (…, Z), timesteps (…), condition (…, D)."""
        return self.denoise(x_t, self.modulate(condition, self.embed_timesteps(timesteps)))

    def condition(self, hidden: Tensor) -> Tensor:
        """Backbone states h (…, D) → condition (…, D); once for all timesteps of a latent."""
        return self.condition_projection(self.condition_norm(hidden))

    def embed_timesteps(self, timesteps: Tensor) -> Tensor:
        """Integer or fp32 timesteps (…) → embeddings (…, D); once for a whole decoding."""
        return self.timestep_network(sinusoid(timesteps))

    def modulate(self, condition: Tensor, timestep_embedding: Tensor) -> Tensor:
        """(…, R D). It does not depend on x_t: decoding computes it for all steps at once."""
        return self.modulation(F.silu(condition + timestep_embedding))

    def denoise(self, x_t: Tensor, modulation: Tensor) -> Tensor:
        """Prediction (…, Z) at x_t (…, Z), conditioned by `modulate`."""
        parts = modulation.chunk(3 * len(self.blocks) + 2, dim=-1)
        x = self.noisy_projection(x_t)
        for index, block in enumerate(self.blocks):
            shift, scale, gate = parts[3 * index : 3 * index + 3]
            x = block(x, shift=shift, scale=scale, gate=gate)
        shift, scale = parts[-2:]
        return self.output(self.final_norm(x) * (1 + scale) + shift)
