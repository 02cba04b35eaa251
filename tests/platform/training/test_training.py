"""Training on real Ray Train workers under real ZeRO: one trajectory, whatever happens to it.

Every test trains the same tiny model on the same cached latents and compares losses with the run
of one worker at stage 0, uninterrupted.
"""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from latentlm.catalogue import build_codec
from latentlm.load import save_codec
from latentlm_platform.cluster import worker_environment
from latentlm_platform.corpora.splits import open_splits
from latentlm_platform.errors import UserError
from latentlm_platform.experiment.sections import Experiment
from latentlm_platform.latents.cache import LatentCache
from latentlm_platform.latents.decoding import ChunkDecoder
from latentlm_platform.latents.drawing import drawing_codec
from latentlm_platform.latents.encoding import SPLITS, EncodingPass, moments_from
from latentlm_platform.planning.resources import ClusterResources, cpu_problems
from latentlm_platform.tracking.journal import Journal
from latentlm_platform.training.inputs import ModelInputs
from latentlm_platform.training.model_training import ModelTraining, train_model
from latentlm_platform.training.worker_group import WorkerGroup, request_stop
from making_corpora import write_class_folders

pytestmark = pytest.mark.ray
STEPS = 20


def tiny_experiment(source: Path, **train: Any) -> Experiment:
    optimizer = {"learning_rate": 3e-3, "warmup_steps": 5}
    sides = {"width": 32, "depth": 1, "heads": 2}
    return Experiment.model_validate(
        {
            "name": "tiny",
            "corpus": {
                "source": str(source),
                "classes": 4,
                "image_size": 16,
                "channels": 1,
                "held_out_fraction": 1 / 6,  # leaves 80 of 96: step 5 ends an epoch
                "chunk_records": 16,
                "shuffle_window_chunks": 3,
            },
            "codec": {
                "patch_size": 4,
                "latent_width": 4,
                "encoder": sides,
                "decoder": sides,
                "variance": {"kind": "half_normal", "c_sigma": 1e-3},
                "training": {"steps": 1, "batch_size": 8, "optimizer": optimizer},
            },
            "model": {
                "width": 32,
                "depth": 2,
                "heads": 2,
                "ffn_width": 64,
                "head": {"depth": 1, "ffn_width": 64},
            },
            "train": {
                "steps": STEPS,
                "batch_size": 16,
                "precision": "fp32",
                "optimizer": optimizer,
                "validate_every_steps": 10,
                "validation_items": 16,
                "checkpoint": {"every_steps": 5},
                "zero": {"stage": 0},
                **train,
            },
            "sample": {"steps": 2},
        },
        strict=False,
    )


class Prepared(NamedTuple):
    """A corpus, a codec with statistics and a filled latent cache, shared by all trainings."""

    corpus: Path
    training: ModelTraining


class Reference(NamedTuple):
    """One worker at stage 0, never interrupted: its folder and the loss of every step."""

    folder: Path
    losses: dict[int, float]


@pytest.fixture(scope="module")
def prepared(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    root = tmp_path_factory.mktemp("training")
    corpus = write_class_folders(root / "corpus", classes=4, images_a_class=24)
    experiment = tiny_experiment(corpus)
    torch.manual_seed(0)
    codec = build_codec(experiment.codec_settings())
    save_codec(root / "codec", codec=codec)
    splits = open_splits(experiment.corpus, seed=0)
    cache = LatentCache(root / "cache", latent_width=4)
    everything = {s: tuple(range(len(getattr(splits, s).chunk_sizes))) for s in SPLITS}
    summary = EncodingPass(
        {s: ChunkDecoder(getattr(splits, s), s) for s in SPLITS},
        everything,
        codec_folder=root / "codec",
        cache=cache,
        latents=experiment.latents,
        orientations=2,
    ).run(on_progress=lambda done: None)
    cache.commit(summary)
    moments = moments_from(summary["moments"])
    drawing_codec(root / "codec", variance=None, moments=moments, target=root / "drawing")
    inputs = ModelInputs(experiment, splits, cache, root / "drawing")
    return Prepared(corpus, ModelTraining("k", experiment, root, inputs))


def train(
    prepared: Prepared,
    folder: Path,
    *,
    on_poll: Callable[[Journal], None] = lambda journal: None,
    mode: str = "cached",
    cache: Path | None = None,
    **settings: Any,
) -> tuple[str, dict[int, float]]:
    """Run to the end: how it ended, and the loss of every step."""
    folder.mkdir(parents=True, exist_ok=True)
    experiment = tiny_experiment(prepared.corpus, **settings)
    experiment = experiment.model_copy(
        update={"latents": experiment.latents.model_copy(update={"mode": mode})}
    )
    inputs = replace(prepared.training.inputs, experiment=experiment)
    if cache is not None:
        inputs = replace(inputs, cache=LatentCache(cache, latent_width=4))
    training = replace(prepared.training, experiment=experiment, folder=folder, inputs=inputs)
    journal = Journal(folder / "journal.jsonl")
    group = WorkerGroup(
        folder=folder,
        workers=experiment.train.workers,
        cpus_per_worker=experiment.train.cpus_per_worker,
        gpus_per_worker=0,
        threads_per_worker=1,
        max_failures=2,
    )
    job = {"training": training, "folder": str(folder)}
    how = group.run(train_model, job, on_poll=lambda: on_poll(journal))
    entries, _ = journal.read_from(0)
    return how, {e.step: e.metrics["loss"] for e in entries if "loss" in e.metrics}


@pytest.fixture(scope="module")
def reference(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("reference")
    how, losses = train(prepared, folder)
    assert how == "finished"
    assert sorted(losses) == list(range(1, STEPS + 1))
    first, last = (sum(losses[s] for s in steps) for steps in (range(1, 6), range(16, 21)))
    assert last < 0.95 * first, f"a model that does not learn proves nothing: {losses}"
    return Reference(folder, losses)


@pytest.fixture(scope="module")
def two_ranks(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Two ranks at stage 1, never interrupted."""
    folder = tmp_path_factory.mktemp("two_ranks")
    _, losses = train(prepared, folder, workers=2, zero={"stage": 1})
    return Reference(folder, losses)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_and_any_stage_follow_one_worker(
    prepared: Prepared, reference: Reference, two_ranks: Reference, tmp_path: Path, stage: int
) -> None:
    if stage == 1:
        tmp_path, losses = two_ranks
    else:
        parts = 2 if stage == 2 else 1
        zero = {"stage": stage}
        _, losses = train(prepared, tmp_path, workers=2, zero=zero, accumulation=parts)
    for step in range(1, STEPS + 1):
        assert losses[step] == pytest.approx(reference.losses[step], rel=1e-3)
    assert_same_average(tmp_path, reference.folder)


def assert_same_average(folder: Path, other: Path) -> None:
    """Exports and validation losses, both of the averaged weights, agree."""
    mine, theirs = (torch.load(f / "weights.pt", weights_only=True) for f in (folder, other))
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-2, atol=1e-3)
    assert gradient_norms(folder) == pytest.approx(gradient_norms(other), rel=2e-2)
    assert validation_losses(folder) == pytest.approx(validation_losses(other), rel=1e-3)


def validation_losses(folder: Path) -> list[float]:
    entries, _ = Journal(folder / "journal.jsonl").read_from(0)
    return [e.metrics["validation_loss"] for e in entries if "validation_loss" in e.metrics]


def gradient_norms(folder: Path) -> list[float]:
    entries, _ = Journal(folder / "journal.jsonl").read_from(0)
    return [e.metrics["gradient_norm"] for e in entries if "gradient_norm" in e.metrics]


def resumed_at(folder: Path) -> int:
    """The last step that the journal says a training went on from."""
    lines = map(json.loads, (folder / "journal.jsonl").read_text().splitlines())
    return max(line.get("truncated_after", 0) for line in lines)


def test_a_killed_worker_changes_nothing(
    prepared: Prepared, two_ranks: Reference, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill_once(journal: Journal) -> None:
        entries, _ = journal.read_from(0)
        if entries and entries[-1].step >= 7 and not killed:
            killed.append(int((tmp_path / "worker-1.pid").read_text()))
            os.kill(killed[0], signal.SIGKILL)

    how, losses = train(prepared, tmp_path, on_poll=kill_once, workers=2, zero={"stage": 1})
    assert killed
    assert int((tmp_path / "worker-1.pid").read_text()) != killed[0]
    assert how == "finished"
    assert resumed_at(tmp_path) >= 5
    for step in range(1, STEPS + 1):
        assert losses[step] == pytest.approx(two_ranks.losses[step], rel=1e-6)


def test_a_stopped_run_goes_on_where_it_was(
    prepared: Prepared, reference: Reference, tmp_path: Path
) -> None:
    # asked while the workers still start: twenty steps may all pass between two polls
    how, losses = train(prepared, tmp_path, on_poll=lambda journal: request_stop(tmp_path))
    assert how == "stopped"
    assert max(losses) < STEPS
    other = prepared._replace(training=replace(prepared.training, key="other"))
    with pytest.raises(UserError, match="belongs to experiment k, not to other"):
        train(other, tmp_path)
    for workers, rel in ((1, 1e-6), (2, 1e-3), (4, 1e-3)):
        folder = shutil.copytree(tmp_path, tmp_path / f"by-{workers}", ignore=_only_the_run)
        how, losses = train(prepared, folder, workers=workers, cpus_per_worker=0.5)
        assert how == "finished"
        assert resumed_at(folder) > 0
        for step in range(1, STEPS + 1):
            assert losses[step] == pytest.approx(reference.losses[step], rel=rel)
        assert cursors_of(folder) == cursors_of(reference.folder)
    with pytest.raises(UserError, match=r"written by 1 workers .* set train.workers=1"):
        train(prepared, tmp_path, workers=2, zero={"stage": 1})


def _only_the_run(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "ray" or name.startswith("by-")]


def cursors_of(folder: Path) -> list[Any]:
    """Where the lanes stand at the end: equal cursors have read equal rows."""
    path = folder / "checkpoints" / f"step-{STEPS:08d}" / "lanes.json"
    cursors: list[Any] = json.loads(path.read_text())
    assert len(cursors) == 8
    return cursors


@pytest.mark.parametrize("mode", ["streamed", "write_through"])
def test_encoding_on_the_way_equals_the_cache_to_the_last_bit(
    prepared: Prepared, reference: Reference, tmp_path: Path, mode: str
) -> None:
    held_out = prepared.training.inputs.cache.folder / "held_out"
    shutil.copytree(held_out, tmp_path / "cache" / "held_out")
    _, losses = train(prepared, tmp_path / "run", mode=mode, cache=tmp_path / "cache")
    assert losses == reference.losses
    assert validation_losses(tmp_path / "run") == validation_losses(reference.folder)
    written = list((tmp_path / "cache" / "train").rglob("*.arrow"))
    chunks = len(prepared.training.inputs.splits.train.chunk_sizes)
    assert len(written) == (chunks if mode == "write_through" else 0)


UNCHECKED = """
import pickle, sys, threading
from pathlib import Path
import ray
from latentlm_platform.training.model_training import train_model
from latentlm_platform.training.worker_group import WorkerGroup

training, cpus = pickle.loads(Path(sys.argv[1]).read_bytes()), int(sys.argv[2])
train = training.experiment.train
ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False,
         object_store_memory=200_000_000, logging_level="ERROR")
group = WorkerGroup(training.folder, train.workers, train.cpus_per_worker, 0, 1, 0)
job = {"training": training, "folder": str(training.folder)}
print(group.run(train_model, job, on_poll=lambda: None))
"""


def first_step_s(training: ModelTraining, *, cpus: int, within_s: float) -> float | None:
    """Seconds to the first step on a Ray of its own with this many CPUs, past every check of ours;
    None where there is none within that time."""
    training.folder.mkdir(parents=True)
    job, script = training.folder / "job.pickle", training.folder / "unchecked.py"
    job.write_bytes(pickle.dumps(training))
    script.write_text(UNCHECKED)
    command = [sys.executable, str(script), str(job), str(cpus)]
    journal, started_s = Journal(training.folder / "journal.jsonl"), time.monotonic()
    process = subprocess.Popen(
        command, start_new_session=True, env=os.environ | worker_environment()
    )
    try:
        while (passed_s := time.monotonic() - started_s) < within_s:
            assert process.poll() is None
            if journal.read_from(0)[0]:
                return passed_s
            time.sleep(0.2)
        return None
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_ray_hangs_where_the_plan_refuses(prepared: Prepared, tmp_path: Path) -> None:
    """Two workers of 0.9 CPUs and an encoder actor each of 0.3: 3.4 with Ray Data's own, not 2."""
    experiment = tiny_experiment(prepared.corpus, workers=2, cpus_per_worker=0.9)
    latents = experiment.latents.model_copy(update={"mode": "streamed", "cpus_per_actor": 0.3})
    experiment = experiment.model_copy(update={"latents": latents})
    inputs = replace(prepared.training.inputs, experiment=experiment)
    training = replace(prepared.training, experiment=experiment, inputs=inputs)
    has = ClusterResources(cpus=2, gpus=0, local=True)
    (problem,) = cpu_problems(experiment, has)
    assert "model training needs 3.4 CPUs, the cluster has 2" in problem
    assert not cpu_problems(experiment, replace(has, cpus=4))

    enough = replace(training, folder=tmp_path / "enough")
    took_s = first_step_s(enough, cpus=4, within_s=240)
    assert took_s is not None
    starved = replace(training, folder=tmp_path / "starved")
    assert first_step_s(starved, cpus=2, within_s=1.5 * took_s) is None
