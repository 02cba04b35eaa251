"""Real stores that hold runs of the shape that the platform writes, and MLflow's pages of them.

`uri` is a small SQLite store, `pages` MLflow's server on SQLite as `latentlm ui` starts it, with
runs of every track, `postgres_pages` one on PostgreSQL, `browser` headless Chromium.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latentlm_dashboards.runs import connect
from making_companions import start_chromium
from making_pages import Pages, postgresql, served
from making_tracked_runs import write_every_track

CFG_SCALES = (1.0, 1.5, 2.0, 3.0)


@pytest.fixture(scope="session")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two runs, `small` and `wide`, that differ in width and in accuracy."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = connect(uri)
    experiment = client.create_experiment("latentlm", artifact_location=folder.as_uri())
    for name, key, width in (("small", "3f9a1111", 64), ("wide", "81c03333", 128)):
        write_run(client, experiment, name=name, key=key, width=width)
    return uri


@pytest.fixture
def client(uri: str) -> Any:
    return connect(uri)


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    home = tmp_path_factory.mktemp("sqlite_pages")
    with _pages(f"sqlite:///{home}/mlflow.db", home) as pages:
        yield pages


@pytest.fixture(scope="session")
def postgres_pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    home = tmp_path_factory.mktemp("postgres_pages")
    with postgresql(home) as uri, _pages(uri, home) as pages:
        yield pages


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = start_chromium(
        tmp_path_factory.mktemp("profile"),
        "--window-size=1700,2200",  # charts below the fold are not drawn
        logs=("browser",),
    )
    driver.set_page_load_timeout(120)
    driver.set_script_timeout(120)
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chosen = os.environ.get("LATENTLM_SCREENSHOTS")
    folder = Path(chosen) if chosen else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_run(client: Any, experiment: str, *, name: str, key: str, width: int) -> str:
    """One parent with a codec, a model and an evaluation for each CFG scale."""

    def start(kind: str, title: str, parent: str | None) -> str:
        family = {"mlflow.parentRunId": parent} if parent else {}
        tags = {"latentlm.kind": kind, "latentlm.key": key, **family}
        made: str = client.create_run(experiment, run_name=title, tags=tags).info.run_id
        return made

    run = start("run", name, None)
    client.log_param(run, "model.width", width)
    client.log_param(run, "train.steps", 100)
    client.log_metric(run, "bad_records", 0)
    for metric, value in (("", 0.9), ("_low", 0.88), ("_high", 0.92)):
        client.log_metric(run, f"generated_accuracy{metric}", value + width / 12800)
    for kind in ("codec", "model"):
        child = start(kind, kind, run)
        for step in (1, 2):
            client.log_metric(child, "loss", 1 / step, step=step)
    for scale in CFG_SCALES:
        child = start("evaluation", f"{name} cfg {scale}", run)
        client.log_param(child, "cfg_scale", scale)
        client.log_param(child, "corpus.kind", "class_images")
        client.log_metric(child, "generated_accuracy", 0.9 - (scale - 2) ** 2 / 10)
        client.log_metric(child, "frechet_efficientnet_lite0", 20 + scale)
    return run


@contextlib.contextmanager
def _pages(uri: str, home: Path) -> Iterator[Pages]:
    """`latentlm ui` on a store with runs of every track."""
    client = connect(uri)
    folder = home / "mlartifacts"
    experiment = client.create_experiment("latentlm", artifact_location=folder.as_uri())
    write_every_track(client, experiment)
    with served(uri, home) as pages:
        yield pages
