"""Rows of documents as arrays: what a micro-batch is before its noise is drawn.

Everything here is numpy and ready before the batch is used; the latents' places stay empty until
their noise is drawn on the worker's device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latentlm.sequence import LATENT, PADDING, TextSpan
from latentlm_platform.batches.documents import PosteriorSpan
from latentlm_platform.batches.lane import LaneDocument

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class RawBatch:
    """A micro-batch of B rows of T positions; N documents, S signals of at most L latents.

    ids_BT, document_BT, position_BT, scored_BT as in `latentlm.sequence.PackedBatch`.
    document_ids_N, epochs_N key the noise, source_N says where a document is from. mean_SLZ (and
    std) are padded with zeros; lengths_S latents of each count, which fill latent_places_P of the
    flattened rows, one signal after another. signal_document_S, signal_place_S key their noise.
    """

    ids_BT: IntArray
    document_BT: IntArray
    position_BT: IntArray
    scored_BT: npt.NDArray[np.bool_]
    document_ids_N: IntArray
    epochs_N: IntArray
    source_N: IntArray
    mean_SLZ: FloatArray
    std_SLZ: FloatArray | None
    lengths_S: IntArray
    signal_document_S: IntArray
    signal_place_S: IntArray
    latent_places_P: IntArray

    @property
    def positions(self) -> int:
        """Positions where something stands."""
        return int(np.count_nonzero(self.document_BT != PADDING))


def collate(rows: Sequence[Sequence[LaneDocument]], *, length: int, latent_width: int) -> RawBatch:
    """Rows of whole documents as arrays."""
    shape = (len(rows), length)
    ids, document_of = np.zeros(shape, np.int64), np.full(shape, PADDING, np.int64)
    position, scored = np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
    documents = [document for row in rows for document in row]
    signals: list[tuple[int, PosteriorSpan]] = []
    ramp, number = np.arange(length), 0
    for row, members in enumerate(rows):
        start = 0
        for document in members:
            begin = start
            for span in document.spans:
                here = slice(start, start + len(span))
                if span.scored:
                    scored[row, here] = True
                if isinstance(span, TextSpan):
                    ids[row, here] = span.token_ids
                else:
                    ids[row, here] = LATENT
                    signals.append((number, span))
                start = here.stop
            document_of[row, begin:start] = number
            position[row, begin:start] = ramp[: start - begin]
            number += 1
    mean, std, lengths = _padded([span for _, span in signals], latent_width)
    return RawBatch(
        ids,
        document_of,
        position,
        scored,
        np.array([document.id for document in documents], np.int64),
        np.array([document.ref.epoch for document in documents], np.int64),
        np.array([document.ref.source for document in documents], np.int64),
        mean,
        std,
        lengths,
        np.array([number for number, _ in signals], np.int64),
        np.array([span.place for _, span in signals], np.int64),
        np.flatnonzero(ids == LATENT),
    )


def _padded(
    spans: Sequence[PosteriorSpan], width: int
) -> tuple[FloatArray, FloatArray | None, IntArray]:
    """(mean, std or None, lengths) of signals, one below the other."""
    lengths = np.array([len(span) for span in spans], np.int64)
    shape = (len(spans), int(lengths.max(initial=0)), width)
    mean = np.zeros(shape, np.float32)
    with_std = bool(spans) and spans[0].std_NZ is not None
    std = np.zeros(shape, np.float32) if with_std else None
    for number, span in enumerate(spans):
        mean[number, : len(span)] = span.mean_NZ
        if std is not None:
            std[number, : len(span)] = span.std_NZ
    return mean, std, lengths
