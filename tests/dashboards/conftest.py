"""A real SQLite store that holds runs of the shape that `latentlm run` writes."""

from typing import Any

import pytest

from latentlm_dashboards.runs import connect

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
    for metric, value in (("", 0.9), ("_low", 0.88), ("_high", 0.92)):
        client.log_metric(run, f"generated_accuracy{metric}", value + width / 12800)
    for kind in ("codec", "model"):
        child = start(kind, kind, run)
        for step in (1, 2):
            client.log_metric(child, "loss", 1 / step, step=step)
    for scale in CFG_SCALES:
        child = start("evaluation", f"{name} cfg {scale}", run)
        client.log_param(child, "cfg_scale", scale)
        client.log_metric(child, "generated_accuracy", 0.9 - (scale - 2) ** 2 / 10)
        client.log_metric(child, "frechet_efficientnet_lite0", 20 + scale)
    return run
