"""What the dead left in MLflow, read back with MLflow's own client."""

from latentlm_platform.tracking.client import Tracker
from latentlm_platform.tracking.reaper import delete_left, kill_left, kill_orphans


def test_orphans_and_their_children_are_killed_and_others_left(tracker: Tracker) -> None:
    dead, done, alive = (tracker.start_run(name) for name in ("dead", "done", "alive"))
    child = tracker.start_run("child", parent=dead)
    done.finish("FINISHED")
    killed = kill_orphans(None, [dead.run_id, done.run_id, "0" * 32])
    assert sorted(killed) == sorted([dead.run_id, child.run_id])
    status = {r: tracker.client.get_run(r.run_id).info.status for r in (dead, child, done, alive)}
    assert list(status.values()) == ["KILLED", "KILLED", "FINISHED", "RUNNING"]


def test_what_a_dead_try_wrote_is_deleted_before_it_is_written_again(tracker: Tracker) -> None:
    parent = tracker.start_run("sweep")
    tags = {"latentlm.trial": "t", "latentlm.kind": "evaluation"}
    runs = {
        name: tracker.start_run(name, parent=parent, tags=tags | own)
        for name, own in {
            "again": {"latentlm.key": "a"},
            "another point": {"latentlm.key": "b"},
            "another trial": {"latentlm.key": "a", "latentlm.trial": "u"},
        }.items()
    }
    runs["again"].finish("FINISHED")
    delete_left(tracker, tags, keys={"a"})
    assert tracker.close() is None
    stages = {n: tracker.client.get_run(r.run_id).info.lifecycle_stage for n, r in runs.items()}
    assert stages == {"again": "deleted", "another point": "active", "another trial": "active"}


def test_runs_that_an_earlier_try_left_are_killed_by_their_tags(tracker: Tracker) -> None:
    left, done = (tracker.start_run(n, tags={"latentlm.trial": "left"}) for n in ("left", "done"))
    other = tracker.start_run("other", tags={"latentlm.trial": "other"})
    done.finish("FINISHED")
    kill_left(tracker, {"latentlm.trial": "left"})
    assert tracker.close() is None
    status = [tracker.client.get_run(r.run_id).info.status for r in (left, done, other)]
    assert status == ["KILLED", "FINISHED", "RUNNING"]
