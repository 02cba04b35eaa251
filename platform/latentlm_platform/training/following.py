"""A training as its driver sees it: the journal and the pictures that its workers write go to the
bar and to MLflow."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from latentlm.media import read_png
from latentlm_platform.errors import Stopped
from latentlm_platform.progress import Bar
from latentlm_platform.tracking.client import TrackedRun
from latentlm_platform.tracking.journal import Entry, Journal
from latentlm_platform.tracking.uploading import JournalUploader
from latentlm_platform.training.codec_training import CodecTraining
from latentlm_platform.training.model_training import ModelTraining
from latentlm_platform.training.worker_group import WorkerFunction, WorkerGroup


def train_followed(
    group: WorkerGroup,
    function: WorkerFunction,
    training: CodecTraining | ModelTraining,
    run: TrackedRun,
    *,
    total: int,
    title: str,
    on_entry: Callable[[Entry], None] | None = None,
) -> None:
    """Run a group of workers to the end, with a bar of `total` steps, the journal's upload and the
    sample pictures; Stopped where it was asked to stop, UserError where it failed.

    `on_entry` is called with what each step has measured.
    """
    group.folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(group.folder / "journal.jsonl")
    uploader = JournalUploader(journal, run)
    uploader.start()
    follower = _Follower(journal, group.folder / "pictures", run, on_entry)
    try:
        with Bar(title, total=total, unit="step") as bar:
            job = {"training": training, "folder": str(group.folder)}
            how = group.run(function, job, on_poll=lambda: follower.follow(bar))
            follower.follow(bar)
    finally:
        uploader.close()
    if how == "stopped":
        raise Stopped(f"{title} stopped at step {follower.step} of {total}, with a checkpoint")


class _Follower:
    """Reads a training's journal and pictures for the bar and for MLflow."""

    def __init__(
        self,
        journal: Journal,
        pictures: Path,
        run: TrackedRun,
        on_entry: Callable[[Entry], None] | None,
    ) -> None:
        self.journal, self.pictures, self.run, self.on_entry = journal, pictures, run, on_entry
        self.offset = self.step = 0
        self.notes: dict[str, float] = {}
        self.shown: set[str] = set()  # a resumed stage shows them again, in its own MLflow run

    def follow(self, bar: Bar) -> None:
        entries, self.offset = self.journal.read_from(self.offset)
        for entry in entries:
            self.step = entry.step
            self.notes |= entry.metrics
            if self.on_entry is not None:
                self.on_entry(entry)
        if self.notes:
            rate = f"{self.notes.get('items_per_s', 0):.0f} items/s"
            bar.reach(self.step, note=f"loss {self.notes.get('loss', 0):.4f}, {rate}")
        for path in sorted(self.pictures.glob("*.png")):
            if path.name not in self.shown:
                self.shown.add(path.name)
                step = int(path.stem.removeprefix("step-"))
                self.run.log_picture(read_png(path.read_bytes()), "samples", step)


def last_metrics(journal: Path) -> dict[str, float]:
    """The last value of everything the training measured."""
    entries, _ = Journal(journal).read_from(0)
    metrics: dict[str, float] = {}
    for entry in entries:
        metrics |= entry.metrics
    speeds = [e.metrics["items_per_s"] for e in entries if "items_per_s" in e.metrics]
    if speeds:
        metrics["items_per_s_median"] = float(np.median(speeds))
    return metrics
