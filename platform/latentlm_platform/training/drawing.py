"""Micro-batches as models read them: noise drawn, latents normalised, everything on the device.

Noise is keyed by (seed, source, record, epoch, place), never by batch, rank or order; it is drawn
here, before use, so that a batch is what its documents are alone.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from latentlm.codec.contract import Codec, LatentPosterior
from latentlm.randomness import RowNoise
from latentlm.sequence import PackedBatch
from latentlm_platform.batches.collating import RawBatch


class LatentBatch(NamedTuple):
    """Rows ready for a model, and the noise of each document."""

    packed: PackedBatch
    noise: RowNoise


def draw_batch(
    raw: RawBatch, codec: Codec, *, seed: int, device: torch.device, as_words: bool = False
) -> LatentBatch:
    """Draw the latents of a micro-batch. `as_words`: a latent is the id of its code, a word."""

    def on_device(array: Any) -> Tensor:
        return torch.from_numpy(array).to(device)

    noise = RowNoise(
        seed=seed, ids_B=on_device(raw.document_ids_N), epochs_B=on_device(raw.epochs_N)
    )
    ids_BT, document_BT = on_device(raw.ids_BT), on_device(raw.document_BT)
    places_P = on_device(raw.latent_places_P)
    latents_PZ = _draw(raw, codec, noise, on_device)
    width = 0 if as_words else raw.mean_SLZ.shape[-1]
    latents_BTZ = torch.zeros(*ids_BT.shape, width, device=device)
    if as_words:
        ids_BT.view(-1)[places_P] = latents_PZ.squeeze(-1).long()
    else:
        latents_BTZ.view(-1, width)[places_P] = latents_PZ
    source_BT = on_device(raw.source_N)[document_BT.clamp(min=0)]
    packed = PackedBatch(
        ids_BT,
        latents_BTZ,
        document_BT,
        on_device(raw.position_BT),
        on_device(raw.scored_BT),
        source_BT,
    )
    return LatentBatch(packed, noise)


def _draw(raw: RawBatch, codec: Codec, noise: RowNoise, on_device: Any) -> Tensor:
    """Normalised latents (P, Z) of all signals, one below the other."""
    mean_SLZ = on_device(raw.mean_SLZ)
    if not len(mean_SLZ):
        return mean_SLZ.new_zeros(0, raw.mean_SLZ.shape[-1])
    own = noise.rows(on_device(raw.signal_document_S)).at(on_device(raw.signal_place_S))
    std_SLZ = None if raw.std_SLZ is None else on_device(raw.std_SLZ)
    latents_SLZ = codec.normalise(codec.draw(LatentPosterior(mean_SLZ, std_SLZ), noise=own))
    lengths_S1 = on_device(raw.lengths_S)[:, None]
    real_SL = torch.arange(latents_SLZ.shape[1], device=mean_SLZ.device) < lengths_S1
    return latents_SLZ[real_SL]
