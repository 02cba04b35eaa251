"""What a run needs against what the cluster has, before anything is read or started.

In: an experiment, neither corpus nor weights. Out: parameters, operations, memory, disk, time and
CPUs; whether it fits, and where it does not, what to change so that Ray does not wait for ever.
"""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from latentlm_platform.cluster import cores
from latentlm_platform.experiment.fields import DEFAULT_KINDS
from latentlm_platform.experiment.files import experiment_key
from latentlm_platform.experiment.points import stage_of, sweep_points
from latentlm_platform.experiment.sections import Experiment
from latentlm_platform.experiment.trials import (
    CODEC_SECTIONS,
    MODEL_SECTIONS,
    distinct,
    trials_of,
    work_key,
)
from latentlm_platform.planning.estimates import (
    counts,
    disk_bytes,
    memory_per_rank,
    unknown_pace,
    wall_clock,
)
from latentlm_platform.planning.resources import (
    ClusterResources,
    cluster_resources,
    cpu_problems,
    demands,
)


@dataclass(frozen=True)
class Plan:
    """Every number of `latentlm plan`; the field names are those of its JSON.

    `parameters` is the model alone; FLOPs are of forward and backward; memory, disk and wall-clock
    are estimates, by part and in total (estimates.py says how); `points`, `codec_trainings`,
    `model_trainings` and `sampling_trials` count distinct work over a sweep, 1 without one. Where
    wall-clock is None, `wall_clock_unknown` says why; `untrainable` says why `latentlm run` would
    refuse.
    """

    key: str
    parameters: int
    codec_parameters: int
    tokens_per_step: int
    flops_per_step: int
    memory_per_rank_bytes: int
    memory_parts_bytes: dict[str, int]
    disk_bytes: int
    disk_parts_bytes: dict[str, int]
    wall_clock_s: float | None
    wall_clock_parts_s: dict[str, float]
    wall_clock_unknown: str | None
    resources: dict[str, Any]
    points: int
    codec_trainings: int
    model_trainings: int
    sampling_trials: int
    untrainable: str | None
    problems: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not self.problems

    def as_report(self) -> dict[str, Any]:
        """What `--json` writes."""
        return {**asdict(self), "fits": self.fits}


def make_plan(experiment: Experiment, *, cluster: ClusterResources | None = None) -> Plan:
    """The plan of an experiment on a cluster; by default the one that it names."""
    cluster = cluster or cluster_resources(experiment)
    counted = counts(experiment)
    memory = memory_per_rank(experiment, parameters=counted.parameters)
    disk = disk_bytes(experiment, counted)
    unknown = unknown_pace(experiment)
    work = sweep_work(experiment)
    seconds = {} if unknown else _seconds(experiment, work)
    problems = [
        *cpu_problems(experiment, cluster),
        *_memory_problems(experiment, cluster, memory["total"]),
        *_disk_problems(cluster, disk["total"] * work.model_trainings),
    ]
    stages = demands(experiment)
    return Plan(
        key=experiment_key(experiment),
        parameters=counted.parameters,
        codec_parameters=counted.codec_parameters,
        tokens_per_step=counted.tokens_per_step,
        flops_per_step=counted.flops_per_step,
        memory_per_rank_bytes=memory["total"],
        memory_parts_bytes=memory,
        disk_bytes=disk["total"] * work.model_trainings,
        disk_parts_bytes=disk,
        wall_clock_s=seconds.get("total"),
        wall_clock_parts_s=seconds,
        wall_clock_unknown=unknown,
        resources={
            "cluster": asdict(cluster),
            "stages": [stage.as_report() for stage in stages],
            "cpus_needed": max(stage.cpus for stage in stages),
            "gpus_needed": max(stage.gpus for stage in stages),
        },
        **work._asdict(),
        untrainable=untrainable(experiment),
        problems=tuple(problems),
    )


def untrainable(experiment: Experiment) -> str | None:
    """The sentence that `latentlm run` refuses with where it cannot train such a thing yet."""
    kind, trainable = experiment.corpus.kind, DEFAULT_KINDS["corpus"]
    if kind != trainable:  # codecs and models that fit the classes of images can all be trained
        return (
            f"corpus.kind = {kind} can be planned but not trained yet;"
            f" only corpus.kind = {trainable} can"
        )
    return None


class Work(NamedTuple):
    """What a sweep really has to do; a sampling trial scores one model at all its CFG scales.

    Of Optuna's draws the most that can be needed.
    """

    points: int
    codec_trainings: int
    model_trainings: int
    sampling_trials: int


def sweep_work(experiment: Experiment) -> Work:
    """The distinct work of an experiment and its sweep."""
    search = experiment.sweep.search if experiment.sweep else None
    if search is not None and search.algorithm == "optuna":
        stages = {stage_of(path) for path in search.space}
        codecs = search.samples if "codec" in stages else 1
        models = search.samples if stages & {"codec", "model"} else 1
        return Work(search.samples, codecs, models, search.samples)
    points = sweep_points(experiment)
    experiments = [point.experiment for point in points]
    return Work(
        len(points),
        distinct(experiments, CODEC_SECTIONS),
        distinct(experiments, MODEL_SECTIONS),
        len(trials_of(points)),
    )


def _seconds(experiment: Experiment, work: Work) -> dict[str, float]:
    """Wall-clock by stage and in total; of a sweep, each distinct piece of work once."""
    trials = trials_of(sweep_points(experiment))
    parts: dict[str, float] = {}
    done: set[tuple[str, str]] = set()
    for trial in trials:
        codec, model = (work_key(trial.experiment, s) for s in (CODEC_SECTIONS, MODEL_SECTIONS))
        keys = {"codec_training": codec, "encoding": codec, "model_training": model}
        for stage, seconds in wall_clock(trial.experiment, counts(trial.experiment)).items():
            if stage != "total" and (stage, keys.get(stage, trial.key)) not in done:
                done.add((stage, keys.get(stage, trial.key)))
                parts[stage] = parts.get(stage, 0.0) + seconds
    if not trials:
        once = wall_clock(experiment, counts(experiment))
        times = [work.codec_trainings, work.codec_trainings, work.model_trainings, work.points]
        parts = {s: once[s] * n for s, n in zip(list(once)[:4], times, strict=True)}
    at_once = min(experiment.sweep.max_concurrent if experiment.sweep else 1, cores())
    parts = {stage: seconds / at_once for stage, seconds in parts.items()}
    return {**parts, "total": sum(parts.values())}


def _memory_problems(experiment: Experiment, cluster: ClusterResources, per_rank: int) -> list[str]:
    ranks = experiment.train.workers
    if cluster.memory_bytes is None or experiment.train.gpus_per_worker:
        return []
    if per_rank * ranks <= cluster.memory_bytes:
        return []
    return [
        f"training needs {_bytes(per_rank)} on each of {ranks} ranks, the cluster has"
        f" {_bytes(cluster.memory_bytes)}: raise train.zero.stage or train.accumulation, or make"
        " model.width or model.depth smaller"
    ]


def _disk_problems(cluster: ClusterResources, needed: int) -> list[str]:
    if cluster.disk_bytes is None or needed <= cluster.disk_bytes:
        return []
    return [
        f"the run needs {_bytes(needed)} of disk, {_bytes(cluster.disk_bytes)} are free: set"
        " LATENTLM_HOME to a larger disk, lower train.checkpoint.latest, or set"
        " latents.mode=streamed"
    ]


def plan_table(plan: Plan) -> str:
    """The plan for a person."""
    memory = ", ".join(f"{k} {_bytes(v)}" for k, v in plan.memory_parts_bytes.items() if v)
    rows = [
        ("parameters", f"{plan.parameters:,} (codec {plan.codec_parameters:,})"),
        ("tokens per step", f"{plan.tokens_per_step:,}"),
        ("FLOPs per step", f"{plan.flops_per_step:.3g}"),
        ("memory per rank", f"about {_bytes(plan.memory_per_rank_bytes)}"),
        ("", memory.rpartition(", total")[0]),
        ("disk", f"about {_bytes(plan.disk_bytes)}"),
        *_wall_clock_rows(plan),
    ]
    if plan.points > 1:
        work = (
            f"{plan.points} points: {plan.codec_trainings} codec trainings, {plan.model_trainings}"
            f" model trainings, {plan.sampling_trials} sampling trials"
        )
        rows.append(("sweep", work))
    if plan.untrainable:
        rows.append(("note", plan.untrainable))
    cluster = plan.resources["cluster"]
    rows.append(("cluster", f"{cluster['cpus']:g} CPUs, {cluster['gpus']:g} GPUs"))
    lines = [f"  {name:<16} {text}" for name, text in rows]
    columns = ("driver", "workers", "encoder_actors", "data_tasks", "cpus", "gpus")
    lines += ["", f"  {'stage':<16}" + "".join(f"{column:>16}" for column in columns)]
    for stage in plan.resources["stages"]:
        numbers = "".join(f"{stage[column]:>16g}" for column in columns)
        lines.append(f"  {stage['stage']:<16}{numbers}")
    return "\n".join(lines)


def _wall_clock_rows(plan: Plan) -> list[tuple[str, str]]:
    if plan.wall_clock_s is None:
        return [("wall-clock", f"unknown: {plan.wall_clock_unknown}")]
    parts = [f"{k} {_time(v)}" for k, v in plan.wall_clock_parts_s.items() if k != "total"]
    return [
        ("wall-clock", f"about {_time(plan.wall_clock_s)} on a machine like this one"),
        ("", ", ".join(parts)),
    ]


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
