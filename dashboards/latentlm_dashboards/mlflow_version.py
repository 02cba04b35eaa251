"""Which MLflow shows the pages, and whether its pages know saved views."""

import re
import urllib.request

from latentlm_platform.errors import UserError

OLDEST = (3, 15)
TIMEOUT_S = 10.0


def mlflow_version(uri: str) -> str:
    """The version a server reports, or of this machine's package for a database; "" if unknown."""
    if not uri.startswith("http"):
        import mlflow

        return str(mlflow.__version__)
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/version", timeout=TIMEOUT_S) as answer:
            return str(answer.read(64).decode("ascii", "replace")).strip()
    except (OSError, ValueError):
        return ""  # behind a login, say; writing will tell


def require_saved_views(uri: str) -> None:
    """UserError where MLflow is older than its saved views."""
    version = mlflow_version(uri)
    found = re.match(r"(\d+)\.(\d+)", version)
    if found and (int(found[1]), int(found[2])) < OLDEST:
        raise UserError(
            f"MLflow at {uri} is {version}, and its pages know saved views from"
            f" {'.'.join(map(str, OLDEST))} on: upgrade it, or read a run in"
            " `latentlm dashboards report RUN`, which needs no saved views"
        )
