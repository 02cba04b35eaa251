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
EXPOSURE = ("free_running", "teacher_forced")
MODEL_ERROR = ("teacher_forced", "real")
GROUPS = 8  # of images, whose spread tells what chance alone gives
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
    """Counts and sums, fp64, by kind K of latent, group G of the images, position and channel.

    Sums of many workers merge to the sums of one; no latent is kept.
    """

    counts_G: Tensor
    sums_KGNZ: Tensor
    square_sums_KGNZ: Tensor

    @classmethod
    def of_shape(cls, latent_count: int, latent_width: int) -> Self:
        """Nothing seen yet, of N = `latent_count` positions and Z = `latent_width` channels."""
        shape = (2, len(KINDS), GROUPS, latent_count, latent_width)
        empty = torch.zeros(shape, dtype=torch.float64)
        counts_G = torch.zeros(GROUPS, dtype=torch.float64)
        return cls(counts_G=counts_G, sums_KGNZ=empty[0], square_sums_KGNZ=empty[1])

    def add(
        self,
        *,
        ids_B: Tensor,
        real_BNZ: Tensor,
        teacher_forced_BNZ: Tensor,
        free_running_BNZ: Tensor,
    ) -> None:
        """Count images: an image's group is its id's remainder, whatever batch it comes in."""
        kinds = torch.stack((real_BNZ, teacher_forced_BNZ, free_running_BNZ)).cpu().double()
        groups_B = ids_B.cpu() % GROUPS
        self.counts_G = self.counts_G + torch.bincount(groups_B, minlength=GROUPS)
        self.sums_KGNZ = self.sums_KGNZ.index_add(1, groups_B, kinds)
        self.square_sums_KGNZ = self.square_sums_KGNZ.index_add(1, groups_B, kinds.square())

    def merge(self, other: "ExposureMoments") -> None:
        """Count what another worker has counted."""
        self.counts_G = self.counts_G + other.counts_G
        self.sums_KGNZ = self.sums_KGNZ + other.sums_KGNZ
        self.square_sums_KGNZ = self.square_sums_KGNZ + other.square_sums_KGNZ

    def gap_N(self, one: str, other: str) -> Tensor:
        """(m₁ - m₂)² + (s₁ - s₂)² of two kinds, by position: the mean over channels."""
        means_KNZ, stds_KNZ = self._gaussians()
        i, j = KINDS.index(one), KINDS.index(other)
        squares_NZ = (means_KNZ[i] - means_KNZ[j]).square() + (stds_KNZ[i] - stds_KNZ[j]).square()
        return squares_NZ.mean(-1)

    def floor_N(self, one: str, other: str) -> Tensor:
        """What `gap_N` would be on average for equal laws, with as many images: chance alone.

        The variance over groups of m₁ - m₂ and of s₁ - s₂, over the number of groups. So gap minus
        floor estimates the distance of the laws without bias, and may be negative.
        """
        counts_G11 = self.counts_G[:, None, None]
        means_KGNZ, stds_KGNZ = _gaussian(counts_G11, self.sums_KGNZ, self.square_sums_KGNZ)
        i, j = KINDS.index(one), KINDS.index(other)
        spread_NZ = (means_KGNZ[i] - means_KGNZ[j]).var(0) + (stds_KGNZ[i] - stds_KGNZ[j]).var(0)
        return spread_NZ.mean(-1) / GROUPS

    def metrics(self) -> dict[str, float]:
        """Flat metrics, in units of the normalised latents' variance, means over positions.

        exposure_bias: free-running to teacher-forced; exposure_bias_last: in the last quarter of
        positions; both to be read against exposure_bias_floor. teacher_forced_error: to real.
        """
        gap_N, floor_N = self.gap_N(*EXPOSURE), self.floor_N(*EXPOSURE)
        last = max(1, round(LAST_SHARE * len(gap_N)))
        return {
            "exposure_bias": float(gap_N.mean()),
            "exposure_bias_last": float(gap_N[-last:].mean()),
            "exposure_bias_floor": float(floor_N.mean()),
            "exposure_bias_last_floor": float(floor_N[-last:].mean()),
            "teacher_forced_error": float(self.gap_N(*MODEL_ERROR).mean()),
            "teacher_forced_error_floor": float(self.floor_N(*MODEL_ERROR).mean()),
            "exposure_bias_images": float(self.counts_G.sum()),
        }

    def rows(self) -> list[dict[str, Any]]:
        """A line a position: mean over channels of the means, RMS over channels of deviations."""
        means_KNZ, stds_KNZ = self._gaussians()
        means_KN, stds_KN = means_KNZ.mean(-1), stds_KNZ.square().mean(-1).sqrt()
        columns: dict[str, Tensor] = {}
        for k, kind in enumerate(KINDS):
            columns |= {f"{kind}_mean": means_KN[k], f"{kind}_std": stds_KN[k]}
        columns["exposure_bias"] = self.gap_N(*EXPOSURE)
        columns["exposure_bias_floor"] = self.floor_N(*EXPOSURE)
        columns["teacher_forced_error"] = self.gap_N(*MODEL_ERROR)
        columns["teacher_forced_error_floor"] = self.floor_N(*MODEL_ERROR)
        return [
            {"position": n} | {name: float(values[n]) for name, values in columns.items()}
            for n in range(means_KN.shape[1])
        ]

    def _gaussians(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation (K, N, Z) of all images of each kind."""
        return _gaussian(self.counts_G.sum(), self.sums_KGNZ.sum(1), self.square_sums_KGNZ.sum(1))


def _gaussian(count: Tensor, sums: Tensor, square_sums: Tensor) -> tuple[Tensor, Tensor]:
    if int(count.min()) < 2:
        raise ValueError(
            f"{int(count.sum())} images give the smallest of {GROUPS} groups {int(count.min())};"
            f" a deviation needs 2 in each: add more, {2 * GROUPS} at least, of consecutive ids"
        )
    mean = sums / count
    variance = (square_sums / count - mean.square()).clamp(min=0) * count / (count - 1)
    return mean, variance.sqrt()
