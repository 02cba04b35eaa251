"""LatentLM for class-conditional images (§2): one causal Transformer with a diffusion head.

The sequence [class, z₁ … z_{N-1}] predicts z₁ … z_N: the state at each position conditions the
head that denoises the next latent. Latents come in normalised; the same draw of a latent is the
input of one position and the target of the one before.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from latentlm.backbone import Backbone, BackboneCache
from latentlm.diffusion.head import DiffusionHead
from latentlm.diffusion.process import DiffusionProcess
from latentlm.randomness import Draw, RowNoise
from latentlm.settings import LatentLMSettings

BINS = 10


class LossTerms(NamedTuple):
    """Sums and counts, never means: who reduces over ranks divides by the global count.

    total: Σ over latents and their timesteps of the squared error's mean over Z, fp32, with a
    gradient. count: how many terms that is. bin_sums_10, bin_counts_10: the same, detached, by
    tenth of the timesteps (0: almost clean, 9: almost noise).
    """

    total: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    bin_sums_10: Tensor
    bin_counts_10: Tensor


class LatentLM(nn.Module):
    """Backbone and diffusion head; the last row of the class embedding is the null label."""

    def __init__(self, settings: LatentLMSettings) -> None:
        super().__init__()
        self.settings = settings
        self.process = DiffusionProcess(settings.diffusion)
        self.class_embedding = nn.Embedding(settings.classes + 1, settings.width)
        self.latent_projection = nn.Linear(settings.latent_width, settings.width, bias=False)
        self.backbone = Backbone(
            width=settings.width,
            depth=settings.depth,
            heads=settings.heads,
            kv_heads=settings.kv_heads or settings.heads,
            ffn_width=settings.ffn_width,
            rope_base=settings.rope_base,
            norm_eps=settings.norm_eps,
        )
        self.head = DiffusionHead(
            width=settings.width,
            latent_width=settings.latent_width,
            depth=settings.head.depth,
            ffn_width=settings.head.ffn_width,
            norm_eps=settings.norm_eps,
        )

    def forward(
        self,
        latents_BNZ: Tensor,
        labels_B: Tensor,
        *,
        noise: RowNoise,
        timesteps_per_token: int,
        label_dropout: float,
    ) -> LossTerms:
        """ℒ_Diff of Eq. 3. The backbone runs once; the head at M timesteps of every latent.

        label_dropout is the share of rows that see the null label, for guidance.
        """
        self._check(latents_BNZ)
        latents_BNZ = latents_BNZ.float()
        dropped_B = noise.uniform(Draw.LABEL_DROPOUT) < label_dropout
        labels_B = torch.where(dropped_B, self.settings.classes, labels_B)
        condition_BND = self.head.condition(self.hidden(latents_BNZ, labels_B))

        count, width = latents_BNZ.shape[1:]
        shape = (count, timesteps_per_token)
        timesteps_BNM = noise.integers(Draw.TIMESTEP, self.process.settings.timesteps, *shape)
        epsilon_BNMZ = noise.normal(Draw.DIFFUSION_NOISE, *shape, width)
        clean_BN1Z = latents_BNZ.unsqueeze(2)
        prediction_BNMZ = self.head(
            self.process.noised(clean_BN1Z, timesteps_BNM, epsilon=epsilon_BNMZ),
            timesteps_BNM,
            condition=condition_BND.unsqueeze(2),
        )
        target_BNMZ = self.process.target(clean_BN1Z, timesteps_BNM, epsilon=epsilon_BNMZ)
        errors_BNM = (prediction_BNMZ.float() - target_BNMZ).square().mean(dim=-1)
        return self._terms(errors_BNM, timesteps_BNM)

    def hidden(self, latents_BNZ: Tensor, labels_B: Tensor) -> Tensor:
        """h (B, N, D): position i has seen the class and the latents before the i-th."""
        first_B1D = self.embed_labels(labels_B)
        return self.backbone(
            torch.cat((first_B1D, self.latent_projection(latents_BNZ[:, :-1])), dim=1)
        )

    def hidden_next(self, x_B1D: Tensor, *, cache: BackboneCache) -> Tensor:
        """h (B, D) of one more position, given its embedding and the cache of those before."""
        return self.backbone(x_B1D, cache=cache).squeeze(1)

    def embed_labels(self, labels_B: Tensor) -> Tensor:
        """(B,) labels, `settings.classes` for null → (B, 1, D)."""
        return self.class_embedding(labels_B).unsqueeze(1)

    def embed_latent(self, latent_BZ: Tensor) -> Tensor:
        """(B, Z) one latent → (B, 1, D)."""
        return self.latent_projection(latent_BZ).unsqueeze(1)

    @staticmethod
    def sizes_in(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """The settings that parameter shapes give away, so that an error can name them."""
        sizes: dict[str, int] = {}
        if "class_embedding.weight" in shapes:
            rows, sizes["width"] = shapes["class_embedding.weight"]
            sizes["classes"] = rows - 1
        if "latent_projection.weight" in shapes:
            sizes["latent_width"] = shapes["latent_projection.weight"][1]
        layers = [name.split(".")[2] for name in shapes if name.startswith("backbone.layers.")]
        sizes["depth"] = len(set(layers))
        return sizes

    def _terms(self, errors_BNM: Tensor, timesteps_BNM: Tensor) -> LossTerms:
        detached = errors_BNM.detach().flatten()
        bins = timesteps_BNM.flatten() * BINS // self.process.settings.timesteps
        empty = detached.new_zeros(BINS)
        return LossTerms(
            total=errors_BNM.sum(),
            count=detached.new_tensor(detached.numel()),
            bin_sums_10=empty.index_add(0, bins, detached),
            bin_counts_10=empty.index_add(0, bins, torch.ones_like(detached)),
        )

    def _check(self, latents_BNZ: Tensor) -> None:
        expected = (self.settings.latent_count, self.settings.latent_width)
        if latents_BNZ.shape[1:] != expected:
            raise ValueError(
                f"latents have shape {tuple(latents_BNZ.shape)}; the model needs (batch, "
                f"latent_count, latent_width) = (batch, {expected[0]}, {expected[1]})"
            )


def flops_per_item(settings: LatentLMSettings, timesteps_per_token: int) -> int:
    """Floating-point operations of forward and backward for one item (one image).

    Convention: a product by an (m, n) matrix is 2 m n forward and twice that backward, so 6 per
    weight and row; embeddings, norms and activations are free. Backbone and condition weights
    meet N rows, the rest of the head N · M rows. Attention adds 12 N² D per layer: scores and
    mixture of all N² pairs, although a causal kernel may skip half (the convention of PaLM,
    appendix B). Recomputed activations do not count.
    """
    with torch.device("meta"):
        model = LatentLM(settings)
    weights = {name: parameter.numel() for name, parameter in model.named_parameters()}
    rows = settings.latent_count
    products = 0
    for name, count in weights.items():
        if name.startswith("class_embedding"):
            continue
        many = name.startswith("head.") and not name.startswith("head.condition_projection")
        products += 6 * count * rows * (timesteps_per_token if many else 1)
    return products + 12 * rows**2 * settings.width * settings.depth
