"""Noise that is given instead of drawn, so that two samplers can be held against each other."""

from collections.abc import Sequence

import torch
from torch import Tensor

from latentlm.randomness import Draw, RowNoise


class GivenNoise(RowNoise):
    """A `RowNoise` whose initial noise at each position is one of a list, the first at `first`."""

    def __init__(self, noises: Sequence[Tensor], *, first: int = 0, place: int = 0) -> None:
        self._noises, self._first, self._place = noises, first, place

    def __len__(self) -> int:
        return len(self._noises[0])

    def rows(self, index: Tensor | slice) -> "GivenNoise":
        """All rows, in order: anything else is a mistake of the benchmark."""
        chosen = torch.arange(len(self))[index].tolist()
        if chosen != list(range(len(self))):
            raise ValueError(f"rows {chosen} were asked for; this noise is of all rows")
        return self

    def at(self, position: int | Tensor) -> "GivenNoise":
        """The noise of one position, the same for all rows."""
        where = int(position.flatten()[0]) if isinstance(position, Tensor) else position
        return GivenNoise(self._noises, first=self._first, place=where - self._first)

    def normal(self, draw: int, *shape: int) -> Tensor:
        """The given noise; raises ValueError for any draw but the solver's start."""
        noise = self._noises[self._place]
        if draw != Draw.INITIAL_NOISE or noise.shape[1:] != shape:
            raise ValueError(f"draw {draw} of shape {shape} was asked for; {noise.shape} is given")
        return noise
