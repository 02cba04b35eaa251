"""Random numbers that depend on a key and a number alone: the same in any version and process."""

from typing import Any

import numpy as np
import numpy.typing as npt

UInt64s = npt.NDArray[np.uint64]
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # the constants of splitmix64
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def keyed_numbers(key: int, numbers: Any) -> UInt64s:
    """A uniform uint64 for each of the whole numbers (an array), keyed by `key`."""
    with np.errstate(over="ignore"):  # wrapping around is the point
        start = _mix(np.array([key % 2**64], np.uint64) + GOLDEN)
        return _mix(start ^ _mix(np.asarray(numbers).astype(np.uint64) + GOLDEN))


def keyed_fractions(key: int, numbers: Any) -> npt.NDArray[np.float64]:
    """The same in [0, 1)."""
    return (keyed_numbers(key, numbers) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: UInt64s) -> UInt64s:
    x = (x ^ (x >> np.uint64(30))) * FIRST
    x = (x ^ (x >> np.uint64(27))) * SECOND
    return x ^ (x >> np.uint64(31))
