"""LatentLM (§2): one causal Transformer, a softmax head for words, a diffusion head for latents.

The state at each position predicts the next element of its document: a word through the softmax
head, a latent through the head that denoises it. The same draw of a latent is the input of one
position and the target of the one before. A class-conditional model has labels in place of words
and no softmax head.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from latentlm.backbone import Backbone
from latentlm.cross_entropy import SoftmaxHead
from latentlm.diffusion.head import DiffusionHead
from latentlm.diffusion.process import DiffusionProcess
from latentlm.diffusion.timesteps import draw_times
from latentlm.models.loss_terms import LossTerms, binned, by_source
from latentlm.models.targets import Targets
from latentlm.randomness import Draw, RowNoise
from latentlm.sequence import LATENT, PackedBatch
from latentlm.settings import LatentLMSettings


class LatentLM(nn.Module):
    """Backbone and heads. The last row of a class embedding is the null label."""

    def __init__(self, settings: LatentLMSettings) -> None:
        super().__init__()
        self.settings = settings
        self.process = DiffusionProcess(settings.diffusion)
        width, learned = settings.width, settings.norm == "learned"
        if settings.vocabulary is None:
            self.class_embedding = nn.Embedding((settings.classes or 0) + 1, width)
        else:
            self.token_embedding = nn.Embedding(settings.vocabulary, width)
            self.softmax_head = SoftmaxHead(
                width=width,
                vocabulary=settings.vocabulary,
                norm_eps=settings.norm_eps,
                learned_norm=learned,
            )
        self.latent_projection = nn.Linear(settings.latent_width, width, bias=False)
        self.backbone = Backbone(settings)
        self.head = DiffusionHead(
            width=width,
            latent_width=settings.latent_width,
            depth=settings.head.depth,
            ffn_width=settings.head.ffn_width,
            norm_eps=settings.norm_eps,
            learned_norm=learned,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.latent_projection.weight.device

    def recompute_activations(self, on: bool) -> None:
        """Keep only each layer's input for the backward pass (activation checkpointing)."""
        self.backbone.recompute = on

    def forward(
        self,
        batch: PackedBatch,
        targets: Targets,
        *,
        noise: RowNoise,
        timesteps_per_token: int,
    ) -> LossTerms:
        """The losses of a batch; `targets` = `find_targets(batch, …)`, noise keyed by document.

        The backbone runs once, the diffusion head at `timesteps_per_token` times of every scored
        latent and nowhere else. Every head runs even where it has nothing to predict, so that all
        ranks of a ZeRO group call the same modules.
        """
        self._check(batch)
        hidden_BTD = self.hidden(batch, ids_BT=targets.ids_BT)
        hidden_PD = hidden_BTD.flatten(0, 1)
        diffusion, times_LM, errors_LM = self._diffusion_loss(
            batch, targets, hidden_PD, noise=noise, draws=timesteps_per_token
        )
        sums = [diffusion, *[diffusion.new_zeros(())] * 3]
        each = [errors_LM.sum(dim=1), *[errors_LM.new_zeros(0)] * 3]
        if self.settings.vocabulary is not None:
            sums[1], each[1] = self._word_loss(hidden_PD, targets.text_W, targets.text_ids_W)
            marks = targets.structure_W, targets.structure_ids_W
            sums[2], each[2] = self._word_loss(hidden_PD, *marks)
            if self.settings.stop == "continue":
                sums[3], each[3] = self._word_loss(hidden_PD, targets.stop_W, targets.stop_ids_W)
        parts = zip(each, targets.indices(), strict=True)
        sources, source_P = targets.sources, targets.source_P
        return LossTerms(
            torch.stack(sums),
            targets.counts_K(timesteps_per_token),
            torch.stack([by_source(x, source_P[i], sources=sources) for x, i in parts]),
            targets.source_counts_KS(timesteps_per_token),
            *binned(times_LM, errors_LM, process=self.process),
        )

    def hidden(self, batch: PackedBatch, *, ids_BT: Tensor | None = None) -> Tensor:
        """h (B, T - 1, D) of all but the last column, which predicts nothing.

        `ids_BT` stands in for the batch's words, where a condition was dropped.
        """
        ids_BT = batch.ids_BT if ids_BT is None else ids_BT
        x_BTD = self.embed(ids_BT[:, :-1], batch.latents_BTZ[:, :-1])
        if self.settings.vocabulary is None:  # one document a row
            return self.backbone(x_BTD)
        return self.backbone(
            x_BTD,
            document_BT=batch.document_BT[:, :-1].contiguous(),
            position_BT=batch.position_BT[:, :-1],
        )

    def embed(self, ids_BT: Tensor, latents_BTZ: Tensor) -> Tensor:
        """(B, T, D): the word's embedding, or the projection of the latent where ids are LATENT."""
        words = self.class_embedding if self.settings.vocabulary is None else self.token_embedding
        x_BTD = words(ids_BT.clamp(min=0))
        projected_BTD = self.latent_projection(latents_BTZ.float())
        is_latent_BT1 = (ids_BT == LATENT).unsqueeze(-1)
        return torch.where(is_latent_BT1, projected_BTD.to(x_BTD.dtype), x_BTD)

    def _diffusion_loss(
        self,
        batch: PackedBatch,
        targets: Targets,
        hidden_PD: Tensor,
        *,
        noise: RowNoise,
        draws: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(ℒ_Diff of Eq. 3, the times (L, M), the errors (L, M) detached); L may be 0."""
        index = targets.latent_L if len(targets.latent_L) else hidden_PD.new_zeros(1).long()
        x0_L1Z = batch.latents_BTZ[:, 1:].flatten(0, 1)[index].float().unsqueeze(1)
        own = noise.rows(batch.document_BT[:, 1:].flatten()[index].clamp(min=0))
        own = own.at(batch.position_BT[:, 1:].flatten()[index])
        uniforms_LM = own.uniform(Draw.TIMESTEP, draws)
        times_LM = draw_times(uniforms_LM, settings=self.settings.diffusion)
        epsilon_LMZ = own.normal(Draw.DIFFUSION_NOISE, draws, x0_L1Z.shape[-1])
        prediction_LMZ = self.head(
            self.process.noised(x0_L1Z, times_LM, epsilon=epsilon_LMZ),
            times_LM,
            condition=self.head.condition(hidden_PD[index]).unsqueeze(1),
        )
        target_LMZ = self.process.target(x0_L1Z, times_LM, epsilon=epsilon_LMZ)
        errors_LM = (prediction_LMZ.float() - target_LMZ).square().mean(dim=-1)
        if not len(targets.latent_L):
            return errors_LM.sum() * 0.0, times_LM[:0], errors_LM.detach()[:0]
        return errors_LM.sum(), times_LM, errors_LM.detach()

    def _word_loss(
        self, hidden_PD: Tensor, index_W: Tensor, ids_W: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(sum, each one detached) of the cross-entropies; the head runs without words too."""
        if not len(index_W):
            first = torch.zeros(1, dtype=torch.int64, device=hidden_PD.device)
            losses = self.softmax_head(hidden_PD[:1], first)
            return losses.total * 0.0, losses.each_M[:0]
        losses = self.softmax_head(hidden_PD[index_W], ids_W)
        return losses.total, losses.each_M

    @staticmethod
    def sizes_in(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """The settings that parameter shapes give away, so that an error can name them."""
        sizes: dict[str, int] = {}
        if "class_embedding.weight" in shapes:
            rows, sizes["width"] = shapes["class_embedding.weight"]
            sizes["classes"] = rows - 1
        if "token_embedding.weight" in shapes:
            sizes["vocabulary"], sizes["width"] = shapes["token_embedding.weight"]
        if "latent_projection.weight" in shapes:
            sizes["latent_width"] = shapes["latent_projection.weight"][1]
        layers = {name.split(".")[2] for name in shapes if name.startswith("backbone.layers.")}
        return sizes | ({"depth": len(layers)} if layers else {})

    def _check(self, batch: PackedBatch) -> None:
        width, count = self.settings.latent_width, self.settings.latent_count
        if batch.ids_BT.shape[0] == 0 or batch.ids_BT.shape[1] < 2:
            raise ValueError(
                f"a batch of {tuple(batch.ids_BT.shape)} elements predicts nothing; give one or"
                " more rows of two or more"
            )
        if batch.latents_BTZ.shape[-1] != width:
            raise ValueError(
                f"latents have shape {tuple(batch.latents_BTZ.shape)}; the model needs latent_width"
                f" = {width}: use the codec it was built for"
            )
        if self.settings.vocabulary is None and batch.ids_BT.shape[1] - 1 != count:
            raise ValueError(
                f"a row has {batch.ids_BT.shape[1] - 1} latents; the model needs latent_count ="
                f" {count}: use the codec and image size it was built for"
            )
