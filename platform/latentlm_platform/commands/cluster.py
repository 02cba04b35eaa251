"""A Ray cluster of this machine alone, for `latentlm submit`.

    latentlm cluster up
    latentlm cluster down

It listens on 127.0.0.1 only, and takes only who has its token. What runs on it keeps its state in
the $LATENTLM_HOME of whoever started it. `down` lets its jobs save a checkpoint first.
"""

import argparse
import time
from typing import TYPE_CHECKING

from latentlm_platform.commands import Result
from latentlm_platform.commands.addressed import STOP_TIMEOUT_S

if TYPE_CHECKING:
    from latentlm_platform.submission.job_client import JobClient


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("up", "down"), help="start it, or end it")
    parser.add_argument("--cpus", type=int, help="logical CPUs (default: two for each core)")
    parser.add_argument("--port", type=int, help="of its dashboard (default: 8265 if free)")


def execute(arguments: argparse.Namespace) -> Result:
    from latentlm_platform.errors import UserError

    if arguments.action == "down":
        return _down()
    if arguments.cpus is not None and arguments.cpus < 1:
        raise UserError(f"--cpus {arguments.cpus} is too few; give 1 or more")
    from latentlm_platform.submission.head_node import start_head

    head, started = start_head(cpus=arguments.cpus, port=arguments.port)
    print(f"a cluster of {head.cpus} CPUs {'is' if started else 'was already'} up: {head.address}")
    print(
        f"its token: {head.token_file}\nNext:\n"
        "  latentlm submit experiments/quickstart.yaml --follow\n"
        "  latentlm list --address local\n"
        "  latentlm cluster down"
    )
    report = {"address": head.address, "cpus": head.cpus, "token_file": str(head.token_file)}
    return Result({**report, "started": started})


def _down() -> Result:
    from latentlm_platform.submission.head_node import end_head, read_head

    head = read_head()
    stopped = _stop_jobs(head.client()) if head else []
    ended = end_head()
    if ended is None:
        print("nothing is up; start a cluster with: latentlm cluster up")
    else:
        print(f"the cluster at {ended.address} is down; its token is gone")
    return Result({"ended": ended is not None, "stopped": stopped})


def _stop_jobs(client: "JobClient") -> list[str]:
    """Let running jobs of ours save; a cluster that does not answer is ended all the same."""
    from latentlm_platform.errors import UserError
    from latentlm_platform.submission.submission import our_jobs

    try:
        alive = [job.submission_id for job in our_jobs(client.jobs()) if job.alive]
        for submission_id in alive:
            client.stop(submission_id)
            print(f"job {submission_id} is asked to stop; waiting for its checkpoint")
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while time.monotonic() < deadline and any(client.job(one).alive for one in alive):
            time.sleep(0.5)
        return alive
    except UserError:
        return []
