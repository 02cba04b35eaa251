"""The Diffusion Transformer of App. A and B: the baseline that denoises all latents at once.

In: noisy latents of an image, one time for all of them, a class. Out: the prediction for every
latent. As in Peebles and Xie 2022, every block is conditioned by AdaLN-Zero; RMSNorm, SwiGLU and
the timestep network are LatentLM's. Nothing is predicted beside the latents (no variance), so
guidance guides every channel. Its loss is ℒ_Diff of LatentLM, with one time for a whole image.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentlm.diffusion.head import (
    MAX_PERIOD,
    SINUSOID_WIDTH,
    TimestepLinear,
    ZeroLinear,
    sinusoid,
)
from latentlm.diffusion.process import DiffusionProcess
from latentlm.diffusion.timesteps import draw_times
from latentlm.layers import RMSNorm, SwiGLU
from latentlm.models.loss_terms import LossTerms, binned, by_source
from latentlm.models.targets import Targets
from latentlm.randomness import Draw, RowNoise
from latentlm.sequence import PackedBatch
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
        self.recompute = False
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

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.noisy_projection.weight.device

    def recompute_activations(self, on: bool) -> None:
        """Keep only each block's input for the backward pass (activation checkpointing)."""
        self.recompute = on

    def forward(
        self,
        batch: PackedBatch,
        targets: Targets,
        *,
        noise: RowNoise,
        timesteps_per_token: int,
    ) -> LossTerms:
        """ℒ_Diff of a batch of `class_conditional` rows; `targets` = `find_targets(batch, …)`.

        Each image is denoised at `timesteps_per_token` times, each with its own noise and shared
        by all its latents. Raises ValueError where a latent is no target or the shape is another.
        """
        x0_BNZ = batch.latents_BTZ[:, 1:].float()
        self._check(x0_BNZ)
        if len(targets.latent_L) != x0_BNZ.shape[:2].numel():
            raise ValueError(
                f"{len(targets.latent_L)} of {x0_BNZ.shape[:2].numel()} latents are scored; a DiT"
                " predicts all latents of an image: score every one"
            )
        draws = timesteps_per_token
        own = noise.rows(batch.document_BT[:, 0])
        times_BM = draw_times(own.uniform(Draw.TIMESTEP, draws), settings=self.settings.diffusion)
        epsilon_BMNZ = own.normal(Draw.DIFFUSION_NOISE, draws, *x0_BNZ.shape[1:])
        x0_B1NZ, times_BM1 = x0_BNZ.unsqueeze(1), times_BM.unsqueeze(-1)
        noisy_BMNZ = self.process.noised(x0_B1NZ, times_BM1, epsilon=epsilon_BMNZ)
        prediction = self.denoise(
            noisy_BMNZ.flatten(0, 1),
            times_BM.flatten(),
            labels_B=targets.ids_BT[:, 0].repeat_interleave(draws),
        )
        target_BMNZ = self.process.target(x0_B1NZ, times_BM1, epsilon=epsilon_BMNZ)
        difference_BMNZ = prediction.float().view_as(target_BMNZ) - target_BMNZ
        errors_BMN = difference_BMNZ.square().mean(dim=-1)
        total = errors_BMN.sum()
        none = total.new_zeros(3)
        errors_L = errors_BMN.detach().sum(dim=1).flatten()
        from_L, sources = targets.source_P[targets.latent_L], targets.sources
        errors_S = by_source(errors_L, from_L, sources=sources)
        return LossTerms(
            torch.cat((total[None], none)),
            targets.counts_K(draws),
            torch.cat((errors_S[None], none[:, None].expand(3, sources))),
            targets.source_counts_KS(draws),
            *binned(times_BM1.expand_as(errors_BMN), errors_BMN.detach(), process=self.process),
        )

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
            if self.recompute and self.training:
                # as in Backbone: weights of ZeRO-3 may be away when a block is recomputed
                x_BND = checkpoint(
                    block, x_BND, condition_B1D, use_reentrant=False, determinism_check="none"
                )
            else:
                x_BND = block(x_BND, condition_B1D)
        shift, scale = self.final_modulation(condition_B1D).chunk(2, dim=-1)
        return self.output(self.final_norm(x_BND) * (1 + scale) + shift)

    @staticmethod
    def sizes_in(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """The settings that parameter shapes give away, so that an error can name them."""
        sizes: dict[str, int] = {}
        if "class_embedding.weight" in shapes:
            rows, sizes["width"] = shapes["class_embedding.weight"]
            sizes["classes"] = rows - 1
        if "noisy_projection.weight" in shapes:
            sizes["latent_width"] = shapes["noisy_projection.weight"][1]
        layers = {name.split(".")[1] for name in shapes if name.startswith("blocks.")}
        return sizes | ({"depth": len(layers)} if layers else {})

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
