"""The MLflow run of a stage: what it is called and tagged with, how it ends."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from latentlm_platform.errors import Stopped, UserError
from latentlm_platform.experiment.files import load_experiment
from latentlm_platform.experiment.sections import Experiment
from latentlm_platform.tracking.client import Tracker
from latentlm_platform.tracking.stage_runs import stage_run

QUICKSTART = Path(__file__).parents[3] / "experiments" / "quickstart.yaml"
VALUES: dict[str, Any] = {"codec.variance.sigma": 0.1, "train.seed": 2, "sample.cfg_scale": 3}


@pytest.fixture
def experiment() -> Experiment:
    return load_experiment(QUICKSTART)


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (Stopped("a"), "KILLED"), (UserError("b"), "FAILED")],
)
def test_a_stage_run_tells_what_was_chosen_for_it_and_ends_as_the_stage(
    tracker: Tracker, experiment: Experiment, error: Exception | None, status: str
) -> None:
    parent = tracker.start_run("parent")
    how: dict[str, Any] = {"key": "k", "tags": {"latentlm.sweep": "s"}, "values": VALUES}
    ends = pytest.raises(type(error)) if error is not None else contextlib.nullcontext()
    with ends, stage_run(parent, experiment, "model", "model", **how) as run:
        if error is not None:
            raise error
    assert tracker.close() is None
    stored = tracker.client.get_run(run.run_id)
    assert stored.info.status == status
    assert stored.info.run_name == "quickstart model sigma=0.1 seed=2"
    tags = stored.data.tags
    assert tags["mlflow.parentRunId"] == parent.run_id
    assert tags["latentlm.kind"] == "model"
    assert tags["latentlm.sweep"] == "s"
    assert json.loads(tags["latentlm.chosen"]) == {"codec.variance.sigma": 0.1, "train.seed": 2}
