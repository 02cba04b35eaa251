"""Losses over ranks and micro-batches: sums and counts are added up, never means averaged."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from latentlm.models import BINS, LOSSES, LossTerms


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


@dataclass
class StepSums:
    """Loss sums and counts of this rank's micro-batches, by kind and by timestep tenth."""

    kinds: Tensor = field(default_factory=lambda: _zeros(2, len(LOSSES)))
    bins: Tensor = field(default_factory=lambda: _zeros(2, BINS))

    def add(self, loss: LossTerms) -> None:
        self.kinds += torch.stack([loss.sums_3.detach().double(), loss.counts_3]).cpu()
        self.bins += torch.stack([loss.bin_sums_10, loss.bin_counts_10]).double().cpu()

    def vector(self) -> Tensor:
        """[3 sums, 3 counts, 10 bin sums, 10 bin counts]: what ranks add up."""
        return torch.cat([self.kinds.flatten(), self.bins.flatten()])


def shares(counts: Sequence[float], weights: Sequence[float]) -> Tensor:
    """fp32 (3,): what each loss sum is multiplied by, its weight over its count on all ranks."""
    pairs = zip(weights, counts, strict=True)
    return torch.tensor([w / n if n else 0.0 for w, n in pairs], dtype=torch.float32)


def loss_means(reduced: Tensor, weights: Sequence[float]) -> dict[str, float]:
    """From a reduced `StepSums.vector()`: `loss` (ℒ_LM + α ℒ_Diff + weighted stop decisions), each
    kind that has terms as `loss_KIND`, and ℒ_Diff by timestep tenth."""
    kinds = len(LOSSES)
    sums, counts = reduced[: 2 * kinds].view(2, kinds).tolist()
    rows = zip(LOSSES, weights, sums, counts, strict=True)
    found = [(name, weight, total / n) for name, weight, total, n in rows if n]
    bin_sums, bin_counts = reduced[2 * kinds :].view(2, BINS).tolist()
    tenths = enumerate(zip(bin_sums, bin_counts, strict=True))
    return (
        {"loss": sum(weight * mean for _, weight, mean in found) if found else math.nan}
        | {f"loss_{name}": mean for name, _, mean in found}
        | {f"loss_timestep_bin_{i}": total / n for i, (total, n) in tenths if n}
    )
