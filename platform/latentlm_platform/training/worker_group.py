"""A group of Ray Train workers: started, watched, restarted from their own checkpoints.

Workers keep their state in a folder that all nodes see (checkpoints.py); Ray Train restarts the
group when a worker dies, and the training function then resumes from the newest intact checkpoint.
A failure that a restart cannot mend is written to the folder and ends the group without retries.
"""

import contextlib
import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentlm_platform.errors import UserError, own_error
from latentlm_platform.experiment.sections import Train

POLL_S = 0.5
FAILURE_GRACE_S = 20.0
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
        for name in ("failure.json", "stop", "ended"):
            (self.folder / name).unlink(missing_ok=True)
        errors: list[BaseException] = []
        ended = threading.Event()  # an interrupted join() may call a living thread dead

        def fit() -> None:
            try:
                self._trainer(function, job).fit()
            except BaseException as error:
                errors.append(error)
            finally:
                ended.set()

        threading.Thread(target=fit, name="ray-train", daemon=True).start()
        self._wait(ended, on_poll)
        return self._end(errors[0] if errors else None)

    def _wait(self, ended: threading.Event, on_poll: Callable[[], None]) -> None:
        interrupts, grace = 0, FAILURE_GRACE_S
        while not ended.is_set() and grace > 0:
            if (self.folder / "failure.json").exists():
                grace -= POLL_S  # other ranks may wait for the one that failed
            try:
                ended.wait(POLL_S)
                on_poll()
            except KeyboardInterrupt:
                interrupts += 1
                if interrupts > 1:
                    raise
                print("\nstopping after this step, with a checkpoint (Ctrl-C again: at once)")
                request_stop(self.folder)

    def _end(self, error: BaseException | None) -> str:
        failure = self.folder / "failure.json"
        if failure.exists():
            raise UserError(
                json.loads(failure.read_text(encoding="utf-8"))["sentence"], exit_code=1
            )
        if error is not None:
            raise UserError(
                f"the training workers failed more than train.max_failures = {self.max_failures}"
                f" times: {_first_line(error)}; -v shows their logs",
                exit_code=1,
            ) from error
        return (self.folder / "ended").read_text(encoding="utf-8")

    def _trainer(self, function: WorkerFunction, job: dict[str, Any]) -> Any:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        use_gpu = self.gpus_per_worker > 0
        resources = {"CPU": self.cpus_per_worker}
        if use_gpu:
            resources["GPU"] = self.gpus_per_worker
        attempt = sum(1 for _ in (self.folder / "ray").glob("attempt-*"))
        return TorchTrainer(
            _Worker(function, threads=self.threads_per_worker),
            train_loop_config=job,
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=self.workers, use_gpu=use_gpu, resources_per_worker=resources
            ),
            run_config=RunConfig(
                name=f"attempt-{attempt}",
                storage_path=str(self.folder / "ray"),
                failure_config=FailureConfig(max_failures=self.max_failures),
            ),
        )


class _Worker:
    """What runs on each worker: threads pinned, pid noted, failures sorted."""

    def __init__(self, function: WorkerFunction, *, threads: int) -> None:
        self.function, self.threads = function, threads

    def __call__(self, job: dict[str, Any]) -> None:
        import ray.train
        import torch

        torch.set_num_threads(self.threads)
        folder = Path(job["folder"])
        rank = ray.train.get_context().get_world_rank()
        (folder / f"worker-{rank}.pid").write_text(str(os.getpid()), encoding="utf-8")
        try:
            self.function(job)
        except Exception as error:
            own = own_error(error)
            if own is None:
                raise
            # a restart would meet the same end: leave the sentence and finish without retries
            _write(folder / "failure.json", json.dumps({"sentence": str(own)}))


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
