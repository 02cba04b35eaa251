"""What list, status, stop and resume do with `--address`: the same, for jobs of a cluster."""

import argparse
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

from latentlm_platform.commands import Result

if TYPE_CHECKING:
    from latentlm_platform.submission.job_client import Job, JobClient

STOP_TIMEOUT_S = 240.0  # more than Ray waits before it kills
LAST_LINES = 5


def add_address(parser: argparse.ArgumentParser, *, default: str = "runs on this machine") -> None:
    """The arguments that name a cluster."""
    parser.add_argument(
        "--address",
        metavar="URL",
        help="a cluster's dashboard, http://HOST:8265, or `local` for the one of `latentlm cluster"
        f" up` (default: {default})",
    )
    parser.add_argument(
        "--token-file",
        metavar="PATH",
        help="file of the cluster's token (default: as Ray: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH,"
        " ~/.ray/auth_token)",
    )


def connect(arguments: argparse.Namespace) -> "JobClient":
    """The cluster that `--address` names."""
    from latentlm_platform.submission.submission import open_client

    return open_client(arguments.address, token_file=arguments.token_file)


def list_jobs(arguments: argparse.Namespace) -> Result:
    """`list --address`: the jobs that `latentlm submit` sent there, the newest first."""
    from latentlm_platform.submission.submission import our_jobs

    client = connect(arguments)
    jobs = our_jobs(client.jobs())[: max(0, arguments.limit)]
    if not jobs:
        print(f"no jobs at {client.address} yet; send one with: latentlm submit FILE")
    width = max((len(job.submission_id) for job in jobs), default=0)
    for job in jobs:
        print(f"{job.submission_id:<{width}}  {job.status:<9} {_when(job.started_s)}")
    return Result([job_report(job) for job in jobs])


def show_status(arguments: argparse.Namespace) -> Result:
    """`status --address`: how a job is, which run it became, and the end of its log."""
    from latentlm_platform.submission.submission import find_job, mlflow_run

    client = connect(arguments)
    job = find_job(client.jobs(), arguments.run)
    log = client.log(job.submission_id)
    report = {**job_report(job), **mlflow_run(log)}
    for name, value in report.items():
        if value not in (None, ""):
            print(f"{name:<14} {value}")
    lines = log.strip().splitlines()[-LAST_LINES:]
    print("\n".join(["last lines of its log:", *(f"  {line}" for line in lines)]))
    return Result({**report, "last_lines": lines})


def stop_job(arguments: argparse.Namespace) -> Result:
    """`stop --address`: the job saves a checkpoint and ends."""
    from latentlm_platform.errors import UserError
    from latentlm_platform.submission.submission import find_job

    client = connect(arguments)
    job = find_job(client.jobs(), arguments.run)
    if not job.alive:
        raise UserError(f"job {job.submission_id} is not running: it reads {job.status}")
    client.stop(job.submission_id)
    print(f"asked job {job.submission_id} to stop; waiting for its checkpoint")
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while job.alive:
        if time.monotonic() > deadline:
            raise UserError(
                f"job {job.submission_id} has not stopped after {STOP_TIMEOUT_S:.0f} s; look at"
                f" `latentlm logs {job.submission_id} --address {client.address}`",
                exit_code=1,
            )
        time.sleep(0.5)
        job = client.job(job.submission_id)
    print(
        f"job {job.submission_id} reads {job.status}; go on with: latentlm resume"
        f" {job.submission_id} --address {client.address}"
    )
    return Result(job_report(job))


def resume_job(arguments: argparse.Namespace) -> Result:
    """`resume --address`: a new job that goes on with the run of one that ended early."""
    from latentlm_platform.submission.submission import find_job, resume

    client = connect(arguments)
    sent = resume(client, find_job(client.jobs(), arguments.run))
    say_sent(client, sent.job, sent=sent.sent)
    if arguments.follow:
        return follow_job(client, sent.job)
    return Result({**job_report(sent.job), "sent": sent.sent})


def follow_job(client: "JobClient", job: "Job") -> Result:
    """Show the job's log until it ends; the exit code is the job's."""
    try:
        ended = client.follow(job.submission_id, _write)
    except KeyboardInterrupt:
        print(
            f"\nthe job goes on; follow it with: latentlm logs -f {job.submission_id}"
            f" --address {client.address}",
            file=sys.stderr,
        )
        raise
    print(f"job {ended.submission_id} reads {ended.status}, exit code {ended.exit_code}")
    if ended.status == "FAILED" and ended.driver_exit_code is None and ended.message:
        print(ended.message, file=sys.stderr)  # Ray's own reason: the driver never ran, or is lost
    return Result(job_report(ended), ended.exit_code)


def say_sent(client: "JobClient", job: "Job", *, sent: bool) -> None:
    """What became of a submission, and the commands that one wants now."""
    if sent:
        print(f"job {job.submission_id} was sent to {client.address}")
    else:
        print(
            f"{client.address} has this experiment already: job {job.submission_id}, {job.status}"
        )
    where = f"{job.submission_id} --address {client.address}"
    if job.alive:
        print(f"  latentlm logs -f {where}\n  latentlm status {where}\n  latentlm stop {where}")
    else:
        print(f"  latentlm logs {where}\n  latentlm submit FILE --new   repeats it")


def job_report(job: "Job") -> dict[str, Any]:
    """What programs are told of a job."""
    return {
        "id": job.submission_id,
        "name": job.metadata.get("latentlm.name", ""),
        "key": job.metadata.get("latentlm.key", ""),
        "status": job.status,
        "exit_code": None if job.alive else job.exit_code,
        "started": _when(job.started_s),
        "ended": _when(job.ended_s),
        "git_commit": job.metadata.get("latentlm.git_commit", ""),
    }


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(" ", "seconds") if seconds else ""


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
