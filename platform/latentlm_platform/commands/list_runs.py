"""Every run on this machine, or every job on a cluster, newest first.

latentlm list
latentlm list --address http://head:8265 --json -
"""

import argparse
from datetime import datetime

from latentlm_platform.commands import Result
from latentlm_platform.commands.addressed import add_address, list_jobs


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", type=int, default=50, help="show at most this many (default 50)")
    add_address(parser)


def execute(arguments: argparse.Namespace) -> Result:
    if arguments.address is not None:
        return list_jobs(arguments)
    from latentlm_platform.runs import read_runs, reap

    reap()
    records = read_runs()[: max(0, arguments.limit)]
    if not records:
        print("no runs yet; start with: latentlm run experiments/quickstart.yaml")
    for record in records:
        started = datetime.fromtimestamp(record.started_s).isoformat(" ", "seconds")
        stage = record.stage if record.status != "FINISHED" else ""
        print(f"{record.key:<16} {record.status:<9} {started}  {record.name}  {stage}".rstrip())
    return Result(
        [
            {"key": r.key, "name": r.name, "status": r.status, "stage": r.stage, "run_id": r.run_id}
            for r in records
        ]
    )
