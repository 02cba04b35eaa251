"""A group of two real Ray Train workers of which one fails: it ends, and lets go of its CPUs."""

import time
from pathlib import Path
from typing import Any

import pytest

from latentlm_platform.errors import UserError
from latentlm_platform.training.worker_group import WorkerGroup, note_end

pytestmark = pytest.mark.ray
SENTENCE = "corpus.source = x holds no images; name another"
BOUND_S = 60.0  # a group that hangs in its collective would stay for half an hour


def fail_on_one_rank(job: dict[str, Any]) -> None:
    """Rank 1 meets an error of the user's while rank 0 waits for it in an all-reduce."""
    import ray.train
    import torch

    rank = ray.train.get_context().get_world_rank()
    with (Path(job["folder"]) / f"starts-{rank}").open("a") as starts:
        starts.write("x")
    if rank == 1:
        while not (Path(job["folder"]) / "waiting").exists():
            time.sleep(0.05)
        time.sleep(0.5)
        raise UserError(SENTENCE)
    (Path(job["folder"]) / "waiting").touch()
    torch.distributed.all_reduce(torch.ones(1))


def end_well(job: dict[str, Any]) -> None:
    """What a training does at its end."""
    note_end(Path(job["folder"]), "finished")


def group_of_two(folder: Path, *, max_failures: int) -> WorkerGroup:
    return WorkerGroup(
        folder=folder,
        workers=2,
        cpus_per_worker=1.0,
        gpus_per_worker=0.0,
        threads_per_worker=1,
        max_failures=max_failures,
    )


def free_cpus(*, wanted: float) -> float:
    """What Ray has free, within seconds: its count follows a freed actor a little later."""
    import ray

    until = time.monotonic() + 10.0
    while (free := ray.available_resources().get("CPU", 0.0)) != wanted:
        if time.monotonic() > until:
            break
        time.sleep(0.1)
    return free


@pytest.mark.parametrize("max_failures", [0, 3])
def test_a_rank_that_fails_releases_its_group(
    local_ray: None, tmp_path: Path, max_failures: int
) -> None:
    import ray

    before = ray.cluster_resources()["CPU"]
    assert free_cpus(wanted=before) == before
    group = group_of_two(tmp_path, max_failures=max_failures)
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        group.run(fail_on_one_rank, {"folder": str(tmp_path)}, on_poll=lambda: None)
    took_s = time.monotonic() - started
    assert str(caught.value) == SENTENCE
    assert caught.value.exit_code == 1
    assert took_s < BOUND_S
    assert free_cpus(wanted=before) == before
    assert (tmp_path / "starts-1").read_text() == "x", "the failure was met a second time"

    if max_failures:  # what failed is of that call alone
        assert group.run(end_well, {"folder": str(tmp_path)}, on_poll=lambda: None) == "finished"
