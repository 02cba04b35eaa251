"""The Diffusion Transformer of App. A and B: the baseline that denoises all latents at once.

In: noisy latents of an image, one time for all of them, a class. Out: the prediction for every
latent. As in Peebles and Xie 2022, every block is conditioned by AdaLN-Zero; RMSNorm, SwiGLU and
the timestep network are LatentLM's. Nothing is predicted beside the latents (no variance), so
guidance guides every channel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentlm.diffusion.head import (
    MAX_PERIOD,
    SINUSOID_WIDTH,
    TimestepLinear,
    ZeroLinear,
    sinusoid,
)
from latentlm.diffusion.process import DiffusionProcess
from latentlm.layers import RMSNorm, SwiGLU
from latentlm.settings import DiTSettings


def grid_positions(*, side: int, width: int, device: torch.device) -> Tensor:
    """Fixed positions (N, D) of side² latents in raster order, fp32.

    Half of the width stands for the row, half for the column, each as [sin, cos] of
    index · 10000^(-4 i / D). It depends on nothing but its arguments, so no weight stores it.
    """
    quarter = width // 4
    exponents = torch.arange(quarter, dtype=torch.float32, device=device) / quarter
    index = torch.arange(side, dtype=torch.float32, device=device)
    angles = torch.outer(index, MAX_PERIOD**-exponents)
    table = torch.cat((angles.sin(), angles.cos()), dim=-1)
    rows = table.repeat_interleave(side, dim=0)
    return torch.cat((rows, table.repeat(side, 1)), dim=-1)


class BidirectionalAttention(nn.Module):
    """Multi-head self-attention over all latents of an image; positions are in its input."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x_BND: Tensor) -> Tensor:
        packed = self.query_key_value(x_BND).unflatten(-1, (3, self.heads, -1))
        queries_BHNK, keys_BHNK, values_BHNK = packed.permute(2, 0, 3, 1, 4)
        mixed_BHNK = F.scaled_dot_product_attention(queries_BHNK, keys_BHNK, values_BHNK)
        return self.output(mixed_BHNK.transpose(1, 2).flatten(2))


class DiTBlock(nn.Module):
    """x + gate · f(RMSNorm(x) · (1 + scale) + shift), f first attention, then SwiGLU.

    The six modulations are zero at the start, so that a new block is the identity.
    """

    def __init__(self, settings: DiTSettings) -> None:
        super().__init__()
        width = settings.width
        self.modulation = ZeroLinear(width, 6 * width, bias=False)
        self.attention_norm = RMSNorm(eps=settings.norm_eps)
        self.attention = BidirectionalAttention(width=width, heads=settings.heads)
        self.feedforward_norm = RMSNorm(eps=settings.norm_eps)
        self.feedforward = SwiGLU(width=width, ffn_width=settings.ffn_width)

    def forward(self, x_BND: Tensor, condition_B1D: Tensor) -> Tensor:
        parts = self.modulation(condition_B1D).chunk(6, dim=-1)
        shift, scale, gate = parts[:3]
        x_BND = x_BND + gate * self.attention(self.attention_norm(x_BND) * (1 + scale) + shift)
        shift, scale, gate = parts[3:]
        return x_BND + gate * self.feedforward(self.feedforward_norm(x_BND) * (1 + scale) + shift)


class DiT(nn.Module):
    """The model; the last row of the class embedding is the null label."""

    def __init__(self, settings: DiTSettings) -> None:
        super().__init__()
        self.settings = settings
        self.process = DiffusionProcess(settings.diffusion)
        width = settings.width
        self.class_embedding = nn.Embedding(settings.classes + 1, width)
        self.timestep_network = nn.Sequential(
            TimestepLinear(SINUSOID_WIDTH, width, bias=False),
            nn.SiLU(),
            TimestepLinear(width, width, bias=False),
        )
        self.noisy_projection = nn.Linear(settings.latent_width, width, bias=False)
        self.blocks = nn.ModuleList(DiTBlock(settings) for _ in range(settings.depth))
        self.final_norm = RMSNorm(eps=settings.norm_eps)
        self.final_modulation = ZeroLinear(width, 2 * width, bias=False)
        self.output = ZeroLinear(width, settings.latent_width, bias=False)

    def denoise(self, x_BNZ: Tensor, times_B: Tensor, *, labels_B: Tensor) -> Tensor:
        """Prediction (B, N, Z) at noisy latents (B, N, Z), times (B,), labels (B,).

        The label `settings.classes` is null, for guidance. Raises ValueError for another number
        of latents or another width than the settings say.
        """
        self._check(x_BNZ)
        embedded_BD = self.timestep_network(sinusoid(times_B)) + self.class_embedding(labels_B)
        condition_B1D = F.silu(embedded_BD).unsqueeze(1)
        # fp32 positions keep the residual stream in fp32 under autocast, as LatentLM's is
        x_BND = self.noisy_projection(x_BNZ) + self._positions(x_BNZ.device)
        for block in self.blocks:
            x_BND = block(x_BND, condition_B1D)
        shift, scale = self.final_modulation(condition_B1D).chunk(2, dim=-1)
        return self.output(self.final_norm(x_BND) * (1 + scale) + shift)

    def _positions(self, device: torch.device) -> Tensor:
        side = round(self.settings.latent_count**0.5)
        return grid_positions(side=side, width=self.settings.width, device=device)

    def _check(self, x_BNZ: Tensor) -> None:
        expected = (self.settings.latent_count, self.settings.latent_width)
        if tuple(x_BNZ.shape[1:]) != expected:
            raise ValueError(
                f"latents have shape {tuple(x_BNZ.shape)}; the model needs (batch, latent_count,"
                f" latent_width) = (batch, {expected[0]}, {expected[1]}): use the codec and image"
                " size it was built for"
            )


def flops_per_image(settings: DiTSettings) -> int:
    """FLOPs, forward and backward, of one image at one time.

    Convention of `flops_per_sequence`: 6 a weight and row, attention 12 N² D a layer. Modulations
    and the timestep network meet an image once, every other weight its N latents.
    """
    with torch.device("meta"):
        model = DiT(settings)
    products = 0
    for name, parameter in model.named_parameters():
        if name.startswith("class_embedding"):
            continue
        once = "modulation" in name or name.startswith("timestep_network")
        products += 6 * parameter.numel() * (1 if once else settings.latent_count)
    return products + 12 * settings.latent_count**2 * settings.width * settings.depth
