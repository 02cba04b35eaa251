"""A real SQLite store of MLflow, and a tracker on it."""

from pathlib import Path

import pytest

from latentlm_platform.experiment.sections import Tracking
from latentlm_platform.tracking.client import Tracker, open_tracker


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose database exists: making the tables takes seconds, so once is enough."""
    home = tmp_path_factory.mktemp("home with space")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTLM_HOME", str(home))
        open_tracker(Tracking())
    return home


@pytest.fixture
def tracker(store: Path, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    monkeypatch.setenv("LATENTLM_HOME", str(store))
    return open_tracker(Tracking())
