"""Documents of text and latents, and the packed batches that models are trained on (§2).

Position i of a batch holds a word or a latent; the state there predicts position i + 1 of the
same document. The shift happens once, in the loss. Packing never splits a document.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]

LATENT: Final = -1  # in ids_BT: a latent stands here
PADDING: Final = -1  # in document_BT: nothing stands here


@dataclass(frozen=True, slots=True)
class TextSpan:
    """Words of the vocabulary, or the label of a class-conditional model. Unscored: given only."""

    token_ids: IntArray
    scored: bool = True

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class LatentSpan:
    """Latents (N, Z) of one signal, normalised."""

    latents_NZ: FloatArray
    scored: bool = True

    def __len__(self) -> int:
        return len(self.latents_NZ)


Document = tuple[TextSpan | LatentSpan, ...]


class PackedBatch(NamedTuple):
    """Rows of whole documents, side by side. A NamedTuple: ZeRO hooks do not walk dataclasses.

    ids_BT int64: the word, or LATENT. latents_BTZ fp32: the latent, else 0. document_BT int64:
    the document's number in the batch, or PADDING. position_BT int64: the place within the
    document. scored_BT bool: whether the element here is a target. source_BT int64: which of the
    run's corpora the document is from.
    """

    ids_BT: Tensor
    latents_BTZ: Tensor
    document_BT: Tensor
    position_BT: Tensor
    scored_BT: Tensor
    source_BT: Tensor

    def to(self, device: torch.device) -> "PackedBatch":
        """The batch on a device."""
        return PackedBatch(*(tensor.to(device) for tensor in self))


def class_conditional(latents_BNZ: Tensor, labels_B: Tensor) -> PackedBatch:
    """Documents [class, z₁ … z_N], one a row, without copying in Python. All latents are scored."""
    batch, count, width = latents_BNZ.shape
    latents_BTZ = torch.cat((latents_BNZ.new_zeros(batch, 1, width), latents_BNZ), dim=1)
    ids_BT = torch.full((batch, count + 1), LATENT, dtype=torch.int64, device=labels_B.device)
    ids_BT[:, 0] = labels_B
    rows = torch.arange(batch, device=labels_B.device)
    columns = torch.arange(count + 1, device=labels_B.device)
    return PackedBatch(
        ids_BT,
        latents_BTZ,
        rows[:, None].expand(batch, count + 1),
        columns.expand(batch, count + 1),
        (columns > 0).expand(batch, count + 1),
        torch.zeros_like(ids_BT),
    )


def class_conditional_codes(codes_BN: Tensor, labels_B: Tensor) -> PackedBatch:
    """Documents [class, c₁ … c_N] of codes int64, one a row. All codes are scored."""
    batch, count = codes_BN.shape
    empty_BN0 = torch.zeros(batch, count, 0, device=labels_B.device)
    packed = class_conditional(empty_BN0, labels_B)
    return packed._replace(ids_BT=torch.cat((labels_B[:, None], codes_BN), dim=1))


def pack(documents: Sequence[Document], *, length: int, latent_width: int) -> PackedBatch:
    """Whole documents, first-fit into rows of `length` positions, in their order.

    Raises ValueError where a document is longer than a row, empty, or of another latent width.
    """
    sizes = [sum(len(span) for span in document) for document in documents]
    for number, size in enumerate(sizes):
        if not 0 < size <= length:
            raise ValueError(
                f"document {number} has {size} positions, but rows hold 1 to {length};"
                " shorten it or raise the sequence length"
            )
    rows = _first_fit(sizes, length)
    shape = (len(rows), length)
    ids = np.zeros(shape, np.int64)
    latents = np.zeros((*shape, latent_width), np.float32)
    document_of = np.full(shape, PADDING, np.int64)
    position, scored = np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
    for row, members in enumerate(rows):
        start = 0
        for number in members:
            stop = start + sizes[number]
            document_of[row, start:stop] = number
            position[row, start:stop] = np.arange(sizes[number])
            for span in documents[number]:
                here = slice(start, start + len(span))
                scored[row, here] = span.scored
                if isinstance(span, TextSpan):
                    _check_ids(span, number)
                    ids[row, here] = span.token_ids
                else:
                    _check_width(span, number, latent_width)
                    ids[row, here] = LATENT
                    latents[row, here] = span.latents_NZ
                start += len(span)
    arrays = (ids, latents, document_of, position, scored, np.zeros(shape, np.int64))
    return PackedBatch(*(torch.from_numpy(array) for array in arrays))


def _first_fit(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Which documents share a row: each goes into the first row that has room."""
    rows: list[list[int]] = []
    room: list[int] = []
    for number, size in enumerate(sizes):
        row = next((i for i, left in enumerate(room) if left >= size), None)
        if row is None:
            row = len(rows)
            rows.append([])
            room.append(length)
        rows[row].append(number)
        room[row] -= size
    return rows


def _check_ids(span: TextSpan, number: int) -> None:
    if (span.token_ids < 0).any():
        raise ValueError(
            f"document {number} has the word {span.token_ids.min()}; ids are 0 or more"
        )


def _check_width(span: LatentSpan, number: int, latent_width: int) -> None:
    if span.latents_NZ.ndim != 2 or span.latents_NZ.shape[1] != latent_width:
        raise ValueError(
            f"document {number} has latents of shape {span.latents_NZ.shape}, the batch needs"
            f" (N, {latent_width}); encode with the model's own codec"
        )
