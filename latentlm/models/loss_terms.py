"""What every model's `forward` gives: sums and counts of its losses, which ranks can add up."""

from typing import NamedTuple

import torch
from torch import Tensor

from latentlm.diffusion.process import DiffusionProcess

BINS = 10
LOSSES = ("diffusion", "text", "stop")


class LossTerms(NamedTuple):
    """Sums and counts, never means: who reduces over ranks divides by the global count.

    sums_3 fp32, with a gradient: ℒ_Diff, the squared error's mean over Z summed over latents and
    their timesteps; ℒ_LM, the cross-entropy summed over words; the same over stop decisions, which
    is no part of perplexity. counts_3: how many terms each is. bin_sums_10, bin_counts_10: ℒ_Diff
    detached, by tenth of the process (0: almost clean, 9: almost noise).
    """

    sums_3: Tensor
    counts_3: Tensor
    bin_sums_10: Tensor
    bin_counts_10: Tensor


def loss_terms(
    sums_3: Tensor,
    counts_3: Tensor,
    *,
    process: DiffusionProcess,
    times: Tensor,
    errors: Tensor,
) -> LossTerms:
    """The terms, with ℒ_Diff's detached errors sorted into bins by their times, of one shape."""
    bins, errors = process.bin_of(times, BINS).flatten(), errors.flatten()
    empty = errors.new_zeros(BINS)
    return LossTerms(
        sums_3,
        counts_3,
        empty.index_add(0, bins, errors),
        empty.index_add(0, bins, torch.ones_like(errors)),
    )
