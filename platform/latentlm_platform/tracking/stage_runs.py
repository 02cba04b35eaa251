"""The MLflow run of a stage, a child of the run's own: its title, its tags, how it ends."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from latentlm_platform.errors import Stopped
from latentlm_platform.experiment.points import VARIANT, stage_of
from latentlm_platform.experiment.sections import Experiment
from latentlm_platform.tracking.client import TrackedRun

DEPTH = {"codec": 0, "latents": 1, "model": 1, "evaluation": 2}  # what a stage depends on, counted


@contextlib.contextmanager
def stage_run(
    parent: TrackedRun,
    experiment: Experiment,
    stage: str,
    title: str,
    *,
    key: str,
    tags: dict[str, str],
    values: dict[str, Any],
) -> Iterator[TrackedRun]:
    """The run of a stage's artifact of that key; it ends as the body ends.

    `values`, dotted path → value, are what a sweep chose: those that the stage depends on stand in
    its title and in a tag.
    """
    chosen = {p: v for p, v in values.items() if DEPTH[stage_of(p)] <= DEPTH[stage]}
    own = {
        "latentlm.kind": stage,
        "latentlm.key": key,
        "latentlm.experiment": experiment.name,
        "latentlm.chosen": json.dumps(chosen, ensure_ascii=False),
    }
    names = [f"{path.rpartition('.')[2]}={value}" for path, value in chosen.items()]
    title = " ".join((experiment.name, title, *names))
    run = parent.tracker.start_run(title, parent=parent, tags=own | tags)
    parameters = experiment.model_dump(mode="json", exclude={"sweep"})
    run.log_parameters(parameters | {p: v for p, v in chosen.items() if p == VARIANT})
    try:
        yield run
    except (Stopped, KeyboardInterrupt, SystemExit):
        run.finish("KILLED")
        raise
    except BaseException:
        run.finish("FAILED")
        raise
    run.finish("FINISHED")
