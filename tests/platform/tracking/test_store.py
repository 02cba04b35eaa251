"""Stores that cannot serve, and one that two processes open at the same moment."""

import subprocess
import sys
from pathlib import Path

import pytest

from latentlm_platform.errors import UserError
from latentlm_platform.experiment.sections import Tracking
from latentlm_platform.tracking.client import Tracker, open_tracker


def test_a_store_that_cannot_serve_is_one_sentence_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9 does not answer"):
        open_tracker(Tracking(uri="http://127.0.0.1:9"))
    with pytest.raises(UserError, match=r"MLflow at .* failed"):
        open_tracker(Tracking(uri=str(tmp_path / "mlruns")))


def test_a_deleted_experiment_is_one_sentence(tracker: Tracker) -> None:
    gone = open_tracker(Tracking(experiment="gone"))
    gone.client.delete_experiment(gone.experiment_id)
    with pytest.raises(UserError, match="was deleted"):
        open_tracker(Tracking(experiment="gone"))


def test_two_processes_may_both_be_first(tmp_path: Path) -> None:
    code = (
        "from latentlm_platform.experiment.sections import Tracking\n"
        "from latentlm_platform.tracking.client import open_tracker\n"
        "print(open_tracker(Tracking()).experiment_id)\n"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={"LATENTLM_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    answers = {process.communicate(timeout=120)[0].strip() for process in started}
    assert answers == {"1"}
