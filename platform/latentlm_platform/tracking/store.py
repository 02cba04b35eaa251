"""The MLflow store: which one, whether it answers, who may open it.

A store that does not answer is one clear `UserError` before a run begins.
"""

import contextlib
import fcntl
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from latentlm_platform.errors import UserError
from latentlm_platform.home import home, tracking_database
from latentlm_platform.tracking.outbox import first_line


def store_uri(uri: str | None) -> str:
    """The MLflow store that `uri` names; without one, the database in $LATENTLM_HOME."""
    return uri or f"sqlite:///{tracking_database()}"


def existing_store(uri: str | None) -> str:
    """The store that a command reads; UserError where nothing was written or nobody answers."""
    if uri is None and not tracking_database().exists():
        raise UserError(
            f"there are no runs in {tracking_database()} yet; start one with"
            " `latentlm run experiments/quickstart.yaml`, or name a store with --uri"
        )
    require_answer(store_uri(uri))
    return store_uri(uri)


def open_client(uri: str) -> Any:
    """A quiet client that gives up after seconds: waiting and retrying is the Outbox's work."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # after the import, which sets them
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def require_answer(uri: str) -> None:
    """UserError where no server answers: MLflow's own client would go on trying for minutes."""
    if not uri.startswith("http"):
        return
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=10):
            pass
    except urllib.error.HTTPError:
        pass  # somebody answers; what is wrong, the client will say
    except (OSError, ValueError) as error:
        raise UserError(
            f"tracking.uri = {uri} does not answer ({first_line(error)}); start that MLflow"
            " server, or leave tracking.uri out to use the database in $LATENTLM_HOME"
        ) from error


@contextlib.contextmanager
def alone(uri: str) -> Iterator[None]:
    """One process at a time: first use creates the tables, and two at once break them."""
    if not uri.startswith("sqlite"):
        yield
        return
    home().mkdir(parents=True, exist_ok=True)
    with (home() / "mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Before the run has begun, a failing store is the user's to mend."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # every kind of store has errors of its own
        raise UserError(
            f"MLflow at {uri} failed: {first_line(error)}; check tracking.uri"
        ) from error
