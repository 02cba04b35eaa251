"""The discrete model that LatentLM is compared with (Table 1): a causal Transformer over codes.

An image is N ids of a quantizing codec. [class, c₁ … c_{N-1}] predicts c₁ … c_N through LatentLM's
softmax head; the backbone is LatentLM's too, so that only what an image is made of differs.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from latentlm.backbone import Backbone
from latentlm.cross_entropy import SoftmaxHead
from latentlm.models.loss_terms import BINS, LossTerms, by_source
from latentlm.models.targets import Targets
from latentlm.randomness import RowNoise
from latentlm.sequence import PackedBatch
from latentlm.settings import CodeLMSettings


class CodeLM(nn.Module):
    """Backbone and softmax head. The last row of the class embedding is the null label."""

    def __init__(self, settings: CodeLMSettings) -> None:
        super().__init__()
        self.settings = settings
        width = settings.width
        self.class_embedding = nn.Embedding(settings.classes + 1, width)
        self.code_embedding = nn.Embedding(settings.codes, width)
        self.backbone = Backbone(settings)
        self.softmax_head = SoftmaxHead(
            width=width,
            vocabulary=settings.codes,
            norm_eps=settings.norm_eps,
            learned_norm=settings.norm == "learned",
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.code_embedding.weight.device

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
        """ℒ_LM of a batch of `class_conditional_codes`; `targets` = `find_targets(batch, …)`.

        It draws no noise and has no timesteps: they are there for all models to be called alike.
        """
        self._check(batch.ids_BT)
        ids_BT = targets.ids_BT[:, :-1]
        labels_B1D = self.class_embedding(ids_BT[:, :1])
        x_BTD = torch.cat((labels_B1D, self.code_embedding(ids_BT[:, 1:])), dim=1)
        hidden_PD = self.backbone(x_BTD).flatten(0, 1)
        words = self.softmax_head(hidden_PD[targets.text_W], targets.text_ids_W)
        none = words.total.new_zeros(())
        empty = torch.zeros(BINS, device=none.device)
        from_W, sources = targets.source_P[targets.text_W], targets.sources
        text_S = by_source(words.each_M, from_W, sources=sources)
        none_S = torch.zeros_like(text_S)
        return LossTerms(
            torch.stack((none, words.total, none, none)),
            targets.counts_K(timesteps_per_token),
            torch.stack((none_S, text_S, none_S, none_S)),
            targets.source_counts_KS(timesteps_per_token),
            empty,
            empty,
        )

    @staticmethod
    def sizes_in(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """The settings that parameter shapes give away, so that an error can name them."""
        sizes: dict[str, int] = {}
        if "class_embedding.weight" in shapes:
            rows, sizes["width"] = shapes["class_embedding.weight"]
            sizes["classes"] = rows - 1
        if "code_embedding.weight" in shapes:
            sizes["codes"], sizes["width"] = shapes["code_embedding.weight"]
        layers = {name.split(".")[2] for name in shapes if name.startswith("backbone.layers.")}
        return sizes | ({"depth": len(layers)} if layers else {})

    def _check(self, ids_BT: Tensor) -> None:
        count = self.settings.latent_count
        if ids_BT.shape[0] == 0 or ids_BT.shape[1] - 1 != count:
            raise ValueError(
                f"{ids_BT.shape[0]} rows have {ids_BT.shape[1] - 1} codes; the model needs"
                f" latent_count = {count}: use the codec and image size it was built for"
            )


def flops_of_codes(settings: CodeLMSettings) -> int:
    """FLOPs, forward and backward, of one image, by the convention of `flops_per_sequence`."""
    with torch.device("meta"):
        model = CodeLM(settings)
    names = ("class_embedding", "code_embedding")
    used = [p for name, p in model.named_parameters() if not name.startswith(names)]
    count = settings.latent_count
    products = 6 * count * sum(parameter.numel() for parameter in used)
    return products + 12 * count**2 * settings.width * settings.depth
