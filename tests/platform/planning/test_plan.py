"""The plan: known parameter counts, the CPU arithmetic, memory by ZeRO stage, sweeps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from latentlm_platform.experiment.files import load_experiment
from latentlm_platform.experiment.sections import Experiment
from latentlm_platform.planning.estimates import counts, disk_bytes, memory_per_rank, row_of
from latentlm_platform.planning.plan import make_plan, plan_table, untrainable
from latentlm_platform.planning.resources import ClusterResources, cpu_problems, demands

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
QUICKSTART = EXPERIMENTS / "quickstart.yaml"
SHIPPED = [
    path
    for path in sorted(EXPERIMENTS.rglob("*.yaml"))
    if "shared" not in path.parts and path.name != "recorded.yaml"
]
ONE_WORKER = (
    "train.workers=1", "codec.training.workers=1", "latents.actors=1", "evaluate.actors=1",
    "latents.cpus_per_actor=0.3", "train.cpus_per_worker=0.9", "latents.mode=streamed",
)  # fmt: skip


def experiment(*overrides: str) -> Experiment:
    return load_experiment(QUICKSTART, overrides=overrides)


def cluster(cpus: float, **others: int) -> ClusterResources:
    return ClusterResources(cpus=cpus, gpus=0, local=True, **others)


@pytest.mark.parametrize(
    ("workers", "each", "actor", "num_cpus", "ran"),
    [
        (1, 0.9, 0.3, 2, False),  # these were tried with Ray: hung or ran
        (2, 0.6, 0.3, 2, False),
        (2, 0.5, 0.3, 2, False),
        (2, 0.4, 0.3, 2, False),
        (1, 0.6, 0.3, 2, True),
        (2, 0.3, 0.15, 2, True),
        (2, 1.0, 0.5, 4, True),
    ],
)
def test_the_rule_agrees_with_what_hung_in_ray(
    workers: int, each: float, actor: float, num_cpus: int, ran: bool
) -> None:
    tried = experiment(
        *ONE_WORKER, f"train.workers={workers}", f"train.cpus_per_worker={each}",
        f"latents.cpus_per_actor={actor}",
    )  # fmt: skip
    problems = [p for p in cpu_problems(tried, cluster(num_cpus)) if p.startswith("model training")]
    assert (not problems) == ran


def test_demand_adds_up_stage_by_stage() -> None:
    stages = {d.stage: d for d in demands(experiment(*ONE_WORKER, "train.workers=2"))}
    assert stages["codec training"].cpus == pytest.approx(0.9 + 1)
    assert stages["encoding"].cpus == pytest.approx(0.3 + 1)
    assert stages["model training"].cpus == pytest.approx(2 * 0.9 + 2 * 0.3 + 1)
    assert stages["evaluation"].cpus == 2
    cached = demands(experiment(*ONE_WORKER, "latents.mode=cached", "train.workers=2"))
    assert cached[2].cpus == pytest.approx(2 * 0.9 + 1)
    filling = demands(experiment(*ONE_WORKER, "latents.mode=write_through", "train.workers=2"))
    assert filling[2] == stages["model training"], "its first epoch encodes on the way"
    swept = demands(experiment("sweep={grid: {seed: [1, 2]}}"))
    assert swept[0].cpus == pytest.approx(demands(experiment())[0].cpus + 0.1)


def test_every_fix_that_is_told_makes_it_fit() -> None:
    overrides = ["train.workers=4", "train.batch_size=48", "train.cpus_per_worker=1.2"]
    overrides += ["codec.training.workers=1", "latents.actors=2", "evaluate.actors=4"]
    for _ in range(6):
        problems = cpu_problems(experiment(*overrides), cluster(2))
        if not problems:
            break
        fix = problems[0].rpartition(": set ")[2].split(" or ")[0]
        overrides.append(fix)
    assert problems == []
    assert cpu_problems(experiment(*overrides[:6]), cluster(2))[0].endswith("or cluster.cpus=3")


def test_gpus_are_counted_like_cpus() -> None:
    (first, *_) = cpu_problems(experiment("train.gpus_per_worker=1"), cluster(64))
    assert "GPUs" in first
    with_gpus = ClusterResources(cpus=64, gpus=8, local=False)
    assert cpu_problems(experiment("train.gpus_per_worker=1"), with_gpus) == []


def test_memory_by_zero_stage_follows_the_shards() -> None:
    parameters, ranks = 1_000_000, 4
    base = [f"train.workers={ranks}", "train.batch_size=64"]

    def states(stage: int) -> int:
        parts = memory_per_rank(
            experiment(*base, f"train.zero.stage={stage}"), parameters=parameters
        )
        assert sum(v for k, v in parts.items() if k != "total") == parts["total"]
        return parts["total"] - parts["process"] - parts["activations"]

    whole = 4 * parameters
    assert states(0) == 5 * whole  # weights, gradients, two moments, average
    assert states(1) == 3 * whole + 3 * whole // ranks
    assert states(2) == 2 * whole + 4 * whole // ranks
    assert states(3) == 6 * whole // ranks


def test_counts_are_those_of_the_modules() -> None:
    """Against the formula written out: the embedding, two projections, 6 layers, the head."""
    from latentlm.catalogue import build_codec, build_model

    one = experiment()
    counted = counts(one)
    model, codec = build_model(one.model_settings()), build_codec(one.codec_settings())
    assert counted.parameters == sum(p.numel() for p in model.parameters())
    assert counted.codec_parameters == sum(p.numel() for p in codec.parameters())
    latents = one.model_settings().latent_count
    assert counted.tokens_per_step == one.train.batch_size * latents
    twice = counts(experiment(f"train.batch_size={2 * one.train.batch_size}"))
    assert twice.flops_per_step == 2 * counted.flops_per_step


def test_a_sweep_counts_distinct_trainings() -> None:
    grid = (
        "sweep={grid: {codec.variance.c_sigma: [0.1, 0.2], train.optimizer.learning_rate:"
        " [1e-3, 2e-3, 3e-3], sample.steps: [5, 10], sample.cfg_scale: [1, 2]}}"
    )
    plan = make_plan(experiment(grid), cluster=cluster(8))
    assert (plan.points, plan.codec_trainings, plan.model_trainings) == (24, 2, 6)
    assert plan.sampling_trials == 12
    sampler = make_plan(experiment("sweep={grid: {sample.steps: [5, 9]}}"), cluster=cluster(8))
    assert (sampler.points, sampler.codec_trainings, sampler.model_trainings) == (8, 1, 1)
    assert make_plan(experiment(), cluster=cluster(8)).points == 1


def test_too_little_memory_or_disk_is_a_problem_too() -> None:
    plan = make_plan(experiment(), cluster=cluster(8, memory_bytes=2**28, disk_bytes=2**20))
    assert not plan.fits
    assert len(plan.problems) == 2
    assert "raise train.zero.stage" in plan.problems[0]
    assert "LATENTLM_HOME" in plan.problems[1]


def test_the_report_has_every_number(tmp_path: Path) -> None:
    plan = make_plan(experiment(), cluster=cluster(4))
    report = json.loads(json.dumps(plan.as_report()))
    for name in (
        "parameters", "codec_parameters", "tokens_per_step", "flops_per_step", "disk_bytes",
        "memory_per_rank_bytes", "wall_clock_s",
    ):  # fmt: skip
        assert report[name] > 0, name
    assert report["fits"] is True
    assert report["resources"]["cluster"]["cpus"] == 4
    assert {"driver", "workers", "encoder_actors", "data_tasks"} <= set(
        report["resources"]["stages"][0]
    )
    assert "tokens per step" in plan_table(plan)


def test_the_command_exits_3_and_writes_its_json_all_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "latentlm_platform.cli", "plan", str(QUICKSTART), "--json", "-",
         "--set", "train.workers=2", "--set", "train.cpus_per_worker=1.2",
         "--set", "cluster.cpus=2"],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    report = json.loads(done.stdout)
    assert report["fits"] is False
    assert any("need 3.4 CPUs, the cluster has 2" in problem for problem in report["problems"])
    assert "set train.cpus_per_worker=0.5 or cluster.cpus=4" in done.stderr


def command(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LATENTLM_HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-m", "latentlm_platform.cli", *arguments],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_experiment_is_planned_whole_though_it_does_not_fit(path: Path) -> None:
    one = load_experiment(path)
    plan = make_plan(one, cluster=cluster(4, memory_bytes=2**33, disk_bytes=2**40))
    report = json.loads(json.dumps(plan.as_report()))
    for name in ("parameters", "codec_parameters", "tokens_per_step", "flops_per_step",
                 "disk_bytes", "memory_per_rank_bytes"):  # fmt: skip
        assert report[name] > 0, name
    assert report["fits"] is (one.train.gpus_per_worker == 0)
    assert (report["wall_clock_s"] is None) == bool(report["wall_clock_unknown"])
    assert (report["wall_clock_unknown"] is None) <= (report["untrainable"] is None)
    assert "FLOPs per step" in plan_table(plan)


def test_a_track_that_cannot_be_trained_ends_before_anything_starts(tmp_path: Path) -> None:
    for name, words in [
        ("speech/tts_15hz", "corpus.kind = transcribed_speech can be planned but not trained yet"),
        ("multimodal/vq_mllm", "corpus.kind = multimodal_mixture can be planned"),
    ]:
        done = command("run", str(EXPERIMENTS / f"{name}.yaml"), home=tmp_path)
        assert done.returncode == 3
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        assert not list(tmp_path.glob("mlflow*"))
    assert untrainable(experiment()) is None
    assert untrainable(experiment("train.optimizer.schedule_steps=9000")) is None
    assert untrainable(load_experiment(EXPERIMENTS / "image" / "scaling" / "dit_xl.yaml")) is None


def test_planning_beyond_this_machine_exits_3_and_says_everything(tmp_path: Path) -> None:
    file = str(EXPERIMENTS / "speech" / "tts_15hz.yaml")
    done = command("plan", file, "--json", str(tmp_path / "plan.json"), home=tmp_path)
    assert done.returncode == 3, done.stderr
    report = json.loads((tmp_path / "plan.json").read_text())
    assert report["fits"] is False
    assert report["wall_clock_s"] is None
    assert "unknown: nothing like transcribed_speech" in done.stdout
    assert "40 GPUs" in done.stderr


def test_rows_of_text_hold_latents_by_proportion_and_rate() -> None:
    mixture = load_experiment(EXPERIMENTS / "multimodal" / "latentlm.yaml")
    assert row_of(mixture) == (4096, round(4096 * (0.8 + 0.5) / 4), 4096 - round(4096 * 1.3 / 4))
    only_text = load_experiment(
        EXPERIMENTS / "multimodal" / "latentlm.yaml",
        overrides=["corpus.pairs.proportion=1e-9", "corpus.interleaved.proportion=1e-9"],
    )
    assert row_of(only_text).latents == 0
    codes = load_experiment(EXPERIMENTS / "multimodal" / "vq_mllm.yaml")
    assert row_of(codes) == (4096, 0, 4096)
    spoken = load_experiment(EXPERIMENTS / "speech" / "tts_15hz.yaml")
    assert row_of(spoken).latents == round(2048 * 15 / (15 + 4))
    assert row_of(experiment()) == (16, 16, 0)


def test_recomputing_activations_and_known_records_lower_what_is_needed() -> None:
    def activations(*overrides: str) -> int:
        return memory_per_rank(experiment(*overrides), parameters=1)["activations"]

    assert activations("train.activation_checkpointing=true") < activations()
    one = experiment("train.steps=100000")
    few = experiment("train.steps=100000", "corpus.records=1000")
    filling = experiment("train.steps=100000", "latents.mode=write_through")
    streamed = experiment("train.steps=100000", "latents.mode=streamed")
    tried = (one, few, filling, streamed)
    caches = [disk_bytes(e, counts(e))["latent_cache_at_most"] for e in tried]
    row = row_of(one)
    assert caches[1] == 4 * 1000 * row.latents * 16
    assert caches[0] == 4 * 100_000 * one.train.batch_size * row.latents * 16
    assert caches[2:] == [caches[0], 0]
