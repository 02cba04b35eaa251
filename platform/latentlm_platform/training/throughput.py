"""How fast a training is: items, positions and latents a second, and the share of the peak.

What a batch holds is counted, not what it might hold: padding costs no FLOPs here.
"""

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from latentlm.models import Targets, flop_law
from latentlm.sequence import PADDING
from latentlm.settings import ModelSettings
from latentlm_platform.batches.collating import RawBatch


class Throughput:
    """Counts of this rank's last step; ranks add them up."""

    size = 5  # items, positions, latents, words, pairs

    def __init__(self, settings: ModelSettings, *, timesteps: int, peak_flops: float) -> None:
        self.law, self.peak_flops = flop_law(settings, timesteps), peak_flops
        self.counts = torch.zeros(self.size, dtype=torch.float64)
        self.start()

    def start(self) -> None:
        """A step begins now."""
        self.clock = time.perf_counter()

    def count(self, batches: Sequence[RawBatch], targets: Sequence[Targets]) -> None:
        """Count a step's micro-batches."""
        rows = []
        for raw, found in zip(batches, targets, strict=True):
            lengths = np.bincount(raw.document_BT[raw.document_BT != PADDING])
            words = len(found.text_W) + len(found.structure_W) + len(found.stop_W)
            latents = len(found.latent_L)
            pairs = int(np.square(lengths).sum())
            rows.append([len(raw.document_ids_N), int(lengths.sum()), latents, words, pairs])
        self.counts = torch.tensor(rows, dtype=torch.float64).sum(0)

    def vector(self) -> Tensor:
        """What ranks add up."""
        return self.counts

    def rates(self, reduced: Tensor, *, workers: int) -> dict[str, float]:
        """Of the step that ends now, over all ranks."""
        now = time.perf_counter()
        elapsed, self.clock = now - self.clock, now
        items, positions, latents, words, pairs = reduced.tolist()
        flops = self.law.of(
            items=items, positions=positions, latents=latents, words=words, pairs=pairs
        )
        return {
            "items_per_s": items / elapsed,
            "positions_per_s": positions / elapsed,
            "latents_per_s": latents / elapsed,
            "mfu": flops / elapsed / (self.peak_flops * workers),
        }
