"""Keyed noise: every random number is a hash of (seed, item id, epoch, purpose, element).

A row's noise never depends on which batch, rank or order it came in, so a batch gives what its
rows give alone and a resumed run repeats an unbroken one. The mixing function is the finaliser of
SplitMix64 (Steele, Lea and Flood 2014), written in torch int64 operations: products wrap, and `>>`
on int64 copies the sign, hence the masks.
"""

from enum import IntEnum, unique
from math import pi
from typing import Self

import torch
from torch import Tensor


@unique
class Draw(IntEnum):
    """What a draw is for. Two purposes never share noise; the numbers must never be reused."""

    CODEC_SIGMA = 1
    CODEC_NOISE = 2
    LABEL_DROPOUT = 3
    TIMESTEP = 4
    DIFFUSION_NOISE = 5
    INITIAL_NOISE = 6
    ANCESTRAL_NOISE = 7
    FLIP = 8
    TEXT = 9


def _signed(word: int) -> int:
    """The int64 with the same 64 bits as `word` mod 2⁶⁴."""
    return ((word + 2**63) % 2**64) - 2**63


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)
_LOW_32 = 2**32 - 1
_POSITION = 2**32  # positions start where purposes cannot reach


def _fold(word: Tensor, shift: int) -> Tensor:
    """word ^ (word >>> shift), in place."""
    return word.bitwise_xor_((word >> shift).bitwise_and_(2 ** (64 - shift) - 1))


def _mix(word: Tensor) -> Tensor:
    """SplitMix64's finaliser, a bijection of 64-bit words, in place."""
    word = _fold(word, 30).mul_(_FIRST)
    word = _fold(word, 27).mul_(_SECOND)
    return _fold(word, 31)


def _absorb(keys_B: Tensor, word: Tensor) -> Tensor:
    """New keys that depend on the old keys and on `word`; the order of absorbing counts."""
    return _mix(keys_B ^ _mix(word + _GOLDEN))


class RowNoise:
    """The noise of a batch of rows, each keyed by its own (seed, id, epoch).

    ids_B and epochs_B are int64 on the device where the noise is wanted; one integer epoch serves
    all rows. The integers behind every draw are the same on every device; normals agree between
    devices to the rounding of log and cos.
    """

    def __init__(self, *, seed: int, ids_B: Tensor, epochs_B: Tensor | int = 0) -> None:
        if ids_B.dtype != torch.int64 or ids_B.ndim != 1:
            raise ValueError(
                f"ids_B is {ids_B.dtype} of shape {tuple(ids_B.shape)}; give int64 ids, one a row"
            )
        keys_B = _absorb(torch.full_like(ids_B, _signed(seed)), torch.zeros_like(ids_B))
        keys_B = _absorb(keys_B, ids_B)
        self._keys_B = _absorb(keys_B, torch.zeros_like(ids_B) + epochs_B)

    def at(self, position: int | Tensor) -> Self:
        """The noise of one sequence position, or of each row's own (int64, one a row)."""
        if isinstance(position, Tensor):
            return self._with_keys(_absorb(self._keys_B, position + _POSITION))
        return self._with_keys(self._absorbed(_POSITION + position))

    def rows(self, index: Tensor | slice) -> Self:
        """The noise of these rows, in this order and as often as they are named."""
        return self._with_keys(self._keys_B[index])

    def __len__(self) -> int:
        return len(self._keys_B)

    def normal(self, draw: int, *shape: int) -> Tensor:
        """Standard normal fp32 (B, *shape), by Box and Muller: 32 bits for each of two factors."""
        count = _product(shape)
        bits_BJ = self._bits(draw, (count + 1) // 2)
        radius_BJ = ((bits_BJ >> 32) & _LOW_32).float().add_(0.5).mul_(2.0**-32)
        radius_BJ = radius_BJ.log_().mul_(-2.0).sqrt_()
        angle_BJ = (bits_BJ & _LOW_32).float().mul_(2.0 * pi * 2.0**-32)
        normals = torch.stack((angle_BJ.cos() * radius_BJ, angle_BJ.sin() * radius_BJ), dim=-1)
        return normals.flatten(1)[:, :count].reshape(-1, *shape)

    def uniform(self, draw: int, *shape: int) -> Tensor:
        """Uniform fp32 (B, *shape) in [0, 1): multiples of 2⁻²⁴, all exact."""
        bits_BJ = self._bits(draw, _product(shape))
        return ((bits_BJ >> 40) & (2**24 - 1)).float().mul_(2.0**-24).reshape(-1, *shape)

    def integers(self, draw: int, high: int, *shape: int) -> Tensor:
        """Uniform int64 (B, *shape) in [0, high), 1 ≤ high ≤ 2³¹; bias below high · 2⁻³²."""
        if not 1 <= high <= 2**31:
            raise ValueError(f"high is {high}; give an integer from 1 to 2**31")
        bits_BJ = self._bits(draw, _product(shape))
        return (((bits_BJ >> 32) & _LOW_32) * high >> 32).reshape(-1, *shape)

    def _bits(self, draw: int, count: int) -> Tensor:
        """64 random bits for each of `count` elements of each row, as int64 (B, count)."""
        counter_J = torch.arange(count, dtype=torch.int64, device=self._keys_B.device)
        # the counter is mixed before it meets the key: two rows' streams are then never shifts
        # of one another, and the extra work is one row's, not the batch's
        return _mix(self._absorbed(draw)[:, None] ^ _mix(counter_J + _GOLDEN))

    def _absorbed(self, word: int) -> Tensor:
        return _absorb(self._keys_B, torch.full_like(self._keys_B[:1], word))

    def _with_keys(self, keys_B: Tensor) -> Self:
        other = object.__new__(type(self))
        other._keys_B = keys_B
        return other


def _product(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
