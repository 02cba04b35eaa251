"""The log of a submitted run; with -f as it grows, to the job's end.

    latentlm logs -f quickstart --address http://head:8265
    latentlm logs 3f2a                         # a submitted run that ended, from its own folder

A job is named by its id, the start of it, its experiment's key or name. Following survives a lost
connection, and its exit code is the job's.
"""

import argparse
import sys

from latentlm_platform.commands import Result
from latentlm_platform.commands.addressed import add_address


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="job or run: its id, key or name")
    parser.add_argument("-f", "--follow", action="store_true", help="show the log until the end")
    add_address(parser, default="logs kept with the runs on this machine")


def execute(arguments: argparse.Namespace) -> Result:
    if arguments.address is None:
        return _kept(arguments)
    from latentlm_platform.commands.addressed import connect, follow_job, job_report
    from latentlm_platform.submission.submission import find_job

    client = connect(arguments)
    job = find_job(client.jobs(), arguments.run)
    if arguments.follow:
        return follow_job(client, job)
    log = client.log(job.submission_id)
    sys.stdout.write(log)
    return Result({**job_report(job), "log": log})


def _kept(arguments: argparse.Namespace) -> Result:
    """The log that a submitted run left in its folder."""
    from latentlm_platform.commands.submitted import DRIVER_LOG
    from latentlm_platform.errors import UserError
    from latentlm_platform.runs import find_run, reap

    reap()
    record = find_run(arguments.run)
    kept = record.folder / DRIVER_LOG
    if not kept.is_file():
        raise UserError(
            f"run {record.key} has no log here: what was started in a shell writes to that shell"
            f" (`latentlm status {record.key}` says how far it is), and a job's log is kept when"
            " it ends; until then give --address"
        )
    log = kept.read_text(encoding="utf-8", errors="replace")
    sys.stdout.write(log)
    return Result({"key": record.key, "status": record.status, "log": log})
