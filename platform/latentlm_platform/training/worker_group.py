"""A group of Ray Train workers: started, watched, restarted from their own checkpoints.

Workers keep their state in a folder that all nodes see (checkpoints.py); Ray Train restarts the
group when a worker dies, and the training function then resumes from the newest intact checkpoint.

A failure that a restart cannot mend is written down and raised: Ray Train then ends every rank of
the group, also those that wait in a collective for the one that failed. Where it starts the group
once more, since it cannot tell such a failure from a lost worker, every rank finds the failure
written down and returns at once, so that the group's CPUs are free again.
"""

import contextlib
import ctypes
import json
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentlm_platform.errors import UserError, own_error
from latentlm_platform.experiment.sections import Train

POLL_S = 0.5
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
MMAP_THRESHOLD_BYTES, TRIM_THRESHOLD_BYTES = 2**25, 2**30  # the first is the most there is
RELEASE_S = 120.0  # to end a group that failed: two starts of workers on a busy machine
FAILURE = "failure.json"
WorkerFunction = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class WorkerGroup:
    """How many workers, what each one gets, and the folder they share."""

    folder: Path
    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    threads_per_worker: int
    max_failures: int

    @classmethod
    def of(cls, train: Train, folder: Path, *, workers: int | None = None) -> "WorkerGroup":
        """As the train section says; a codec's training may have another number of workers."""
        return cls(
            folder=folder,
            workers=train.workers if workers is None else workers,
            cpus_per_worker=train.cpus_per_worker,
            gpus_per_worker=train.gpus_per_worker,
            threads_per_worker=train.threads_per_worker,
            max_failures=train.max_failures,
        )

    def run(
        self, function: WorkerFunction, job: dict[str, Any], *, on_poll: Callable[[], None]
    ) -> str:
        """Run `function(job)` on every worker; "finished" or "stopped".

        `on_poll` is called in this thread about twice a second. Ctrl-C asks the workers to stop
        with a checkpoint; a second Ctrl-C does not wait for it.
        """
        for name in ("stop", "ended"):
            (self.folder / name).unlink(missing_ok=True)
        attempt = self._attempt()
        errors: list[BaseException] = []
        ended = threading.Event()  # an interrupted join() may call a living thread dead

        def fit() -> None:
            try:
                self._trainer(function, job, attempt).fit()
            except BaseException as error:
                errors.append(error)
            finally:
                ended.set()

        threading.Thread(target=fit, name="ray-train", daemon=True).start()
        released = self._wait(ended, attempt / FAILURE, on_poll)
        if (attempt / FAILURE).exists():
            sentence = json.loads((attempt / FAILURE).read_text(encoding="utf-8"))["sentence"]
            held = (
                f"; its workers have not ended within {RELEASE_S:.0f} s and hold their CPUs until"
                " this command ends"
            )
            raise UserError(sentence + ("" if released else held), exit_code=1)
        return self._end(errors[0] if errors else None)

    def _attempt(self) -> Path:
        """A folder of this call alone: a group that outlives its call finds its own failure."""
        (self.folder / "ray").mkdir(parents=True, exist_ok=True)
        attempt = self.folder / "ray" / f"attempt-{len(list(self.folder.glob('ray/attempt-*')))}"
        attempt.mkdir()
        return attempt

    def _wait(self, ended: threading.Event, failure: Path, on_poll: Callable[[], None]) -> bool:
        """Whether the group has ended; False where one that failed goes on after RELEASE_S."""
        interrupts, failed_s = 0, math.inf
        while not ended.is_set():
            if failure.exists():
                failed_s = min(failed_s, time.monotonic())
            if time.monotonic() > failed_s + RELEASE_S:
                return False
            try:
                ended.wait(POLL_S)
                on_poll()
            except KeyboardInterrupt:
                interrupts += 1
                if interrupts > 1:
                    raise
                print("\nstopping after this step, with a checkpoint (Ctrl-C again: at once)")
                request_stop(self.folder)
        return True

    def _end(self, error: BaseException | None) -> str:
        if error is not None:
            raise UserError(
                f"the training workers failed more than train.max_failures = {self.max_failures}"
                f" times: {_first_line(error)}; -v shows their logs",
                exit_code=1,
            ) from error
        return (self.folder / "ended").read_text(encoding="utf-8")

    def _trainer(self, function: WorkerFunction, job: dict[str, Any], attempt: Path) -> Any:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        use_gpu = self.gpus_per_worker > 0
        resources = {"CPU": self.cpus_per_worker}
        if use_gpu:
            resources["GPU"] = self.gpus_per_worker
        return TorchTrainer(
            _Worker(function, threads=self.threads_per_worker, failure=attempt / FAILURE),
            train_loop_config=job,
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=self.workers, use_gpu=use_gpu, resources_per_worker=resources
            ),
            run_config=RunConfig(
                name=attempt.name,
                storage_path=str(attempt.parent),
                failure_config=FailureConfig(max_failures=self.max_failures),
            ),
        )


class _Worker:
    """What runs on each worker: threads pinned, pid noted, failures sorted."""

    def __init__(self, function: WorkerFunction, *, threads: int, failure: Path) -> None:
        self.function, self.threads, self.failure = function, threads, failure

    def __call__(self, job: dict[str, Any]) -> None:
        import ray.train
        import torch

        if self.failure.exists():
            return  # started again after a failure that would only come again
        torch.set_num_threads(self.threads)
        keep_freed_memory()
        folder = Path(job["folder"])
        rank = ray.train.get_context().get_world_rank()
        (folder / f"worker-{rank}.pid").write_text(str(os.getpid()), encoding="utf-8")
        try:
            self.function(job)
        except Exception as error:
            own = own_error(error)
            if own is not None:
                _write(self.failure, json.dumps({"sentence": str(own)}))
            raise  # ends the other ranks too, wherever they wait


def keep_freed_memory() -> None:
    """Let the allocator keep what a step frees for the next one, where it is glibc's.

    Given back to the system, the same pages are made anew in every step, a tenth of its time.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)


def request_stop(folder: Path) -> None:
    """Ask the workers of this folder to save a checkpoint and end."""
    with contextlib.suppress(OSError):
        (folder / "stop").touch()


def stop_requested(folder: Path) -> bool:
    """Whether these workers were asked to end."""
    return (folder / "stop").exists()


def take_stop(folder: Path) -> bool:
    """Whether a stop was asked for that came too late to interrupt; asked once."""
    stopped = stop_requested(folder)
    (folder / "stop").unlink(missing_ok=True)
    return stopped


def note_end(folder: Path, how: str) -> None:
    """The first rank's last word: "finished" or "stopped"."""
    _write(folder / "ended", how)


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.rename(path)


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip()}" if lines else type(error).__name__
