"""Runs as MLflow holds them: found by what a person calls them, and put side by side.

A run of `latentlm run` is an MLflow parent (tag `latentlm.kind` = run) whose children are the
codec, the model and one evaluation for each CFG scale. The values of children appear in a
comparison as `codec.…`, `model.…` and `evaluation[cfg_scale=2.0].…`.
"""

import logging
import os
from dataclasses import dataclass
from typing import Any, NamedTuple

KIND, KEY = "latentlm.kind", "latentlm.key"
SHORTEST_PREFIX = 4
PAGE = 500


@dataclass(frozen=True)
class RunRecord:
    """A parent run with the values of its children merged in under their kind."""

    run_id: str
    experiment_id: str
    name: str
    key: str
    status: str
    parameters: dict[str, str]
    metrics: dict[str, float]


class Pair(NamedTuple):
    """A metric of both runs: value and, where it was measured, the 95 % interval of each."""

    a: float | None
    b: float | None
    a_interval: tuple[float, float] | None
    b_interval: tuple[float, float] | None

    @property
    def difference(self) -> float | None:
        """b − a, where both have the metric."""
        return None if self.a is None or self.b is None else self.b - self.a


@dataclass(frozen=True)
class Comparison:
    """Parameters that differ, and every metric either run has."""

    a: RunRecord
    b: RunRecord
    parameters: dict[str, tuple[str | None, str | None]]
    metrics: dict[str, Pair]


def connect(uri: str) -> Any:
    """An `MlflowClient` of the store; gives up on a dead server after seconds."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # after the import, which sets them
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def find_run(client: Any, reference: str) -> RunRecord:
    """The run of that key, beginning of a key (four letters or more), name or MLflow run id.

    A key that was run several times means the newest. Raises LookupError where nothing fits, or
    where several different experiments do.
    """
    return _record(client, find_parent(client, reference, kinds=("run",)))


def find_parent(client: Any, reference: str, *, kinds: tuple[str, ...]) -> Any:
    """MLflow's own record of the run that `find_run` would find, among parents of these kinds."""
    runs = _parents(client, kinds)
    for fits in (
        lambda run: reference in (run.info.run_id, run.data.tags.get(KEY)),
        lambda run: run.info.run_name == reference,
        lambda run: (
            len(reference) >= SHORTEST_PREFIX and run.data.tags.get(KEY, "").startswith(reference)
        ),
    ):
        found = [run for run in runs if fits(run)]
        if len({run.data.tags.get(KEY, run.info.run_id) for run in found}) > 1:
            choices = "; ".join(_introduced(run) for run in found[:5])
            raise LookupError(
                f"{reference!r} means several {' or '.join(f'{kind}s' for kind in kinds)}:"
                f" {choices}; give one of the keys"
            )
        if found:
            return found[0]
    known = "; ".join(_introduced(run) for run in runs[:5]) or "none yet"
    what = " or ".join(kinds)
    raise LookupError(f"no {what} is called {reference!r}; the newest are: {known}")


def compare_runs(a: RunRecord, b: RunRecord) -> Comparison:
    """Side by side; `x_low` and `x_high` are the interval of `x`, not metrics of their own."""
    paths = sorted(a.parameters.keys() | b.parameters.keys())
    parameters = {path: (a.parameters.get(path), b.parameters.get(path)) for path in paths}
    metrics = {
        name: Pair(a.metrics.get(name), b.metrics.get(name), _interval(a, name), _interval(b, name))
        for name in sorted(a.metrics.keys() | b.metrics.keys())
        if not _is_bound(name, {**a.metrics, **b.metrics})
    }
    return Comparison(
        a, b, {path: pair for path, pair in parameters.items() if pair[0] != pair[1]}, metrics
    )


def _parents(client: Any, kinds: tuple[str, ...]) -> list[Any]:
    """Every parent run of these kinds in the store, newest first."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = [run for k in kinds for run in _all_runs(client, experiments, f"tags.`{KIND}` = '{k}'")]
    return sorted(found, key=lambda run: run.info.start_time or 0, reverse=True)


def children(client: Any, parent: Any) -> list[Any]:
    """The runs below that one, oldest first."""
    wanted = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    return _all_runs(client, [parent.info.experiment_id], wanted)[::-1]


def _all_runs(client: Any, experiments: list[str], wanted: str) -> list[Any]:
    """Every run of the experiments that fits, newest first, page by page."""
    runs: list[Any] = []
    token: str | None = ""
    while token is not None and experiments:
        page = client.search_runs(
            experiments,
            wanted,
            max_results=PAGE,
            order_by=["attributes.start_time DESC"],
            page_token=token or None,
        )
        runs += page
        token = page.token or None
    return runs


def _record(client: Any, parent: Any) -> RunRecord:
    info, data = parent.info, parent.data
    parameters, metrics = dict(data.params), dict(data.metrics)
    for child in children(client, parent):
        prefix = _prefix(child)
        metrics |= {f"{prefix}.{name}": value for name, value in child.data.metrics.items()}
    return RunRecord(
        run_id=info.run_id,
        experiment_id=info.experiment_id,
        name=info.run_name,
        key=data.tags.get(KEY, ""),
        status=info.status,
        parameters=parameters,
        metrics={k: v for k, v in metrics.items() if "system/" not in k},
    )


def _prefix(child: Any) -> str:
    kind: str = child.data.tags.get(KIND, "child")
    scale = child.data.params.get("cfg_scale")
    return kind if scale is None else f"{kind}[cfg_scale={scale}]"


def _introduced(run: Any) -> str:
    return f"{run.info.run_name} ({run.data.tags.get(KEY, run.info.run_id)[:12]})"


def _interval(run: RunRecord, name: str) -> tuple[float, float] | None:
    low, high = run.metrics.get(f"{name}_low"), run.metrics.get(f"{name}_high")
    return None if low is None or high is None else (low, high)


def _is_bound(name: str, metrics: dict[str, float]) -> bool:
    return any(
        name.endswith(bound) and name.removesuffix(bound) in metrics for bound in ("_low", "_high")
    )
