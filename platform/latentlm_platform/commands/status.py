"""How far a run is: its status, its stage, a sweep's points, the last values of what it measures.

latentlm status quickstart
latentlm status quickstart --address http://head:8265
"""

import argparse
from collections import Counter
from typing import Any

from latentlm_platform.commands import Result
from latentlm_platform.commands.addressed import add_address, show_status


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="key, start of a key, or name")
    add_address(parser)


def execute(arguments: argparse.Namespace) -> Result:
    if arguments.address is not None:
        return show_status(arguments)
    from latentlm_platform.runs import find_run, now_s, reap
    from latentlm_platform.sweeps.ledger import ledger_of

    reap()
    record = find_run(arguments.run)
    report: dict[str, Any] = {
        "key": record.key,
        "name": record.name,
        "status": record.status,
        "stage": record.stage,
        "error": record.error,
        "run_id": record.run_id,
        "seconds": (record.ended_s or now_s()) - record.started_s,
        "metrics": record.metrics,
    }
    if ends := ledger_of(record.folder).ends().values():
        report["points"] = dict(Counter(line.event for line in ends))
    for name, value in report.items():
        if name != "metrics" and value != "":
            print(f"{name:<10} {value}")
    for name, number in sorted(record.metrics.items()):
        print(f"  {name:<50} {number:.6g}")
    return Result(report)
