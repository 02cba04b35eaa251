"""What a packed batch is trained to predict: which latents, which words, which stop decisions."""

from typing import NamedTuple

import torch
from torch import Tensor

from latentlm.randomness import Draw, RowNoise
from latentlm.sequence import LATENT, PADDING, PackedBatch
from latentlm.settings import ModelSettings
from latentlm.vocabulary import special_ids


class Targets(NamedTuple):
    """Indices are of states in the flattened (B · (T - 1)) columns that predict something.

    ids_BT: the batch's words after condition dropout. latent_L: states whose next element is a
    scored latent. text_W, text_ids_W: states whose next element is a scored word, and the word.
    structure_W, structure_ids_W: the same for BOD, EOD and END, which are no words of a text.
    stop_W, stop_ids_W: with `stop: continue`, states at latents, and CONTINUE or EOD. source_P: the
    source that each state's document is from, of `sources`.
    """

    ids_BT: Tensor
    latent_L: Tensor
    text_W: Tensor
    text_ids_W: Tensor
    structure_W: Tensor
    structure_ids_W: Tensor
    stop_W: Tensor
    stop_ids_W: Tensor
    source_P: Tensor
    sources: int

    def counts_K(self, timesteps_per_token: int) -> Tensor:
        """fp64 (K,): terms of each of models.LOSSES."""
        draws = (timesteps_per_token, 1, 1, 1)
        sizes = [len(index) * n for index, n in zip(self.indices(), draws, strict=True)]
        return torch.tensor(sizes, dtype=torch.float64, device=self.ids_BT.device)

    def source_counts_KS(self, timesteps_per_token: int) -> Tensor:
        """fp32 (K, S): the same by source."""
        draws = (timesteps_per_token, 1, 1, 1)
        counts = [
            torch.bincount(self.source_P[index], minlength=self.sources) * n
            for index, n in zip(self.indices(), draws, strict=True)
        ]
        return torch.stack(counts).float()

    def indices(self) -> tuple[Tensor, ...]:
        """The states that predict for each of models.LOSSES."""
        return self.latent_L, self.text_W, self.structure_W, self.stop_W


def find_targets(
    batch: PackedBatch,
    settings: ModelSettings,
    *,
    noise: RowNoise,
    condition_dropout: float,
    sources: int = 1,
) -> Targets:
    """The targets of a batch from that many sources; noise keyed by document.

    condition_dropout is the share of documents that see no condition, for guidance: the label, or
    the words before the last latent, become the null label or PAD and are no targets themselves.
    """
    ids_BT, hidden_BT = _drop_conditions(batch, settings, noise=noise, share=condition_dropout)
    document_BT = batch.document_BT
    predicted_BT = (document_BT[:, 1:] == document_BT[:, :-1]) & (document_BT[:, 1:] != PADDING)
    predicted_BT = predicted_BT & batch.scored_BT[:, 1:] & ~hidden_BT[:, 1:]
    next_BT = batch.ids_BT[:, 1:]
    to_latent_BT, at_latent_BT = next_BT == LATENT, batch.ids_BT[:, :-1] == LATENT
    words_BT = predicted_BT & ~to_latent_BT
    nothing = torch.zeros(0, dtype=torch.int64, device=ids_BT.device)
    structure_W, stop_W, stop_ids_W = nothing, nothing, nothing
    if settings.vocabulary is not None:
        special = special_ids(settings.vocabulary)
        if settings.stop == "continue":
            decisions_BT = predicted_BT & at_latent_BT & (to_latent_BT | (next_BT == special.eod))
            words_BT = words_BT & ~decisions_BT
            stop_W = _places(decisions_BT)
            stop_ids_W = next_BT.flatten()[stop_W]
            stop_ids_W = torch.where(stop_ids_W == LATENT, special.go_on, stop_ids_W)
        marks_BT = (next_BT == special.bod) | (next_BT == special.eod) | (next_BT == special.end)
        structure_W = _places(words_BT & marks_BT)
        words_BT = words_BT & ~marks_BT
    text_W = _places(words_BT)
    return Targets(
        ids_BT,
        _places(predicted_BT & to_latent_BT),
        text_W,
        next_BT.flatten()[text_W],
        structure_W,
        next_BT.flatten()[structure_W],
        stop_W,
        stop_ids_W,
        batch.source_BT[:, :-1].flatten(),
        sources,
    )


def null_ids(ids: Tensor, settings: ModelSettings) -> Tensor:
    """Elements as a model without condition sees them.

    A label is the null label, a word PAD; latents, BOD and EOD stay.
    """
    if settings.vocabulary is None:
        return torch.where(ids == LATENT, ids, settings.classes or 0)
    special = special_ids(settings.vocabulary)
    kept = (ids == LATENT) | (ids == special.bod) | (ids == special.eod)
    return torch.where(kept, ids, special.pad)


def _drop_conditions(
    batch: PackedBatch, settings: ModelSettings, *, noise: RowNoise, share: float
) -> tuple[Tensor, Tensor]:
    """(ids after dropout, bool (B, T) where a word was hidden)."""
    nowhere = torch.zeros_like(batch.scored_BT)
    if share == 0:
        return batch.ids_BT, nowhere
    if settings.vocabulary is None:  # one document a row, its label first
        hidden_BT = nowhere.clone()
        hidden_BT[:, 0] = noise.uniform(Draw.LABEL_DROPOUT) < share
    else:
        hidden_BT = _before_last_latent(batch, documents=len(noise))
        dropped_N = noise.uniform(Draw.LABEL_DROPOUT) < share
        hidden_BT = hidden_BT & dropped_N[batch.document_BT.clamp(min=0)]
    ids_BT = torch.where(hidden_BT, null_ids(batch.ids_BT, settings), batch.ids_BT)
    return ids_BT, hidden_BT & (ids_BT != batch.ids_BT)


def _before_last_latent(batch: PackedBatch, *, documents: int) -> Tensor:
    """bool (B, T): before its document's last latent; nothing in documents of words alone."""
    document_P, position_P = batch.document_BT.flatten(), batch.position_BT.flatten()
    latents = (batch.ids_BT.flatten() == LATENT) & (document_P != PADDING)
    last_N = torch.zeros(documents, dtype=torch.int64, device=document_P.device)
    last_N = last_N.scatter_reduce(0, document_P[latents], position_P[latents], "amax")
    before_P = (position_P < last_N[document_P.clamp(min=0)]) & (document_P != PADDING)
    return before_P.view_as(batch.ids_BT)


def _places(chosen_BT: Tensor) -> Tensor:
    return chosen_BT.flatten().nonzero().squeeze(1)
