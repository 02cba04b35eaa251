"""The CPU arithmetic of a run: what each stage asks of Ray against what the cluster has.

Stages of a run never overlap; trials of a sweep do. On one node Σ trial + Σ Train worker + Σ
encoder actor CPUs + 1 must not exceed the logical CPUs: with less, Ray Data's tasks starve and Ray
waits for ever without a word.
"""

import contextlib
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentlm_platform.cluster import connected, local_cpus
from latentlm_platform.experiment.sections import Experiment
from latentlm_platform.home import home

DATA_CPUS = 1.0  # what Ray Data must find free beside workers and actors
TRIAL_CPUS = 0.1  # of a sweep: its controlling function; Ray Tune refuses 0


@dataclass(frozen=True)
class ClusterResources:
    """What a cluster has; `local` if it is this machine. Unknown bytes are None."""

    cpus: float
    gpus: float
    local: bool
    memory_bytes: int | None = None
    disk_bytes: int | None = None


@dataclass(frozen=True)
class Demand:
    """What one stage asks for at once, in every one of the trials that a sweep runs together.

    `knob` is the setting of one worker's or actor's CPUs.
    """

    stage: str
    knob: str
    count: int
    cpus_each: float
    gpus_each: float = 0.0
    other_cpus: float = 0.0
    trial_cpus: float = 0.0
    trials: int = 1

    @property
    def cpus(self) -> float:
        of_trial = self.count * self.cpus_each + self.other_cpus + self.trial_cpus
        return round(self.trials * of_trial + DATA_CPUS, 6)

    @property
    def gpus(self) -> float:
        return round(self.trials * self.count * self.gpus_each, 6)

    def as_report(self) -> dict[str, Any]:
        """CPUs by who asks for them."""
        own = round(self.trials * self.count * self.cpus_each, 6)
        encodes = self.knob == "latents.cpus_per_actor"
        return {
            "stage": self.stage,
            "driver": round(self.trials * self.trial_cpus, 6),
            "workers": 0.0 if encodes else own,
            "encoder_actors": own if encodes else round(self.trials * self.other_cpus, 6),
            "data_tasks": DATA_CPUS,
            "cpus": self.cpus,
            "gpus": self.gpus,
        }


def demands(experiment: Experiment) -> list[Demand]:
    """Every stage's demand, in the order of a run."""
    codec, latents, train = experiment.codec.training, experiment.latents, experiment.train
    sweep = experiment.sweep
    trial: dict[str, Any] = {}
    if sweep is not None:
        trial = {"trial_cpus": TRIAL_CPUS, "trials": sweep.max_concurrent}
    encoders = 0 if latents.mode == "cached" else latents.actors  # for each worker
    train_gpus = train.gpus_per_worker + encoders * latents.gpus_per_actor
    worker = "train.cpus_per_worker"
    return [
        Demand(
            "codec training",
            worker,
            codec.workers,
            train.cpus_per_worker,
            train.gpus_per_worker,
            **trial,
        ),
        Demand(
            "encoding",
            "latents.cpus_per_actor",
            latents.actors,
            latents.cpus_per_actor,
            latents.gpus_per_actor,
            **trial,
        ),
        Demand(
            "model training",
            worker,
            train.workers,
            train.cpus_per_worker,
            train_gpus,
            other_cpus=train.workers * encoders * latents.cpus_per_actor,
            **trial,
        ),
        Demand(
            "evaluation",
            "evaluate.actors",
            experiment.evaluate.actors,
            0.0 if sweep else 1.0,  # a sweep keeps them beside its trainings (actor_pool.py)
            train.gpus_per_worker,
            **trial,
        ),
    ]


def cpu_problems(
    experiment: Experiment, cluster: ClusterResources, *, trained: bool = False
) -> list[str]:
    """A sentence with a fix for the stages that would wait for ever, those of one fix together.

    Of a model that is trained already only the evaluation is left.
    """
    waiting: dict[tuple[str, str], list[str]] = {}
    for demand in demands(experiment)[-1:] if trained else demands(experiment):
        if demand.cpus > cluster.cpus + 1e-6:
            lack = (
                f"{demand.cpus:g} CPUs, the cluster has {cluster.cpus:g}, and Ray would wait for"
                " ever"
            )
            waiting.setdefault((lack, _cpu_fix(demand, cluster)), []).append(demand.stage)
        if demand.gpus > cluster.gpus + 1e-6:
            lack = f"{demand.gpus:g} GPUs, the cluster has {cluster.gpus:g}"
            fix = "set train.gpus_per_worker=0 and latents.gpus_per_actor=0, or fewer workers"
            waiting.setdefault((lack, fix), []).append(demand.stage)
    return [f"{_need(stages)} {lack}: {fix}" for (lack, fix), stages in waiting.items()]


def _need(stages: list[str]) -> str:
    """`a needs`, `a and b each need`, `a, b and c each need`."""
    *first, last = stages
    return f"{', '.join(first)} and {last} each need" if first else f"{last} needs"


def _cpu_fix(demand: Demand, cluster: ClusterResources) -> str:
    asked = demand.trials * demand.count
    free = cluster.cpus - (demand.cpus - asked * demand.cpus_each)
    each = math.floor(free / asked * 10 + 1e-6) / 10
    fixes = []
    if demand.trials > 1:
        of_trial = (demand.cpus - DATA_CPUS) / demand.trials
        at_once = math.floor((cluster.cpus - DATA_CPUS) / of_trial + 1e-6)
        fixes += [f"sweep.max_concurrent={at_once}"] if at_once >= 1 else []
    if demand.knob == "evaluate.actors":
        if free >= 1:
            fixes.append(f"evaluate.actors={math.floor(free)}")
    elif each > 0:
        fixes.append(f"{demand.knob}={each:g}")
    if demand.other_cpus and not fixes:
        fixes.append("latents.mode=cached")
    if cluster.local:
        fixes.append(f"cluster.cpus={math.ceil(demand.cpus)}")
    return f"set {' or '.join(fixes)}" if fixes else "use a larger cluster or fewer workers"


def cluster_resources(experiment: Experiment) -> ClusterResources:
    """What the experiment's cluster has: this machine without starting Ray, else Ray is asked."""
    if experiment.cluster.address == "local":
        return local_resources(experiment)
    import ray

    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            stack.enter_context(connected(experiment.cluster, verbose=False))
        total = ray.cluster_resources()
    memory = int(total["memory"]) if "memory" in total else None
    return ClusterResources(total.get("CPU", 0), total.get("GPU", 0), False, memory_bytes=memory)


def local_resources(experiment: Experiment) -> ClusterResources:
    """This machine as a local Ray will see it."""
    import psutil
    import torch

    return ClusterResources(
        cpus=experiment.cluster.cpus or local_cpus(),
        gpus=torch.cuda.device_count(),
        local=True,
        memory_bytes=psutil.virtual_memory().total,
        disk_bytes=free_disk_bytes(),
    )


def free_disk_bytes() -> int:
    """Free bytes where state will live, whether or not the folder exists yet."""
    folder: Path = home()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
