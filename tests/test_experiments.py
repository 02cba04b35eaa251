"""Every shipped experiment loads and resolves as recorded; sweeps do the work that is counted here.

`UPDATE_GOLDEN=1 pytest tests/test_experiments.py` records the resolved forms anew.
"""

import os
from functools import cache
from pathlib import Path

import pytest

from latentlm.catalogue import parameter_count
from latentlm_platform.experiment.claims import Insensitive
from latentlm_platform.experiment.files import (
    experiment_key,
    load_experiment,
    resolved_yaml,
    source_text,
)
from latentlm_platform.experiment.points import sweep_points
from latentlm_platform.experiment.sections import Experiment
from latentlm_platform.located_yaml import read_yaml
from latentlm_platform.planning.plan import Work, make_plan, sweep_work
from latentlm_platform.planning.resources import ClusterResources
from latentlm_platform.sweeps.row_groups import Row, matching
from latentlm_platform.sweeps.verdicts import read_claim

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
GOLDEN = Path(__file__).parent / "golden"
SHIPPED = [
    path.relative_to(EXPERIMENTS)
    for path in sorted(EXPERIMENTS.rglob("*.yaml"))
    if "shared" not in path.parts and path.name != "recorded.yaml"
]

SMALL, PAPER = "image/sweeps/{}.yaml", "image/sweeps/paper/{}.yaml"
WORK = {  # points, codec trainings, model trainings, sampling trials
    "image/collapse.yaml": (54, 27, 27, 27),
    SMALL.format("cfg"): (18, 1, 3, 3),
    SMALL.format("cfg_steps"): (90, 1, 3, 15),
    SMALL.format("compression"): (12, 12, 12, 12),
    SMALL.format("gqa"): (9, 1, 9, 9),
    SMALL.format("head_depth"): (12, 1, 12, 12),
    SMALL.format("prediction_solver"): (72, 1, 12, 72),
    SMALL.format("resolution"): (9, 3, 9, 9),
    SMALL.format("sigma_cfg"): (120, 5, 30, 30),
    SMALL.format("sigma_cfg_length"): (48, 2, 24, 24),
    SMALL.format("sigma_drawn"): (96, 1, 24, 24),
    SMALL.format("size"): (18, 1, 18, 18),
    SMALL.format("steps"): (21, 1, 3, 21),
    SMALL.format("timesteps_per_token"): (12, 1, 12, 12),
    SMALL.format("tokens"): (24, 1, 24, 24),
    "image/throughput/dit_18b.yaml": (4, 1, 1, 4),
    "image/throughput/dit_9b.yaml": (4, 1, 1, 4),
    "image/throughput/latentlm_18b.yaml": (4, 1, 1, 4),
    "image/throughput/latentlm_9b.yaml": (4, 1, 1, 4),
    PAPER.format("cfg"): (6, 1, 1, 1),
    PAPER.format("gqa"): (3, 1, 3, 3),
    PAPER.format("head_depth"): (4, 1, 4, 4),
    PAPER.format("prediction_solver"): (48, 1, 4, 48),
    PAPER.format("resolution"): (2, 2, 2, 2),
    PAPER.format("sigma_cfg"): (60, 6, 12, 12),
    PAPER.format("size"): (8, 1, 8, 8),
    PAPER.format("steps"): (7, 1, 1, 7),
    PAPER.format("timesteps_per_token"): (4, 1, 4, 4),
    "multimodal/sweeps/alpha.yaml": (5, 1, 5, 5),
    "multimodal/sweeps/tokens.yaml": (8, 2, 8, 8),
    "speech/sweeps/cfg.yaml": (6, 1, 1, 1),
    "speech/sweeps/compression.yaml": (3, 3, 3, 3),
    "speech/sweeps/steps.yaml": (6, 1, 1, 6),
}
SMALL_SWEEPS = [path for path in WORK if path == SMALL.format(Path(path).stem)]
TWO_CORES = ClusterResources(cpus=4, gpus=0, local=True, memory_bytes=24 * 2**30)


@cache
def shipped_experiment(shipped: str) -> Experiment:
    return load_experiment(EXPERIMENTS / shipped)


def rows_of(experiment: Experiment) -> list[Row]:
    """Every point of a sweep, all metrics of which are 1."""
    assert experiment.sweep is not None
    asked = {claim.metric: 1.0 for claim in experiment.sweep.claims}
    return [
        Row(experiment_key(point.experiment), point.values, asked)
        for point in sweep_points(experiment)
    ]


def golden_path(shipped: Path) -> Path:
    return GOLDEN / "resolved" / shipped


@pytest.mark.parametrize("shipped", SHIPPED, ids=str)
def test_the_resolved_form_is_the_recorded_one(shipped: Path) -> None:
    resolved = resolved_yaml(load_experiment(EXPERIMENTS / shipped))
    golden = golden_path(shipped)
    if os.environ.get("UPDATE_GOLDEN") == "1":
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(resolved, encoding="utf-8")
    assert golden.exists(), f"run UPDATE_GOLDEN=1 pytest {__file__}"
    assert resolved == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("shipped", SHIPPED, ids=str)
def test_it_says_what_it_is_for(shipped: Path) -> None:
    experiment = load_experiment(EXPERIMENTS / shipped)
    assert experiment.question.endswith("?") or experiment.reproduces, "give it a question"


def test_the_quickstart_is_there_and_nothing_recorded_is_left_over() -> None:
    assert Path("quickstart.yaml") in SHIPPED
    recorded = {p.relative_to(GOLDEN / "resolved") for p in (GOLDEN / "resolved").rglob("*.yaml")}
    assert recorded == set(SHIPPED)


def test_every_shared_fragment_is_used_and_reads() -> None:
    used = "".join(source_text(EXPERIMENTS / shipped) for shipped in SHIPPED)
    for fragment in (EXPERIMENTS / "shared").glob("*.yaml"):
        assert read_yaml(fragment).problems == []
        assert f"/{fragment.name}\n" in used, f"no experiment extends {fragment.name}"


def test_every_shipped_sweep_is_counted_here() -> None:
    swept = {str(shipped) for shipped in SHIPPED if shipped_experiment(str(shipped)).sweep}
    assert swept == set(WORK)


@pytest.mark.parametrize("shipped", WORK)
def test_a_sweep_does_this_much_work(shipped: str) -> None:
    assert sweep_work(shipped_experiment(shipped)) == Work(*WORK[shipped])


@pytest.mark.parametrize("shipped", WORK)
def test_every_claim_is_about_points_that_there_are(shipped: str) -> None:
    experiment = shipped_experiment(shipped)
    assert experiment.sweep is not None
    rows = rows_of(experiment)
    for claim in experiment.sweep.claims:
        for choice in (claim.where, getattr(claim, "than", {})):
            assert matching(rows, choice), f"{claim.says}: no point has {choice}"


@pytest.mark.parametrize("shipped", WORK)
def test_every_claim_can_be_answered_once_all_is_measured(shipped: str) -> None:
    sweep = shipped_experiment(shipped).sweep
    assert sweep is not None
    rows = rows_of(shipped_experiment(shipped))
    for claim in sweep.claims:
        verdict = read_claim(claim, rows, replicate=sweep.replicate)
        if isinstance(claim, Insensitive) and sweep.replicate is None:
            assert "needs two seeds" in verdict.sentence
        else:
            assert verdict.held != "undecided", f"{claim.says}: {verdict.sentence}"


@pytest.mark.parametrize("shipped", ["image/collapse.yaml", *SMALL_SWEEPS])
def test_a_small_sweep_fits_two_cores(shipped: str) -> None:
    assert make_plan(shipped_experiment(shipped), cluster=TWO_CORES).problems == ()


@pytest.mark.parametrize("name", ["size", "tokens"])
def test_models_that_are_compared_are_of_one_size(name: str) -> None:
    counts: dict[str, int] = {}
    for point in sweep_points(shipped_experiment(SMALL.format(name))):
        counts[point.values["variant"]] = parameter_count(point.experiment.model_settings())
    for dit, count in counts.items():
        latent_lm = counts[dit.replace("dit", "latentlm")]
        assert abs(count / latent_lm - 1) < 0.005
        assert f"{count:,}" in (EXPERIMENTS / SMALL.format(name)).read_text("utf-8")
