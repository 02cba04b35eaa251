"""The job's side of a submission: `python -m` this module, always without further words.

What it runs is in the package it came with (source_package.py). Two processes: the outer one
starts the run's driver, says which run it became, and, however the driver ended, killed included,
puts its log with the run and into MLflow. The driver does what `latentlm run` and `latentlm
sweep` do, on the cluster that the job is in; its exit code is the job's.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

from latentlm_platform.commands import Result
from latentlm_platform.errors import UserError
from latentlm_platform.experiment.files import experiment_key, load_experiment
from latentlm_platform.experiment.sections import Experiment
from latentlm_platform.home import home
from latentlm_platform.runs import RunRecord, read_runs, reap
from latentlm_platform.submission.source_package import Submission, read_submission
from latentlm_platform.submission.submission import RUN_LINE

DRIVER = "driver"
DRIVER_LOG = "driver.log"
LOOK_EVERY_S = 1.0
INTERRUPTED = 130


def main() -> int:
    """Run the driver to its end; the exit code is the driver's."""
    submission = read_submission(Path.cwd())
    source = keep_experiment(submission)
    experiment = load_experiment(source)
    # To stop a job Ray sends SIGTERM to each of its processes: the driver has its own, and a
    # second one would break off its saving. Ignored by a function: a child inherits SIG_IGN.
    signal.signal(signal.SIGTERM, lambda *_: None)
    command = [sys.executable, "-m", "latentlm_platform.commands.submitted", DRIVER]
    # a variable in the job's environment may be given again where the driver joins the cluster
    driver = subprocess.Popen(command, env={**os.environ, "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1"})
    record = None
    while driver.poll() is None:
        time.sleep(LOOK_EVERY_S)
        record = record or _announced(driver.pid, experiment)
    reap()
    if record or (record := _announced(driver.pid, experiment)):
        try:
            _keep_log(record, experiment, submission)
        except Exception as error:  # the run is over: nothing after it may change how it ended
            print(f"latentlm: the log was not put into MLflow: {error}", file=sys.stderr)
    return driver.returncode if driver.returncode >= 0 else 128 - driver.returncode


def drive() -> int:
    """Do what is missing of the experiment, here on the cluster; the exit code of the run."""
    submission = read_submission(Path.cwd())
    try:
        return _perform(submission, source=experiment_path(submission)).exit_code
    except UserError as error:
        print(f"latentlm: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("latentlm: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        return 1


def experiment_path(submission: Submission) -> Path:
    """Where the experiment stays on the cluster's side."""
    return home() / "submitted" / f"{submission.base}.yaml"


def keep_experiment(submission: Submission) -> Path:
    """Write the experiment where it stays; a run's record names it for `latentlm resume`."""
    path = experiment_path(submission)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(submission.experiment, encoding="utf-8")
    partial.rename(path)
    return path


def _perform(submission: Submission, *, source: Path) -> Result:
    from latentlm_platform.pipeline import Request

    experiment = load_experiment(source)
    here = experiment.cluster.model_copy(update={"address": "auto"})
    request = Request(
        experiment.model_copy(update={"cluster": here}),
        source=str(source),
        overrides=(),
        new=submission.new,
    )
    if experiment.sweep is not None:
        from latentlm_platform.commands.sweep_results import perform_sweep

        return perform_sweep(request)
    from latentlm_platform.commands.results import perform

    return perform(request)


def _announced(pid: int, experiment: Experiment) -> RunRecord | None:
    """The run that process `pid` drives here, said in the log as soon as MLflow has it."""
    key = experiment_key(experiment)
    for record in read_runs():
        ours = record.driver.get("pid") == pid and record.driver["host"] == socket.gethostname()
        if ours and record.run_id and record.key.startswith(key):
            line = RUN_LINE.format(key=record.key, run_id=record.run_id, uri=record.tracking_uri)
            print(line, file=sys.stderr, flush=True)
            return record
    return None


def _keep_log(record: RunRecord, experiment: Experiment, submission: Submission) -> None:
    """Copy what the job wrote to the run's folder, after earlier attempts, and into MLflow."""
    from latentlm_platform.tracking.client import TrackedRun, open_tracker

    written = Path("/proc/self/fd/1").resolve()  # Ray gives a job a file as its output
    if not written.is_file():
        return
    kept = record.folder / DRIVER_LOG
    with kept.open("a", encoding="utf-8") as file:
        file.write(written.read_text(encoding="utf-8", errors="replace"))
    tracker = open_tracker(experiment.tracking)
    run = TrackedRun(tracker, record.run_id)
    run.log_file(kept)
    run.set_tags({"ray.submission_id": submission.submission_id})
    if lost := tracker.close():
        print(f"latentlm: {lost}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(drive() if sys.argv[1:] == [DRIVER] else main())
