"""Losses over ranks and micro-batches: sums and counts are added up, never means averaged."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentlm.models import BINS, LOSSES, LossTerms

KINDS = len(LOSSES)
WORDS = [LOSSES.index("text"), LOSSES.index("structure")]  # one mean: ℒ_LM is over all words


@dataclass(frozen=True)
class LossLaw:
    """What losses are called and weigh: α of ℒ_Diff, 1 of words, that of stop decisions.

    `names` are metrics, one for each of LOSSES; `sources` the corpora they are told apart by.
    """

    weights: tuple[float, ...]
    names: tuple[str, ...] = LOSSES
    sources: tuple[str, ...] = ("",)

    def shares(self, counts_K: Sequence[float]) -> Tensor:
        """fp32 (K,): what each loss sum is multiplied by, weight over count of all ranks."""
        counts = self._together(counts_K)
        pairs = zip(self.weights, counts, strict=True)
        return torch.tensor([w / n if n else 0.0 for w, n in pairs], dtype=torch.float32)

    def means(self, reduced: Tensor) -> dict[str, float]:
        """From a reduced `StepSums.vector()`: `loss` (ℒ_LM + α ℒ_Diff + weighted stop decisions),
        each kind that has terms as `loss_KIND`, of several sources `loss_KIND_SOURCE` too, and
        ℒ_Diff by timestep tenth."""
        count = KINDS * len(self.sources)
        sums, counts = reduced[: 2 * count].view(2, KINDS, len(self.sources))
        weighed = self.shares(counts.sum(1).tolist()).double() @ sums.sum(1)
        found = {"loss": float(weighed) if counts.sum() else math.nan}
        for kind, name in enumerate(self.names):
            if counts[kind].sum():
                found[f"loss_{name}"] = float(sums[kind].sum() / counts[kind].sum())
            if len(self.sources) > 1:
                found |= {
                    f"loss_{name}_{source}": float(sums[kind, s] / counts[kind, s])
                    for s, source in enumerate(self.sources)
                    if counts[kind, s]
                }
        bin_sums, bin_counts = reduced[2 * count :].view(2, BINS).tolist()
        tenths = enumerate(zip(bin_sums, bin_counts, strict=True))
        return found | {f"loss_timestep_bin_{i}": total / n for i, (total, n) in tenths if n}

    @staticmethod
    def _together(counts_K: Sequence[float]) -> list[float]:
        words = sum(counts_K[kind] for kind in WORDS)
        return [words if kind in WORDS else counts_K[kind] for kind in range(KINDS)]


class StepSums:
    """Loss sums and counts of this rank's micro-batches, by kind and source, and by tenth."""

    def __init__(self, sources: int = 1) -> None:
        self.kinds = torch.zeros(2, KINDS, sources, dtype=torch.float64)
        self.bins = torch.zeros(2, BINS, dtype=torch.float64)

    def add(self, loss: LossTerms) -> None:
        """Count one micro-batch."""
        self.kinds += torch.stack([loss.source_sums_KS, loss.source_counts_KS]).double().cpu()
        self.bins += torch.stack([loss.bin_sums_10, loss.bin_counts_10]).double().cpu()

    def vector(self) -> Tensor:
        """[sums and counts by kind and source, 10 bin sums, 10 bin counts]: what ranks add up."""
        return torch.cat([self.kinds.flatten(), self.bins.flatten()])
