"""Sweeps before anything is trained: points, draws, trials, the ledger, and what is refused."""

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from latentlm_platform import cli
from latentlm_platform.errors import UserError
from latentlm_platform.evaluation.generation import streams
from latentlm_platform.experiment.files import experiment_key, load_experiment
from latentlm_platform.experiment.points import drawn_points, reported_metrics, sweep_points
from latentlm_platform.experiment.sections import Experiment
from latentlm_platform.experiment.trials import CODEC_SECTIONS, trial_of, trials_of, work_key
from latentlm_platform.planning.plan import sweep_work
from latentlm_platform.planning.resources import ClusterResources, cpu_problems, demands
from latentlm_platform.runs import RunRecord
from latentlm_platform.sweeps.ledger import Ledger, Line
from latentlm_platform.sweeps.sweeping import _refuse

QUICKSTART = Path(__file__).parents[3] / "experiments" / "quickstart.yaml"
ALONE = "evaluate.cfg_scales=[]"


def swept(sweep: str, *overrides: str) -> Experiment:
    return load_experiment(QUICKSTART, overrides=[ALONE, f"sweep={sweep}", *overrides])


def told(sweep: str) -> str:
    with pytest.raises(UserError) as refused:
        swept(sweep)
    return str(refused.value)


def test_points_are_variants_times_grid_and_a_section_is_a_value() -> None:
    experiment = swept(
        "{variants: {a: {}, dit: {model: {kind: dit, ffn_width: 424}}},"
        " grid: {codec: [{variance: {kind: fixed, sigma: 0.5}},"
        " {variance: {kind: diagonal_gaussian}, training: {objective: {beta: 1e-6}}}],"
        " sample.cfg_scale: [1, 2]}}"
    )
    points = sweep_points(experiment)
    assert len(points) == 8
    assert points[0].values == {
        "variant": "a",
        "codec.variance.kind": "fixed",
        "codec.variance.sigma": 0.5,
        "sample.cfg_scale": 1,
    }
    last = points[-1]
    assert last.values["codec.training.objective.beta"] == 1e-6
    assert last.experiment.model.kind == "dit"
    assert last.experiment.codec.variance.kind == "diagonal_gaussian"
    assert last.experiment.sample.cfg_scale == 2
    assert points[0].experiment.model.kind == "latent_lm"


def test_every_scored_scale_is_a_point() -> None:
    experiment = load_experiment(QUICKSTART, overrides=["sweep={grid: {sample.steps: [2, 5]}}"])
    points = sweep_points(experiment)
    assert [tuple(point.values.values()) for point in points[:4]] == [
        (2, 1.0), (2, 1.5), (2, 2.0), (2, 3.0),
    ]  # fmt: skip
    assert all(point.experiment.evaluate.cfg_scales == () for point in points)


def test_more_samples_leave_the_first_draws_as_they_are() -> None:
    space = "space: {train.ema_decay: {kind: uniform, low: 0.9, high: 0.99}}"
    few = sweep_points(swept(f"{{search: {{samples: 3, {space}}}}}"))
    many = sweep_points(swept(f"{{search: {{samples: 9, {space}}}}}"))
    other = sweep_points(swept(f"{{search: {{samples: 3, seed: 1, {space}}}}}"))
    assert [p.values for p in few] == [p.values for p in many[:3]]
    assert [p.values for p in few] != [p.values for p in other]
    assert all(0.9 <= p.experiment.train.ema_decay <= 0.99 for p in many)


def test_draws_lie_as_their_space_says() -> None:
    experiment = swept(
        "{search: {samples: 200, space: {"
        "train.optimizer.learning_rate: {kind: log_uniform, low: 1e-5, high: 1e-1},"
        "sample.steps: {kind: integer, low: 2, high: 4},"
        "model.kv_heads: {kind: choice, values: [1, 2, 4]}}}}"
    )
    points = [point.experiment for point in sweep_points(experiment)]
    rates = [one.train.optimizer.learning_rate for one in points]
    assert 70 < sum(rate < 1e-3 for rate in rates) < 130  # the middle of the logarithms
    assert {one.sample.steps for one in points} == {2, 3, 4}
    assert {one.model.kv_heads for one in points} == {1, 2, 4}


def test_a_conditional_value_is_drawn_only_where_its_condition_holds() -> None:
    experiment = swept(
        "{search: {samples: 40, space: {"
        "codec.variance.kind: {kind: choice, values: [half_normal, diagonal_gaussian]},"
        "codec.variance.c_sigma: {kind: uniform, low: 0.1, high: 1,"
        " when: {codec.variance.kind: half_normal}}}}}"
    )
    points = sweep_points(experiment)
    kinds = {p.values["codec.variance.kind"] for p in points}
    assert kinds == {"half_normal", "diagonal_gaussian"}
    for point in points:
        wanted = point.values["codec.variance.kind"] == "half_normal"
        assert ("codec.variance.c_sigma" in point.values) == wanted


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ("{}", "the sweep is empty"),
        ("{grid: {sample.step: [1]}}", "did you mean sample.steps?"),
        ("{grid: {sample.steps: []}}", "the list is empty"),
        ("{variants: {a: {modle: {}}}}", "did you mean model?"),
        ("{grid: {sample.steps: [5]}, metric: frechet_efficientnet}", "reported by no point; did"),
        ("{grid: {sample.steps: [5]}, cost: euros}", "sweep.cost = euros is reported by no point"),
        ("{variants: {dit: {model: {kind: dit, ffn_width: 424}}}, grid: {model.kv_heads: [2]}}",
         "model.kv_heads=2: model.kv_heads is not a key of model of kind dit"),
        ("{search: {samples: 2, space: {sample.steps: {kind: integer, low: 9, high: 2}}}}",
         "low = 9 is not below high = 2"),
        ("{search: {samples: 2, space: {train.alpha: {kind: log_uniform, low: 0, high: 2}}}}",
         "has no logarithm"),
        ("{search: {samples: 2, space: {train.steps: {kind: choice, values: []}}}}", "is empty"),
        ("{search: {samples: 2, space: {train.steps: {kind: choice, values: [0.5]}}}}",
         "train.steps = 0.5 is not a whole number"),
        ("{grid: {seed: [1]}, search: {algorithm: optuna, samples: 2, space: {sample.steps:"
         " {kind: integer, low: 2, high: 9}}}}", "optuna chooses every value itself"),
        ("{grid: {sample.steps: [5]}, claims: [{kind: monotone, says: x, metric: validation_loss,"
         " along: sample.step, direction: falls}]}", "did you mean sample.steps?"),
        ("{grid: {sample.steps: [5]}, claims: [{kind: monotone, says: x, metric: validation_loss,"
         " allong: sample.steps, direction: falls}]}", "did you mean along?"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_sweep_is_said(sweep: str, words: str) -> None:
    assert words in told(sweep)


def test_metrics_are_known_by_the_extractor_they_are_named_after() -> None:
    known = reported_metrics(swept("{grid: {sample.steps: [5]}}"))
    assert "frechet_efficientnet_lite0" in known
    assert "exposure_bias" in known
    without = swept("{grid: {sample.steps: [5]}}", "evaluate.exposure_bias_images=0")
    assert "exposure_bias" not in reported_metrics(without)


def test_a_trial_is_a_column_of_cfg_scales() -> None:
    experiment = swept("{grid: {sample.steps: [2, 5, 9], sample.cfg_scale: [1, 2, 4, 8]}}")
    trials = trials_of(sweep_points(experiment))
    assert len(trials) == 3
    for trial in trials:
        assert [p.experiment.sample.cfg_scale for p in trial.points] == [1, 2, 4, 8]
        assert trial.experiment.sample.cfg_scale == 1
        assert trial.experiment.evaluate.cfg_scales == (2, 4, 8)
        assert len(set(trial.point_keys())) == 4
    assert len({trial.key for trial in trials}) == 3


def test_trials_that_start_together_do_not_wait_for_the_same_codec() -> None:
    experiment = swept(
        "{grid: {codec.variance.c_sigma: [0.1, 0.2, 0.3], train.seed: [0, 1],"
        " sample.steps: [2, 5]}}"
    )
    trials = trials_of(sweep_points(experiment))
    codecs = [work_key(trial.experiment, CODEC_SECTIONS) for trial in trials]
    assert len(trials) == 12
    assert len(set(codecs[:3])) == 3
    seeds = [trial.experiment.train.seed for trial in trials]
    assert set(seeds[:3]) == {0}
    assert set(seeds[3:6]) == {1}


def test_the_work_of_a_sweep_is_counted_once() -> None:
    grid = (
        "{grid: {codec.variance.c_sigma: [0.1, 0.2], train.seed: [0, 1, 2], sample.steps: [2, 5],"
        " sample.cfg_scale: [1, 2]}}"
    )
    assert sweep_work(swept(grid)) == (24, 2, 6, 12)
    assert sweep_work(swept("{grid: {seed: [0, 1]}}")) == (2, 2, 2, 2)
    optuna = "{search: {algorithm: optuna, samples: 7, space: {sample.steps: {kind: integer,"
    assert sweep_work(swept(optuna + " low: 2, high: 9}}}}")) == (7, 1, 1, 7)


def test_the_models_seed_leaves_codec_and_evaluation_alone() -> None:
    points = [p.experiment for p in sweep_points(swept("{grid: {train.seed: [4, 5]}}"))]
    assert [one.model_seed for one in points] == [4, 5]
    assert {one.seed for one in points} == {0}
    assert len({work_key(one, CODEC_SECTIONS) for one in points}) == 1


def test_how_a_sweep_is_run_is_no_part_of_its_key() -> None:
    base = experiment_key(swept("{grid: {sample.steps: [5]}}"))
    for more in ("max_concurrent: 2", "time_budget_s: 60", "max_failed: 0", "restarts: 1"):
        assert experiment_key(swept(f"{{grid: {{sample.steps: [5]}}, {more}}}")) == base
    assert experiment_key(swept("{grid: {sample.steps: [6]}}")) != base
    assert experiment_key(swept("{grid: {sample.steps: [5]}, metric: validation_loss}")) != base


def test_a_drawn_point_that_breaks_a_rule_is_refused_alone() -> None:
    experiment = swept(
        "{search: {algorithm: optuna, samples: 2, space: {train.validation_items: {kind: integer,"
        " low: 1, high: 9}}}}"
    )
    (point,) = drawn_points(experiment, {"train.validation_items": 6})
    assert point.experiment.train.validation_items == 6
    with pytest.raises(UserError, match=r"at train.validation_items=1: .*fewer than train.workers"):
        drawn_points(experiment, {"train.validation_items": 1})


def test_a_ledger_survives_a_torn_line(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "sweep" / "ledger.jsonl")
    ledger.append([Line("started", "p1", "t"), Line("started", "p2", "t")])
    ledger.append([Line("finished", "p1", "t", metrics={"x": float("nan")}, values={"σ": 1})])
    with ledger.path.open("ab") as file:
        file.write(b'{"event": "finished", "poi')
    ledger.append([Line("failed", "p2", "t", error="why")])
    assert [line.event for line in ledger.read()] == ["started", "started", "finished", "failed"]
    ends = ledger.ends()
    assert ends["p1"].values == {"σ": 1}
    assert (ends["p2"].event, ends["p2"].error) == ("failed", "why")
    ledger.append([Line("finished", "p2", "t")])
    assert ledger.ends()["p2"].event == "finished"


def test_a_failed_point_that_is_begun_again_has_not_ended(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append([Line("started", "p", "t"), Line("failed", "p", "t")])
    assert set(ledger.ends()) == {"p"}
    ledger.append([Line("started", "p", "t")])
    assert ledger.ends() == {}
    ledger.append([Line("finished", "p", "t"), Line("started", "p", "t")])
    assert ledger.ends()["p"].event == "finished"


def test_a_draw_that_comes_twice_counts_twice(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for trial in ("a", "b", "a"):  # two points each
        ledger.append([Line("started", f"{trial}{i}", trial) for i in range(2)])
        ledger.append([Line("finished", f"{trial}{i}", trial) for i in range(2)])
    ledger.append([Line("started", "c0", "c")])
    assert ledger.draws() == 3


def test_equal_points_are_one_and_equal_variants_are_refused() -> None:
    space = "{sample.steps: {kind: choice, values: [2, 3]}}"
    assert len(sweep_points(swept(f"{{search: {{samples: 9, space: {space}}}}}"))) == 2
    assert len(sweep_points(swept("{grid: {sample.cfg_scale: [1, 1.0, 2]}}"))) == 2
    assert "a and b make the same experiment" in told("{variants: {a: {}, b: {train: {}}}}")


def test_a_path_in_a_search_can_be_set_on_the_command_line() -> None:
    search = "{search: {samples: 2, space: {train.alpha: {kind: uniform, low: 0, high: 1}}}}"
    changed = "sweep.search.space.train.alpha={kind: choice, values: [0.5]}"
    points = sweep_points(swept(search, changed))
    assert [point.values for point in points] == [{"train.alpha": 0.5}]


def test_a_guided_image_costs_twice_an_unguided_one() -> None:
    assert [streams(scale) for scale in (1.0, 1, 1.5, 0.0)] == [1, 1, 2, 2]


def test_a_metric_without_a_known_direction_needs_a_mode() -> None:
    assert "sweep.mode" in told("{grid: {sample.steps: [2]}, metric: latent_std}")
    wanted = swept("{grid: {sample.steps: [2]}, metric: latent_std, mode: max}").sweep
    assert wanted is not None
    assert wanted.better == "max"


def test_a_sweep_that_asks_too_much_is_refused_with_numbers_and_a_fix() -> None:
    experiment = swept("{max_concurrent: 3, grid: {train.seed: [0, 1, 2]}}")
    by_stage = {demand.stage: demand.cpus for demand in demands(experiment)}
    assert by_stage["model training"] == pytest.approx(3 * (2 + 0.1) + 1)
    four = ClusterResources(cpus=4, gpus=0, local=True)
    problems = cpu_problems(experiment, four)
    (model,) = (one for one in problems if "model training" in one)
    assert "each need 7.3 CPUs, the cluster has 4" in model
    fix = model.rpartition(": set ")[2].split(" or ")[0]
    assert fix == "sweep.max_concurrent=1"
    mended = swept("{grid: {train.seed: [0, 1, 2]}}", fix)
    assert cpu_problems(mended, four) == []
    assert cpu_problems(experiment, four, trained=True) == []  # sampling alone trains nothing
    (evaluation,) = cpu_problems(
        swept("{max_concurrent: 40, grid: {sample.steps: [2]}}"), four, trained=True
    )
    assert "evaluation needs 5 CPUs, the cluster has 4" in evaluation


def test_the_refusal_takes_less_than_five_seconds(tmp_path: Path) -> None:
    """Of the processor: what a clock on the wall says depends on what else the machine does."""
    sets = [ALONE, "sweep={grid: {train.seed: [0, 1]}, max_concurrent: 9}", "cluster.cpus=4"]
    command = [sys.executable, "-m", "latentlm_platform.cli", "sweep", str(QUICKSTART)]
    command += [part for one in sets for part in ("--set", one)]
    environment = os.environ | {"LATENTLM_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
    assert done.returncode == 3
    assert "the cluster has 4" in done.stderr
    assert "set sweep.max_concurrent=" in done.stderr
    assert not (tmp_path / "mlflow.db").exists()


def test_what_a_trained_model_fixes_cannot_be_swept() -> None:
    points = sweep_points(swept("{grid: {codec.variance.c_sigma: [0.1, 0.2]}}"))
    key = experiment_key(load_experiment(QUICKSTART))
    trained = RunRecord(key=key, name="n", source=str(QUICKSTART), overrides=())
    changed = RunRecord(key="k", name="n", source=str(QUICKSTART), overrides=())
    with pytest.raises(UserError, match="which belongs to the stage codec"):
        _refuse(swept("{grid: {codec.variance.c_sigma: [0.1, 0.2]}}"), points, trained=trained)
    other = swept("{grid: {sample.steps: [2, 5]}}", "train.steps=7")
    with pytest.raises(UserError, match="was trained with another train section"):
        _refuse(other, sweep_points(other), trained=trained)
    same = swept("{grid: {sample.steps: [2, 5]}}")
    _refuse(same, sweep_points(same), trained=trained)
    with pytest.raises(UserError, match="has changed since run k was started"):
        _refuse(same, sweep_points(same), trained=changed)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sweep", str(QUICKSTART)], "has no sweep"),
        (["sweep", str(QUICKSTART), "--set", "sweep={grid: {seed: [1, 2]}}", "--resume"],
         "was begun here"),
    ],
)  # fmt: skip
def test_a_sweep_that_is_none_is_refused(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LATENTLM_HOME", str(tmp_path))
    assert cli.main(arguments) == 2
    assert words in capfd.readouterr().err


def test_a_trial_has_one_key_for_one_set_of_points() -> None:
    points: list[Any] = sweep_points(swept("{grid: {sample.cfg_scale: [1, 2, 3]}}"))
    assert trial_of(points).key == trial_of(points).key
    assert trial_of(points).key != trial_of(points[:2]).key
