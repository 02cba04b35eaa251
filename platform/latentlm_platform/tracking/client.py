"""MLflow: one parent run for each `latentlm run`, children for codec, model and evaluations.

Like the other files of this room it imports mlflow only inside functions. It uses `MlflowClient`
with explicit run ids: nothing depends on an active run or a thread. At the start a store that does
not answer is one clear `UserError`; after that a failure never reaches the run: calls wait in order
in an `Outbox` and are tried again, and `Tracker.close` says once what could not be written. What a
training measures goes through its journal (`uploading.JournalUploader`).
"""

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from latentlm_platform.errors import UserError
from latentlm_platform.experiment.sections import Tracking
from latentlm_platform.home import home
from latentlm_platform.tracking.outbox import Outbox
from latentlm_platform.tracking.protocol import (
    DIGEST_CHARACTERS,
    METRICS_A_CALL,
    PARAMETER_CHARACTERS,
    PARAMETERS_A_CALL,
    TAG_CHARACTERS,
    chunks,
    flatten,
    metric_rows,
    shortened,
)
from latentlm_platform.tracking.store import (
    alone,
    explained,
    open_client,
    require_answer,
    store_uri,
)

Status = Literal["FINISHED", "FAILED", "KILLED"]


class TrackedRun:
    """One MLflow run. `run_id` is empty while a child waits for the store to come back."""

    def __init__(self, tracker: "Tracker", run_id: str = "") -> None:
        self.run_id = run_id
        self.tracker = tracker
        self._non_finite = 0

    def url(self, base: str) -> str:
        """Where MLflow's pages at `base` show this run."""
        experiment = self.tracker.experiment_id
        return f"{base.rstrip('/')}/#/experiments/{experiment}/runs/{self.run_id}"

    def log_parameters(self, parameters: dict[str, Any]) -> None:
        """Nested parameters under dotted names; values are cut at MLflow's 6000 characters."""
        from mlflow.entities import Param

        rows = [
            Param(name, shortened(value, PARAMETER_CHARACTERS))
            for name, value in flatten(parameters).items()
        ]
        for some in chunks(rows, PARAMETERS_A_CALL):
            self._send("parameters", functools.partial(self.log_batch, params=some))

    def log_metrics(self, metrics: dict[str, float], *, step: int = 0) -> None:
        """Values of one step."""
        rows = metric_rows(metrics, step=step, time_ms=time.time_ns() // 1_000_000)
        for some in chunks(rows, METRICS_A_CALL):
            self._send("metrics", functools.partial(self.log_batch, metrics=some))

    def replace_metrics(self, prefix: str, metrics: dict[str, float]) -> None:
        """These values; others of that prefix which the run has become 0."""

        def replace() -> None:
            known = self._client.get_run(self.run_id).data.metrics
            old = {name: 0.0 for name in known if name.startswith(prefix)}
            now_ms = time.time_ns() // 1_000_000
            self.log_batch(metrics=metric_rows(old | metrics, step=0, time_ms=now_ms))

        self._send("metrics", replace)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Copy a file into the run's artifacts."""
        self._send(
            f"file {path.name}",
            lambda: self._client.log_artifact(self.run_id, str(path), folder),
        )

    def log_text(self, text: str, artifact: str) -> None:
        """Write `text` as the artifact of that path."""
        self._send(artifact, lambda: self._client.log_text(self.run_id, text, artifact))

    def log_picture(self, picture_YXC: np.ndarray, key: str, step: int) -> None:
        """uint8 (Y, X, 1 or 3) under `key` and `step`: MLflow's image grid steps through them."""
        self._send(
            f"picture {key}",
            lambda: self._client.log_image(self.run_id, picture_YXC, key=key, step=step),
        )

    def log_table(self, rows: list[dict[str, Any]], artifact: str) -> None:
        """Rows as the JSON table that MLflow's artifact page shows; it replaces an earlier one."""
        columns = list(dict.fromkeys(name for row in rows for name in row))
        table = {"columns": columns, "data": [[row.get(name) for name in columns] for row in rows]}
        self.log_text(json.dumps(table, default=str), artifact)

        def announce() -> None:
            tags = self._client.get_run(self.run_id).data.tags
            known = json.loads(tags.get("mlflow.loggedArtifacts", "[]"))
            entry = {"path": artifact, "type": "table"}
            value = json.dumps([*(other for other in known if other != entry), entry])
            self._client.set_tag(self.run_id, "mlflow.loggedArtifacts", value)

        self._send(artifact, announce)

    def log_corpus(
        self, name: str, *, digest: str, source: str, profile: dict[str, Any] | None = None
    ) -> None:
        """The corpus as MLflow's dataset input: its manifest's digest, origin and counts."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        corpus = Dataset(
            name=name,
            digest=digest[:DIGEST_CHARACTERS],
            source_type=source.partition("://")[0] if "://" in source else "local",
            source=json.dumps({"uri": source}),
            profile=json.dumps(profile or {}),
        )
        entry = DatasetInput(corpus, [InputTag("mlflow.data.context", "training")])
        self._send(f"corpus {name}", lambda: self._client.log_inputs(self.run_id, [entry]))

    def set_tags(self, tags: dict[str, Any]) -> None:
        """Add or replace tags; values are cut at 5000 characters."""
        from mlflow.entities import RunTag

        rows = [RunTag(name, shortened(value, TAG_CHARACTERS)) for name, value in tags.items()]
        for some in chunks(rows, PARAMETERS_A_CALL):
            self._send("tags", functools.partial(self.log_batch, tags=some))

    def finish(self, status: Status) -> None:
        """The run ended so; how many values were not finite becomes a tag."""
        if self._non_finite:
            self.set_tags({"latentlm.non_finite_values": self._non_finite})
        self._send(f"status {status}", lambda: self._client.set_terminated(self.run_id, status))

    @contextlib.contextmanager
    def system_metrics(self) -> Iterator[None]:
        """Processor, memory, disk, network and GPU of this machine every ten seconds, if wanted."""
        if not (self.tracker.with_system_metrics and self.run_id):
            yield
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(
            self.run_id, resume_logging=True, tracking_uri=self.tracker.uri
        )
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def log_batch(self, **rows: list[Any]) -> None:
        """MLflow's own call, which raises when the store fails; values not finite are counted."""
        self.tracker.client.log_batch(self.run_id, **rows)
        self._non_finite += sum(math.isnan(row.value) for row in rows.get("metrics", ()))

    def uploaded_steps(self) -> dict[str, int]:
        """The last step of each metric that MLflow has of this run; raises when the store fails."""
        client = self.tracker.client
        return {
            key: max(metric.step for metric in client.get_metric_history(self.run_id, key))
            for key in client.get_run(self.run_id).data.metrics
            if not key.startswith("system/")
        }

    def _send(self, what: str, call: Callable[[], Any]) -> None:
        self.tracker.outbox.send(what, call)

    @property
    def _client(self) -> Any:
        return self.tracker.client


class Tracker:
    """An MLflow store and one experiment in it."""

    def __init__(self, client: Any, *, uri: str, experiment_id: str, system_metrics: bool) -> None:
        self.client = client
        self.uri = uri
        self.experiment_id = experiment_id
        self.with_system_metrics = system_metrics
        self.outbox = Outbox()

    def start_run(
        self,
        name: str,
        *,
        parent: TrackedRun | None = None,
        tags: dict[str, Any] | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> TrackedRun:
        """A new run. Without a parent a store that fails is a UserError; children wait for it."""
        run = TrackedRun(self)

        def create() -> None:
            family = {"mlflow.parentRunId": parent.run_id} if parent else {}
            texts = {key: shortened(value, TAG_CHARACTERS) for key, value in (tags or {}).items()}
            made = self.client.create_run(
                self.experiment_id,
                run_name=name,
                tags={"mlflow.source.name": "latentlm", **family, **texts},
            )
            run.run_id = made.info.run_id

        if parent is None:
            with explained(self.uri):
                create()
        else:
            self.outbox.send(f"run {name}", create)
        if parameters:
            run.log_parameters(parameters)
        return run

    def reopen(self, run_id: str) -> TrackedRun:
        """An earlier run that goes on: it reads RUNNING again."""
        with explained(self.uri):
            self.client.update_run(run_id, status="RUNNING")
        return TrackedRun(self, run_id)

    def close(self, timeout_s: float = 60.0) -> str | None:
        """Write what waits; one sentence about what was not written, None when all was."""
        waiting = self.outbox.flush(timeout_s)
        lost = waiting + len(self.outbox.refused)
        if not lost:
            return None
        return (
            f"MLflow at {self.uri} lacks {lost} {'record' if lost == 1 else 'records'} of this run"
            f" ({self.outbox.reason}); the results themselves are complete on disk"
        )


def open_tracker(tracking: Tracking) -> Tracker:
    """The store and experiment that the section names, made on first use; UserError if it fails."""
    uri = store_uri(tracking.uri)
    require_answer(uri)
    with explained(uri), alone(uri):
        client = open_client(uri)
        found = client.get_experiment_by_name(tracking.experiment)
        if found is None:
            place = None if uri.startswith("http") else (home() / "mlartifacts").as_uri()
            experiment_id = client.create_experiment(tracking.experiment, artifact_location=place)
        elif found.lifecycle_stage == "deleted":
            raise UserError(
                f"the MLflow experiment {tracking.experiment!r} at {uri} was deleted;"
                " restore it there or give tracking.experiment another name"
            )
        else:
            experiment_id = found.experiment_id
    return Tracker(
        client, uri=uri, experiment_id=experiment_id, system_metrics=tracking.system_metrics
    )
