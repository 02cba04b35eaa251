"""Exposure bias by position (§2.3, Figure 6): how far generation drifts from teacher forcing.

At position n a class-conditional model draws zₙ given the label and z before n. *Teacher-forced*,
the prefix is a real image's; *free-running*, the model's own. In: latents of both kinds and real
ones, for the same labels. Out: for each position the Fréchet distance of diagonal Gaussians between
free-running and teacher-forced latents, which is exposure bias, and between teacher-forced and real
ones, which is the model's error without exposure.
"""

from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from latentlm.diffusion.samplers import scheduled_scale
from latentlm.models import LatentLM, null_ids
from latentlm.randomness import RowNoise
from latentlm.sequence import PackedBatch, class_conditional
from latentlm.settings import SamplerSettings

KINDS = ("real", "teacher_forced", "free_running")
HALVES = 2
LAST_SHARE = 0.25  # of the positions, over which exposure_bias_last is the mean


class DrawsLatents(Protocol):
    """A `HeadSampler`: latents (K, Z) for K hidden states and, behind them, their null twins."""

    sampler: SamplerSettings

    def sample(
        self, hidden_PD: Tensor, *, scales: list[float], guided_rows: list[int], noise: RowNoise
    ) -> Tensor: ...


@torch.inference_mode()
def teacher_forced_latents(
    model: LatentLM,
    latents_BNZ: Tensor,
    labels_B: Tensor,
    *,
    cfg_scales_B: Tensor,
    head: DrawsLatents,
    noise: RowNoise,
) -> Tensor:
    """zₙ ~ p(zₙ | label, real z before n) for every n at once: normalised latents (B, N, Z) fp32.

    One backbone pass over the real latents, one over the null twins of rows whose scale is not 1,
    then the head at all positions together. With the same noise the first latent is that of
    `sample_latents`: its prefix is the label alone.
    """
    if model.settings.vocabulary is not None:
        raise ValueError("teacher forcing needs a model of classes; this one has a vocabulary")
    batch, count, width = latents_BNZ.shape
    packed = class_conditional(latents_BNZ, labels_B)
    guided = [row for row, scale in enumerate(cfg_scales_B.tolist()) if scale != 1]
    hidden_PD = model.hidden(packed).flatten(0, 1)
    if guided:
        twins = PackedBatch(*(tensor[guided] for tensor in packed))
        hidden_TND = model.hidden(twins, ids_BT=null_ids(twins.ids_BT, model.settings))
        hidden_PD = torch.cat((hidden_PD, hidden_TND.flatten(0, 1)))
    rows_P = torch.arange(batch, device=labels_B.device).repeat_interleave(count)
    positions_P = torch.arange(1, count + 1, device=labels_B.device).repeat(batch)
    drawn_PZ = head.sample(
        hidden_PD,
        scales=_scales(cfg_scales_B.tolist(), count, head.sampler),
        guided_rows=[row * count + n for row in guided for n in range(count)],
        noise=noise.rows(rows_P).at(positions_P),
    )
    return drawn_PZ.view(batch, count, width)


def _scales(scales: list[float], count: int, sampler: SamplerSettings) -> list[float]:
    """One guidance scale a position of each row, as decoding schedules them."""
    if sampler.guidance_schedule == "constant":
        return [scale for scale in scales for _ in range(count)]
    fractions = [n / max(1, count - 1) for n in range(count)]
    return [
        scheduled_scale(scale, fraction=fraction, schedule=sampler.guidance_schedule)
        for scale in scales
        for fraction in fractions
    ]


@dataclass(kw_only=True)
class ExposureMoments:
    """Counts and sums, fp64, by kind K of latent, half H of the images, position and channel.

    Sums of many workers merge to the sums of one; no latent is kept. The two halves tell how large
    a distance chance alone gives.
    """

    counts_H: Tensor
    sums_KHNZ: Tensor
    square_sums_KHNZ: Tensor

    @classmethod
    def of_shape(cls, latent_count: int, latent_width: int) -> Self:
        """Nothing seen yet, of N = `latent_count` positions and Z = `latent_width` channels."""
        shape = (2, len(KINDS), HALVES, latent_count, latent_width)
        empty = torch.zeros(shape, dtype=torch.float64)
        counts_H = torch.zeros(HALVES, dtype=torch.float64)
        return cls(counts_H=counts_H, sums_KHNZ=empty[0], square_sums_KHNZ=empty[1])

    def add(
        self,
        *,
        ids_B: Tensor,
        real_BNZ: Tensor,
        teacher_forced_BNZ: Tensor,
        free_running_BNZ: Tensor,
    ) -> None:
        """Count images: an image's half is its id's parity, whatever batch it comes in."""
        kinds = torch.stack((real_BNZ, teacher_forced_BNZ, free_running_BNZ)).cpu().double()
        for half in range(HALVES):
            mine = (ids_B % HALVES == half).cpu()
            self.counts_H[half] += int(mine.sum())
            self.sums_KHNZ[:, half] += kinds[:, mine].sum(1)
            self.square_sums_KHNZ[:, half] += kinds[:, mine].square().sum(1)

    def merge(self, other: "ExposureMoments") -> None:
        """Count what another worker has counted."""
        self.counts_H = self.counts_H + other.counts_H
        self.sums_KHNZ = self.sums_KHNZ + other.sums_KHNZ
        self.square_sums_KHNZ = self.square_sums_KHNZ + other.square_sums_KHNZ

    def gap_N(self, one: str, other: str) -> Tensor:
        """(m₁ - m₂)² + (s₁ - s₂)² of two kinds, by position: the mean over channels."""
        means_KNZ, stds_KNZ = self._gaussians()
        i, j = KINDS.index(one), KINDS.index(other)
        return _distance_N(means_KNZ[i], stds_KNZ[i], means_KNZ[j], stds_KNZ[j])

    def floor_N(self) -> Tensor:
        """What `gap_N` would be between equal laws: teacher forcing of one half to the other's.

        Halved, since a Fréchet distance of equal laws goes with 1 / images, and these are halves.
        """
        means_HNZ, stds_HNZ = _gaussian(
            self.counts_H[:, None, None], self.sums_KHNZ[1], self.square_sums_KHNZ[1]
        )
        return _distance_N(means_HNZ[0], stds_HNZ[0], means_HNZ[1], stds_HNZ[1]) / HALVES

    def metrics(self) -> dict[str, float]:
        """Flat metrics, in units of the normalised latents' variance, means over positions.

        exposure_bias: free-running to teacher-forced; exposure_bias_last: in the last quarter of
        positions; both to be read against exposure_bias_floor. teacher_forced_error: to real.
        """
        gap_N, floor_N = self.gap_N("free_running", "teacher_forced"), self.floor_N()
        last = max(1, round(LAST_SHARE * len(gap_N)))
        return {
            "exposure_bias": float(gap_N.mean()),
            "exposure_bias_last": float(gap_N[-last:].mean()),
            "exposure_bias_floor": float(floor_N.mean()),
            "exposure_bias_last_floor": float(floor_N[-last:].mean()),
            "teacher_forced_error": float(self.gap_N("teacher_forced", "real").mean()),
            "exposure_bias_images": float(self.counts_H.sum()),
        }

    def rows(self) -> list[dict[str, Any]]:
        """A line a position: mean over channels of the means, RMS over channels of deviations."""
        means_KNZ, stds_KNZ = self._gaussians()
        means_KN, stds_KN = means_KNZ.mean(-1), stds_KNZ.square().mean(-1).sqrt()
        columns: dict[str, Tensor] = {}
        for k, kind in enumerate(KINDS):
            columns |= {f"{kind}_mean": means_KN[k], f"{kind}_std": stds_KN[k]}
        columns["exposure_bias"] = self.gap_N("free_running", "teacher_forced")
        columns["exposure_bias_floor"] = self.floor_N()
        columns["teacher_forced_error"] = self.gap_N("teacher_forced", "real")
        return [
            {"position": n} | {name: float(values[n]) for name, values in columns.items()}
            for n in range(means_KN.shape[1])
        ]

    def _gaussians(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation (K, N, Z) of all images of each kind."""
        return _gaussian(self.counts_H.sum(), self.sums_KHNZ.sum(1), self.square_sums_KHNZ.sum(1))


def _gaussian(count: Tensor, sums: Tensor, square_sums: Tensor) -> tuple[Tensor, Tensor]:
    if int(count.min()) < 2:
        raise ValueError(
            f"a deviation needs 2 images of each half, the halves have {count.flatten().tolist()};"
            " add more, of even and of odd ids"
        )
    mean = sums / count
    variance = (square_sums / count - mean.square()).clamp(min=0) * count / (count - 1)
    return mean, variance.sqrt()


def _distance_N(mean_NZ: Tensor, std_NZ: Tensor, other_NZ: Tensor, other_std_NZ: Tensor) -> Tensor:
    return ((mean_NZ - other_NZ).square() + (std_NZ - other_std_NZ).square()).mean(-1)
