"""Where state lives: `$LATENTLM_HOME`, default `~/.latentlm`; never inside the repository.

On a cluster it must be a folder that every node sees: caches and checkpoints are written there.
"""

import os
from pathlib import Path


def home() -> Path:
    """The folder of all state."""
    return Path(os.environ.get("LATENTLM_HOME") or "~/.latentlm").expanduser().absolute()


def corpora_folder() -> Path:
    """Fetched public corpora, one folder a name."""
    return home() / "corpora"


def artifacts_folder(stage: str) -> Path:
    """Finished and unfinished work of a stage (codec, latents, model, evaluation), by key."""
    return home() / "artifacts" / stage


def runs_folder() -> Path:
    """One folder a run, by the experiment's key."""
    return home() / "runs"


def tracking_database() -> Path:
    """The SQLite file that MLflow uses when the experiment names no server."""
    return home() / "mlflow.db"
