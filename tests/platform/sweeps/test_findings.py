"""Groups of rows, the best, shares of variance, the Pareto front, and what is printed of them."""

import itertools
import json
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from latentlm_platform.sweeps.findings import (
    Findings,
    Row,
    findings_report,
    read_findings,
    render_findings,
    render_table,
)
from latentlm_platform.sweeps.row_groups import grouped, matching, short_names
from making_rows import CFG, FID, SEED, SIGMA, claim, curves, row


def findings(rows: list[Row], **changes: Any) -> Findings:
    asked = {"metric": FID, "mode": "min", "claims": (), "replicate": SEED, "cost": "seconds"}
    return read_findings(rows, **(asked | changes))


def shares(rows: list[Row], **changes: Any) -> dict[str, float]:
    return {one.path: one.share for one in findings(rows, **changes).importances}


def test_numbers_compare_as_numbers_and_true_is_none() -> None:
    rows = [row(1.0, cfg=value) for value in (1, 1.0, True, "1", None, [1], 2)]
    assert matching(rows, {CFG: 1.0}) == rows[:2]
    assert matching(rows, {CFG: True}) == [rows[2]]
    assert matching(rows, {CFG: "1"}) == [rows[3]]
    assert matching(rows, {CFG: None}) == [rows[4]]
    assert matching(rows, {CFG: [1.0]}) == [rows[5]]
    assert len(grouped(rows, replicate=None)) == 6


def test_an_absent_path_is_a_value_of_its_own() -> None:
    rows = [row(1.0, kind="fixed", sigma=None), row(2.0, kind="fixed")]
    assert matching(rows, {SIGMA: None}) == rows[:1]
    assert len(grouped(rows, replicate=None)) == 2


def test_groups_hold_every_row_once_and_keep_the_order() -> None:
    rows = [row(1.0, sigma=s, seed=n) for n in (0, 1) for s in (0.5, 0.1, 1)]
    groups = grouped(rows, replicate=SEED)
    assert [group.values for group in groups] == [{SIGMA: 0.5}, {SIGMA: 0.1}, {SIGMA: 1}]
    assert sorted(one for g in groups for one in g.rows) == sorted(rows)
    assert len(grouped(rows, replicate=None)) == 6


def test_work_done_twice_counts_once() -> None:
    rows = [row(2.0, seed=0), row(4.0, seed=0), row(5.0, seed=1)]
    summary = grouped(rows, replicate=SEED)[0].summary(FID)
    assert summary is not None
    assert (summary.mean, summary.n) == (4.0, 2)


def test_short_names_stay_apart() -> None:
    paths = ["seed", "train.seed", SIGMA, "a.steps", "b.steps"]
    expected = ["seed", "train.seed", "sigma", "a.steps", "b.steps"]
    assert list(short_names(paths).values()) == expected


def test_best_is_the_best_mean_with_its_error() -> None:
    rows = curves({0.1: [1.0, 9.0], 0.5: [4.0, 5.0], 1: [6.0, 6.5]})  # the best single row loses
    best = findings(rows).best
    assert best is not None
    assert best.values == {SIGMA: 0.5}
    assert best.score == pytest.approx((4.5, stats.sem([4.0, 5.0]), 2))
    highest = findings(rows, mode="max").best
    assert highest is not None
    assert highest.values == {SIGMA: 1}
    assert "4.5 ± 0.5 (2 seeds) at sigma=0.5" in render_findings(findings(rows))


def test_a_group_that_diverged_is_not_ranked_but_one_that_is_unfinished_is() -> None:
    rows = curves({0.1: [1.0, math.nan], 0.5: [4.0, 5.0], 1: [3.0, 3.0]})
    rows[5].metrics.clear()
    found = findings(rows)
    assert found.best is not None
    assert (found.best.values, found.best.score.n, found.best.seeds) == ({SIGMA: 1}, 1, 2)
    assert found.notes[0] == f"1 of 6 rows have no {FID} (not finished, or failed)"
    assert found.notes[1].startswith(f"1 of 6 rows have {FID} = NaN or infinity")
    assert "(1 of 2 seeds)" in render_findings(found)


def test_nothing_measured_is_said_and_not_an_error() -> None:
    for rows in ([], [row(None, sigma=1, seed=0)], [row(math.nan, sigma=1, seed=0)]):
        found = findings(rows, claims=(claim("monotone", direction="falls"),))
        assert found.best is None
        assert (found.importances, found.pareto) == ((), ())
        assert found.claims[0].held == "undecided"
        assert f"no point has a finite {FID} yet" in render_findings(found)


def test_shares_of_a_balanced_design_add_up_to_one() -> None:
    source = random.Random(3)
    rows = [
        row(source.gauss(0, 1) + s * c + s, sigma=s, cfg=c, seed=n)
        for s, c, n in itertools.product((0.1, 0.5, 1), (1, 2, 3, 4), range(3))
    ]
    found = shares(rows)
    assert set(found) == {SIGMA, CFG, "seed noise", "interactions"}
    assert all(0 <= share <= 1 for share in found.values())
    assert sum(found.values()) == pytest.approx(1, abs=1e-12)


def test_shares_worked_out_by_hand() -> None:
    """Effects ±3 and ±1 and an interaction ±2, no noise: 9, 1 and 4 of 14."""
    rows = [
        row(3.0 * a + b + 2.0 * a * b, sigma=a, cfg=b, seed=n)
        for a, b, n in itertools.product((-1, 1), (-1, 1), (0, 1))
    ]
    expected = {SIGMA: 9 / 14, "interactions": 4 / 14, CFG: 1 / 14, "seed noise": 0}
    assert shares(rows) == pytest.approx(expected, abs=1e-12)
    assert list(shares(rows)) == list(expected)


def test_seed_noise_is_what_scatters_inside_groups() -> None:
    rows = curves({0.1: [9.0, 11.0], 0.5: [13.0, 11.0]})  # SS 8 in all, 4 of it inside
    assert shares(rows) == pytest.approx({SIGMA: 0.5, "seed noise": 0.5})


def test_many_numbers_are_binned_into_quartiles() -> None:
    """Noise on distinct values: without bins each row would be explained by its own value."""
    source = random.Random(0)
    noise = [row(source.gauss(0, 1), sigma=i / 40, seed=0) for i in range(40)]
    assert shares(noise)[SIGMA] < 0.3
    steps = [row(float(i // 10), sigma=i / 40, seed=0) for i in range(40)]
    assert shares(steps)[SIGMA] == pytest.approx(1)
    six = [row(float(i % 2), sigma=i, seed=0) for i in range(6)]
    assert shares(six)[SIGMA] == pytest.approx(1)


def test_mixed_values_are_levels_and_constant_paths_are_not_listed() -> None:
    values: list[Any] = [1, "one", True, None, [1, 2], 2.5, 3, 4, 5]
    rows = [row(float(i), sigma=value, cfg=1) for i, value in enumerate(values)]
    assert shares(rows, replicate=None) == pytest.approx({SIGMA: 1})


def test_shares_leave_out_what_is_not_finite_and_a_constant_metric() -> None:
    rows = curves({0.1: [1.0, 1.0], 0.5: [3.0, math.inf]})
    assert shares(rows) == pytest.approx({SIGMA: 1, "seed noise": 0})
    assert shares(curves({0.1: [0.1, 0.1], 0.5: [0.1, 0.1], 1: [0.1, 0.1]})) == {}


scores_and_costs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


@given(scores_and_costs, st.sampled_from(["min", "max"]))
@settings(max_examples=150, deadline=None)
def test_the_pareto_front_is_brute_forces(points: list[tuple[int, int]], mode: str) -> None:
    rows = [row(float(q), cost=float(c), point=i, seed=0) for i, (q, c) in enumerate(points)]
    sign = 1 if mode == "min" else -1
    front = set()
    for i, (quality, cost) in enumerate(points):
        beaten = False
        for q, c in points:
            beaten |= c <= cost and sign * q < sign * quality
            beaten |= c < cost and sign * q <= sign * quality
        if not beaten:
            front.add(i)
    found = findings(rows, mode=mode).pareto
    assert {one.values["point"] for one in found} == front
    assert [one.cost for one in found] == sorted(c for i, (_, c) in enumerate(points) if i in front)


def test_the_front_is_of_group_means_and_leaves_out_unknown_costs() -> None:
    rows = [row(1.0, cost=1.0, cfg=1, seed=0), row(9.0, cost=1.0, cfg=1, seed=1)]
    rows += [row(4.0, cost=1.0, cfg=2, seed=0), row(0.0, cfg=3, seed=0)]
    assert [one.values for one in findings(rows).pareto] == [{CFG: 2}]
    assert findings(rows, cost=None).pareto == ()


def test_text_and_data_tell_the_same() -> None:
    rows = curves({0.1: [55.0, 54.0], 1: [41.0, 40.1]})
    found = findings(rows, claims=(claim("monotone", direction="falls"),))
    report = json.loads(json.dumps(findings_report(found), allow_nan=False))
    assert report["claims"][0]["held"] == "yes"
    assert (report["best"]["mean"], report["best"]["values"]) == (40.55, {SIGMA: 1})
    text = render_findings(found)
    assert "  yes        it is so (1 of 1 step fall, 1 beyond seed noise" in text
    assert report["claims"][0]["sentence"] in text
    assert "share of its variance: sigma 100%, seed noise 0%" in text


def test_the_table_has_a_line_a_group() -> None:
    rows = curves({0.5: [4.0, 5.0], 0.1: [1.0, math.nan]}, variant="dit")
    rows += [row(None, kind="star", variant="dit", seed=0), row(math.nan, sigma=2, variant="dit")]
    assert render_table(rows, metric=FID, replicate=SEED).splitlines() == [
        "sigma  kind  n       frechet_efficientnet_lite0",
        "0.5    –     2       4.5 ± 0.5",
        "0.1    –     1 of 2  1",
        "–      star  0 of 1  –",
        "2      –     0 of 1  nan",
    ]
