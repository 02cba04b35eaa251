"""t intervals, F tests and the beta function under them, against scipy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from latentlm_platform.sweeps.seed_noise import (
    analyse_variance,
    f_p_value,
    f_quantile,
    incomplete_beta,
    t_interval,
    t_quantile,
)


@pytest.mark.parametrize("df", [1, 2, 3, 7, 30, 400])
@pytest.mark.parametrize("probability", [0.6, 0.95, 0.975, 0.999])
def test_t_quantiles_are_scipys(probability: float, df: int) -> None:
    assert t_quantile(probability, df) == pytest.approx(stats.t.ppf(probability, df), rel=1e-11)


@given(st.floats(0.001, 300), st.integers(1, 40), st.integers(1, 200))
@settings(max_examples=200, deadline=None)
def test_p_values_of_f_are_scipys(f: float, between: int, within: int) -> None:
    expected = stats.f.sf(f, between, within)
    assert f_p_value(f, between, within) == pytest.approx(expected, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize(("between", "within"), [(1, 1), (3, 4), (2, 30), (9, 90)])
def test_f_quantiles_are_scipys(between: int, within: int) -> None:
    expected = stats.f.ppf(0.95, between, within)
    assert f_quantile(0.95, between, within) == pytest.approx(expected, rel=1e-10)


def test_the_beta_function_ends_at_0_and_1() -> None:
    assert [incomplete_beta(x, 2, 3) for x in (0, 1)] == [0, 1]
    assert f_p_value(0, 2, 3) == 1
    assert f_p_value(math.inf, 2, 3) == 0


def test_intervals_are_scipys_paired_t_test() -> None:
    after, before = [3.0, 2.5, 4.0, 3.5], [5.0, 4.0, 4.5, 6.0]
    found = t_interval([a - b for a, b in zip(after, before, strict=True)])
    expected = stats.ttest_rel(after, before).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert found.excludes_zero is bool(stats.ttest_rel(after, before).pvalue < 0.05)


def test_one_number_has_no_interval() -> None:
    assert t_interval([2.0]) == (2.0, -math.inf, math.inf, 1)
    assert not t_interval([2.0]).excludes_zero


@given(
    st.lists(
        st.lists(st.floats(-50, 50).map(lambda x: round(x, 3)), min_size=3, max_size=3),
        min_size=2,
        max_size=6,
    )
)
@settings(max_examples=60, deadline=None)
def test_the_analysis_of_variance_is_numpys_ratio_and_scipys_p(groups: list[list[float]]) -> None:
    """Not scipy's own F: its differences of large sums turn negative where all means are equal."""
    scores = np.array(groups)
    within, between = scores.var(axis=1, ddof=1).mean(), 3 * scores.mean(axis=1).var(ddof=1)
    if within < 1e-6:
        return  # where nothing scatters, the next test says what is expected
    found, df = analyse_variance(groups), (len(groups) - 1, 2 * len(groups))
    assert (found.df_between, found.df_within) == df
    assert found.f == pytest.approx(between / within, rel=1e-7, abs=1e-9)
    assert found.p == pytest.approx(float(stats.f.sf(between / within, *df)), rel=1e-6, abs=1e-12)
    assert (found.std_of_means > found.std_noticed) == (found.p < 0.05)


def test_an_analysis_of_variance_is_scipys() -> None:
    groups = [[10.0, 12.0, 11.0], [11.0, 10.5, 12.5], [15.0, 13.0, 14.5]]
    found, expected = analyse_variance(groups), stats.f_oneway(*groups)
    assert (found.f, found.p) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-10)


@pytest.mark.parametrize(("groups", "p"), [([[0.1, 0.1]] * 3, 1.0), ([[0.1, 0.1], [0.2, 0.2]], 0)])
def test_groups_without_scatter_are_the_same_or_not(groups: list[list[float]], p: float) -> None:
    assert analyse_variance(groups).p == p


def test_unequal_groups_are_refused() -> None:
    with pytest.raises(ValueError, match=r"groups of \[2, 1\] numbers"):
        analyse_variance([[1, 2], [3]])
