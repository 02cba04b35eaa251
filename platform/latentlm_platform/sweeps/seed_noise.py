"""What repetition over seeds can tell: t intervals and the F test, in float64 without scipy.

In: numbers of repetitions. Out: a mean with its 95 % interval; whether group means differ more
than repetitions do. Both assume that repetitions scatter alike and about normally.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

LEVEL: Final = 0.95
TINY = 1e-300  # instead of a zero denominator in the continued fraction
ROUNDING: Final = 1e-24  # relative variance that arithmetic alone makes


class Interval(NamedTuple):
    """A mean of `n` numbers and its 95 % interval; infinitely wide with one number."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


class Variance(NamedTuple):
    """One-way analysis of variance of equally long groups.

    `std_of_means` is what was found, `std_by_noise` what seeds alone give a mean, and
    `std_noticed` the least that would have been significant: below it, nothing is known.
    """

    f: float
    df_between: int
    df_within: int
    p: float
    std_of_means: float
    std_by_noise: float
    std_noticed: float


def mean_of(numbers: Sequence[float]) -> float:
    """x̄, without the rounding of a running sum."""
    return math.fsum(numbers) / len(numbers)


def sum_of_squares(numbers: Sequence[float]) -> float:
    """Σ (x − x̄)²."""
    mean = mean_of(numbers)
    return math.fsum((x - mean) ** 2 for x in numbers)


def rounding(numbers: Sequence[float]) -> float:
    """The variance of such numbers that may be arithmetic's alone."""
    return max(abs(x) for x in numbers) ** 2 * ROUNDING


def standard_error(numbers: Sequence[float]) -> float | None:
    """Of the mean; None with one number, which says nothing of its noise."""
    n = len(numbers)
    return math.sqrt(sum_of_squares(numbers) / (n - 1) / n) if n > 1 else None


def t_interval(numbers: Sequence[float]) -> Interval:
    """The mean with its 95 % interval by Student's t."""
    mean, error = mean_of(numbers), standard_error(numbers)
    if error is None:
        return Interval(mean, -math.inf, math.inf, 1)
    reach = t_quantile((1 + LEVEL) / 2, len(numbers) - 1) * error
    return Interval(mean, mean - reach, mean + reach, len(numbers))


def analyse_variance(groups: Sequence[Sequence[float]]) -> Variance:
    """F test that all groups have one mean; k ≥ 2 groups of the same n ≥ 2 numbers."""
    k, n = len(groups), len(groups[0])
    if k < 2 or n < 2 or any(len(group) != n for group in groups):
        sizes = [len(group) for group in groups]
        raise ValueError(f"groups of {sizes} numbers; two or more of the same size ≥ 2 are needed")
    df_between, df_within = k - 1, k * (n - 1)
    of_means = sum_of_squares([mean_of(group) for group in groups]) / df_between
    by_noise = math.fsum(sum_of_squares(group) for group in groups) / df_within / n
    scale = rounding([x for group in groups for x in group])
    without_noise = math.inf if of_means > scale else 0.0
    f = of_means / by_noise if by_noise > scale else without_noise
    critical = f_quantile(LEVEL, df_between, df_within)
    return Variance(
        f,
        df_between,
        df_within,
        f_p_value(f, df_between, df_within),
        math.sqrt(of_means),
        math.sqrt(by_noise),
        math.sqrt(by_noise * critical),
    )


def t_quantile(probability: float, df: int) -> float:
    """The value that Student's t with `df` degrees of freedom stays below so often (> 0.5)."""

    def below(t: float) -> float:
        return 1 - incomplete_beta(df / (df + t * t), df / 2, 0.5) / 2

    return _where_reached(below, probability)


def f_quantile(probability: float, df_between: int, df_within: int) -> float:
    """The value that F stays below so often."""
    return _where_reached(lambda f: 1 - f_p_value(f, df_between, df_within), probability)


def f_p_value(f: float, df_between: int, df_within: int) -> float:
    """How often F is `f` or larger where all groups have one mean."""
    if math.isinf(f):
        return 0.0
    return incomplete_beta(df_within / (df_within + df_between * f), df_within / 2, df_between / 2)


def _where_reached(rising: Callable[[float], float], wanted: float) -> float:
    """The x ≥ 0 at which a rising function reaches `wanted`, by bisection to float's precision."""
    low, high = 0.0, 1.0
    while rising(high) < wanted:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if rising(middle) < wanted else (low, middle)
    return high


def incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularised I_x(a, b), by the continued fraction of DLMF 8.17.22."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):  # beyond it the fraction of the mirror image converges sooner
        return 1 - incomplete_beta(1 - x, b, a)
    log_front = a * math.log(x) + b * math.log1p(-x) - math.log(a)
    log_front += math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return math.exp(log_front) / _fraction(x, a, b)


def _fraction(x: float, a: float, b: float) -> float:
    """1 + d₁ / (1 + d₂ / (1 + …)), from the left by Lentz's method."""
    value, upper, lower = 1.0, 1.0, 0.0
    for step in range(1, 1000):
        m, odd = divmod(step, 2)
        if odd:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        upper = 1 + d / upper or TINY
        lower = 1 / (1 + d * lower or TINY)
        value *= upper * lower
        if abs(upper * lower - 1) < 1e-15:
            break
    return value
