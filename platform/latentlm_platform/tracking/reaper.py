"""What the dead left in MLflow: runs that still read RUNNING though nobody works at them."""

from collections.abc import Collection

from latentlm_platform.tracking.client import Tracker
from latentlm_platform.tracking.store import open_client, store_uri


def kill_orphans(uri: str | None, run_ids: list[str]) -> list[str]:
    """Mark those runs and their children KILLED that still read RUNNING; their ids.

    For runs whose driver is known to be dead. A run that is no longer there is passed over.
    """
    from mlflow.exceptions import MlflowException

    client = open_client(store_uri(uri))
    killed = []
    for run_id in run_ids:
        try:
            parent = client.get_run(run_id)
        except MlflowException:
            continue
        children = client.search_runs(
            [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'"
        )
        for run in (*children, parent):
            if run.info.status == "RUNNING":
                client.set_terminated(run.info.run_id, "KILLED")
                killed.append(run.info.run_id)
    return killed


def kill_left(tracker: Tracker, tags: dict[str, str]) -> None:
    """Mark runs with these tags KILLED that still read RUNNING though nobody works at them."""
    query = f"{_with_tags(tags)} and attributes.status = 'RUNNING'"

    def kill() -> None:
        for run in tracker.client.search_runs([tracker.experiment_id], query):
            tracker.client.set_terminated(run.info.run_id, "KILLED")

    tracker.outbox.send("runs left over", kill)


def delete_left(tracker: Tracker, tags: dict[str, str], *, keys: Collection[str]) -> None:
    """Delete runs of these tags and keys: whoever wrote them died before it could say so, and
    they are about to be written again."""

    def delete() -> None:
        for run in tracker.client.search_runs([tracker.experiment_id], _with_tags(tags)):
            if run.data.tags.get("latentlm.key") in keys:
                tracker.client.delete_run(run.info.run_id)

    tracker.outbox.send("runs to be written again", delete)


def _with_tags(tags: dict[str, str]) -> str:
    """MLflow's search for runs that have them all."""
    return " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
