"""What every model's `forward` gives: sums and counts of its losses, which ranks can add up."""

from typing import NamedTuple

import torch
from torch import Tensor

from latentlm.diffusion.process import DiffusionProcess

BINS = 10
LOSSES = ("diffusion", "text", "structure", "stop")


class LossTerms(NamedTuple):
    """Sums and counts, never means: who reduces over ranks divides by the global count.

    sums_K fp32, with a gradient, one for each of LOSSES: ℒ_Diff, the squared error's mean over Z
    summed over latents and their timesteps; ℒ_LM, the cross-entropy summed over words; the same
    over the words that hold a document together (BOD, EOD, END) and over stop decisions, which are
    no part of perplexity. counts_K: how many terms each is. source_sums_KS, source_counts_KS: the
    same by the document's source, detached. bin_sums_10, bin_counts_10: ℒ_Diff detached, by tenth
    of the process (0: almost clean, 9: almost noise).
    """

    sums_K: Tensor
    counts_K: Tensor
    source_sums_KS: Tensor
    source_counts_KS: Tensor
    bin_sums_10: Tensor
    bin_counts_10: Tensor


def binned(times: Tensor, errors: Tensor, *, process: DiffusionProcess) -> tuple[Tensor, Tensor]:
    """(sums, counts) fp32 (10,) of ℒ_Diff's detached errors by their times, of one shape."""
    bins, errors = process.bin_of(times, BINS).flatten(), errors.flatten()
    empty = errors.new_zeros(BINS)
    return empty.index_add(0, bins, errors), empty.index_add(0, bins, torch.ones_like(errors))


def by_source(values_M: Tensor, sources_M: Tensor, *, sources: int) -> Tensor:
    """fp32 (S,): values summed by their source, detached."""
    empty = torch.zeros(sources, dtype=torch.float32, device=values_M.device)
    return empty.index_add(0, sources_M, values_M.detach().float())
