"""Scores, one file each. A score that is an estimate comes as an `Interval`."""

from typing import NamedTuple

NORMAL_95 = 1.959964  # two-sided 95 % quantile of the standard normal


class Interval(NamedTuple):
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float
