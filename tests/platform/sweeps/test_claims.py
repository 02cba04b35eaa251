"""Claims in YAML, and verdicts on them against cases worked out by hand and against scipy."""

import json
import math
import random
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from scipy import stats

from latentlm_platform.errors import UserError
from latentlm_platform.experiment.claims import AnyClaim, lower_is_better
from latentlm_platform.sweeps.findings import Row, Verdict
from making_rows import CFG, FID, SEED, SIGMA, claim, curves, row, verdict


@pytest.mark.parametrize(
    "metric",
    [
        FID,
        "validation_loss",
        "loss",
        "loss_text",
        "exposure_bias_last",
        "wer",
        "sampling_cpu_seconds_per_image",
        "teacher_forced_error",
        "variance_collapsed_channels",
        f"{FID}_reconstruction",
        f"{FID}_above_reconstruction",
    ],
)
def test_less_is_better(metric: str) -> None:
    assert lower_is_better(metric)


@pytest.mark.parametrize(
    "metric",
    [
        "generated_accuracy",
        "inception_style_efficientnet_lite0",
        "reconstruction_psnr",
        "ssim",
        "items_per_s_median",
        "mfu",
    ],
)
def test_more_is_better(metric: str) -> None:
    assert not lower_is_better(metric)


def test_a_metric_that_says_nothing_of_quality_is_refused() -> None:
    with pytest.raises(UserError, match="latent_std is neither"):
        lower_is_better("latent_std")


def test_claims_know_their_paths() -> None:
    where = {"variant": "dit", CFG: 1}
    assert claim("monotone", direction="falls", where=where).paths() == [SIGMA, CFG]
    worse = claim("worse", where=where, than={"variant": "x", SIGMA: 1})
    assert worse.paths() == [CFG, SIGMA]
    assert claim("reported").paths() == []


@pytest.mark.parametrize("kind", [None, "better"])
def test_the_kind_of_a_claim_has_to_be_written(kind: str | None) -> None:
    data = {"says": "x", "metric": FID} | ({"kind": kind} if kind else {})
    with pytest.raises(ValidationError):
        TypeAdapter(AnyClaim).validate_json(json.dumps(data))


def test_claims_that_contradict_themselves() -> None:
    side = {"variant": "a"}
    cases = [
        (claim("insensitive", where={SIGMA: 1}), "along"),
        (claim("worse", where=side, than=side), "than"),
        (claim("worse", metric="latent_std", where=side, than={"variant": "b"}), "metric"),
        (claim("reported", where={"codec.variance": {"kind": "fixed"}}), "where"),
    ]
    for one, path in cases:
        assert [problem[0] for problem in one.problems()] == [path]
    assert not list(claim("worse", where=side, than={"variant": "b"}).problems())


def test_one_seed_tells_the_order_alone() -> None:
    rows = curves({0.5: [48.0], 0.1: [55.0], 1: [40.0]})  # sorted by σ, not as listed
    found = verdict(rows, "monotone", direction="falls")
    expected = (
        "2 of 2 steps fall, one seed, so its noise is unknown: 55 → 48 → 40 at sigma 0.1, 0.5, 1"
    )
    assert found == ("it is so", "yes", expected)
    assert verdict(rows, "monotone", direction="rises").held == "no"


def test_a_step_that_is_level_is_no_step() -> None:
    for direction in ("falls", "rises"):
        found = verdict(curves({0.1: [5.0], 0.2: [5.0]}), "monotone", direction=direction)
        assert found.held == "no"
        assert found.sentence.startswith(f"0 of 1 step {direction[:-1]}")


def test_a_mean_order_that_the_seeds_disagree_with_says_so() -> None:
    rows = curves({0.1: [10.0, 12.0, 11.0], 0.5: [9.0, 5.0, 14.0], 1: [2.0, -2.5, 7.5]})
    found = verdict(rows, "monotone", direction="falls")
    assert found.held == "yes"
    assert "2 of 2 steps fall, 1 beyond seed noise, the whole order in 2 of 3" in found.sentence
    first = stats.ttest_1samp([-1.0, -7.0, 3.0], 0).confidence_interval()
    assert f"steps -1.67 [{first.low:.3g}, {first.high:.3g}], " in found.sentence


def test_steps_are_paired_by_seed() -> None:
    """Seeds are far apart, steps are alike: only paired differences see it."""
    rows = curves({0.1: [10.0, 50.0, 90.0], 0.5: [9.0, 48.9, 89.1]})
    random.Random(0).shuffle(rows)
    assert "1 beyond seed noise" in verdict(rows, "monotone", direction="falls").sentence


def test_a_step_against_the_claim_is_counted() -> None:
    rows = curves({0.1: [10.0, 10.1], 0.5: [9.0, 9.1], 1: [12.0, 12.11]})
    found = verdict(rows, "monotone", direction="falls")
    assert found.held == "no"
    assert "1 of 2 steps fall, 1 beyond seed noise, 1 against it (1 beyond" in found.sentence


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows.pop(1), "sigma=0.1, train.seed=1 is missing"),
        (lambda rows: rows[1].metrics.clear(), f"sigma=0.1, train.seed=1 has no {FID}"),
        (lambda rows: rows[1].metrics.update({FID: math.nan}), "train.seed=1 has frechet_"),
        (lambda rows: rows[1].metrics.update({FID: math.inf}), "= inf; so far 55, 40.5 ± 0.5"),
    ],
)
@pytest.mark.parametrize("kind", ["monotone", "insensitive"])
def test_gaps_leave_a_claim_undecided(kind: str, change: Any, says: str) -> None:
    rows = curves({0.1: [55.0, 54.0], 1: [41.0, 40.0]})
    fields = {"direction": "falls"} if kind == "monotone" else {}
    change(rows)
    found = verdict(rows, kind, **fields)
    assert found.held == "undecided"
    assert says in found.sentence


def test_rows_without_the_path_are_no_part_of_the_order() -> None:
    rows = [*curves({0.1: [55.0], 1: [40.0]}), row(1.0, kind="diagonal_gaussian", seed=0)]
    assert verdict(rows, "monotone", direction="falls").held == "yes"
    found = verdict(rows[2:], "monotone", direction="falls")
    assert found[1:] == ("undecided", f"none of the rows has a value at {SIGMA}")


@pytest.mark.parametrize("value", ["large", True, None, [1]])
def test_values_that_are_not_all_numbers_have_no_order(value: Any) -> None:
    rows = [row(2.0, sigma=0.1, seed=0), row(1.0, sigma=value, seed=0)]
    found = verdict(rows, "monotone", direction="falls")
    assert found.held == "undecided"
    assert "have no order" in found.sentence


def test_what_where_leaves_open_is_named() -> None:
    rows = [one for cfg in (1, 2) for one in curves({0.1: [5.0], 1: [4.0]}, cfg=cfg)]
    found = verdict(rows, "monotone", direction="falls")
    assert found.held == "undecided"
    assert f"where leaves {CFG} open" in found.sentence
    assert verdict(rows, "monotone", direction="falls", where={CFG: 1.0}).held == "yes"


def test_one_value_is_no_order() -> None:
    assert "one value, 0.1" in verdict(curves({0.1: [1.0]}), "insensitive").sentence


def test_a_claim_that_matches_nothing_says_which_value_no_row_has() -> None:
    rows = [row(1.0, variant="dit", cfg=1), row(1.0, variant="latentlm", cfg=2)]

    def why(**where: Any) -> str:
        paths = {"cfg": CFG, "sigma": SIGMA}
        named = {paths.get(name, name): value for name, value in where.items()}
        found = verdict(rows, "reported", where=named)
        assert found.held == "undecided"
        return found.sentence

    assert why(variant="dit", cfg=3) == f"no row has {CFG} = 3; rows have 1, 2"
    assert why(variant="latent") == 'no row has variant = "latent"; rows have "dit", "latentlm"'
    assert why(sigma=1) == f"no row has a value at {SIGMA}"
    assert why(variant="dit", cfg=2) == f'no row has variant = "dit" and {CFG} = 2 together'


def test_insensitive_is_the_f_test() -> None:
    inside = {0.1: [10.0, 12.0, 11.0], 0.5: [11.0, 10.5, 12.5], 1: [12.0, 10.0, 11.5]}
    found = verdict(curves(inside), "insensitive")
    expected = stats.f_oneway(*inside.values())
    assert found.held == "yes"
    start = f"F(2, 6) = {expected.statistic:.3g}, p = {expected.pvalue:.2g}: the means'"
    assert found.sentence.startswith(start)
    outside = inside | {1: [20.0, 21.0, 22.0]}
    assert verdict(curves(outside), "insensitive").held == "no"


def test_one_seed_cannot_tell_that_nothing_matters() -> None:
    found = verdict(curves({0.1: [10.0], 0.5: [10.0]}), "insensitive")
    assert found.held == "undecided"
    assert "needs two seeds or more" in found.sentence


def sides(ours: list[float], *theirs: list[float]) -> list[Row]:
    rows = [row(score, kind="star", seed=seed) for seed, score in enumerate(ours)]
    for sigma, scores in enumerate(theirs):
        rows += curves({sigma: scores}, kind="fixed")
    return rows


def worse(rows: list[Row], **fields: Any) -> Verdict:
    kind = "codec.variance.kind"
    return verdict(rows, "worse", where={kind: "star"}, than={kind: "fixed"}, **fields)


def test_worse_needs_an_interval_without_zero() -> None:
    clear, unclear = sides([9.0, 19.0, 30.0], [5.0, 15.5, 25.0]), sides([9.0, 9.0], [5.0, 8.0])
    interval = stats.ttest_1samp([4.0, 3.5, 5.0], 0).confidence_interval()
    found = worse(clear)
    assert found.held == "yes"
    bounds = f"[{interval.low:.3g}, {interval.high:.3g}]"
    assert found.sentence == f"worse by 4.17 {bounds}, 19.33 v. 15.17 (3 seeds)"
    assert worse(unclear).held == "undecided"
    assert worse(unclear).sentence.endswith("yes by the mean, but inside seed noise")
    assert worse(sides([1.0, 2.0], [5.0, 5.5])).held == "no"
    assert worse(sides([1.0, 2.0], [5.0, 5.5])).sentence.startswith("better by 3.75 [")
    assert worse(sides([1.0, 2.0], [2.0, 1.0])).held == "no"


def test_worse_of_a_metric_whose_more_is_better_is_less() -> None:
    rows = [
        one._replace(metrics={"reconstruction_psnr": one.metrics[FID]})
        for one in sides([1.0, 2.0, 3.0], [5.0, 6.1, 7.0])
    ]
    assert worse(rows, metric="reconstruction_psnr").held == "yes"


def test_one_seed_decides_only_against() -> None:
    assert worse(sides([9.0], [1.0])).held == "undecided"
    assert "needs two or more" in worse(sides([9.0], [1.0])).sentence
    assert worse(sides([1.0], [9.0])).held == "no"


def test_every_group_counts_or_their_mean() -> None:
    """The star is far worse than one codec and a little better than the other."""
    rows = sides([10.0, 20.0, 30.0], [1.0, 11.0, 21.1], [10.5, 20.5, 30.4])
    every, mean = worse(rows), worse(rows, against="mean")
    assert (every.held, mean.held) == ("no", "yes")
    assert every.sentence.startswith("1 of 2 pairs beyond seed noise, 1 contrary; the weakest, ")
    assert "kind=star v. kind=fixed, sigma=1: better by 0.467" in every.sentence
    assert mean.sentence.startswith("worse by 4.25 [")  # means 20, 11.033 and 20.467


def test_a_row_on_both_sides_is_refused() -> None:
    rows = sides([10.0, 11.0], [1.0, 2.0])
    found = verdict(rows, "worse", where={"codec.variance.kind": "star"}, than={SEED: 0})
    assert found.held == "undecided"
    assert "where and than both choose kind=star" in found.sentence


def test_a_gap_on_either_side_leaves_it_undecided() -> None:
    for gap in (0, 2):
        rows = sides([10.0, 11.0], [1.0, 2.0])
        rows[gap].metrics.clear()
        assert worse(rows).held == "undecided"


def test_reported_names_both_ends() -> None:
    rows = [row(7.0, cfg=1, seed=0), row(9.0, cfg=1, seed=1), row(5.0, cfg=2, seed=0)]
    rows.append(row(math.nan, cfg=3, seed=0))
    found = verdict(rows, "reported")
    assert found.held == "reported"
    assert found.sentence == (
        "3 groups, 1 without a finite one: 5 (cfg_scale=2) … 8 ± 1 (cfg_scale=1)"
    )
