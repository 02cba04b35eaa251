"""End a run cleanly: the step in progress is finished and a checkpoint is saved.

    latentlm stop 3f2a
    latentlm stop quickstart --address http://head:8265

The run then reads KILLED, here and in MLflow, and `latentlm resume` goes on with it.
"""

import argparse
import time

from latentlm_platform.commands import Result
from latentlm_platform.commands.addressed import add_address, stop_job

TIMEOUT_S = 180.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="key, start of a key, or name")
    add_address(parser)


def execute(arguments: argparse.Namespace) -> Result:
    if arguments.address is not None:
        return stop_job(arguments)
    import os
    import signal
    import socket

    from latentlm_platform.errors import UserError
    from latentlm_platform.runs import find_run, read_run, reap

    reap()
    record = find_run(arguments.run)
    if not record.alive:
        raise UserError(f"run {record.key} is not running: it reads {record.status}")
    if record.driver["host"] != socket.gethostname():
        raise UserError(f"run {record.key} is driven from {record.driver['host']}: stop it there")
    os.kill(record.driver["pid"], signal.SIGTERM)
    print(f"asked run {record.key} to stop; waiting for its checkpoint")
    deadline = time.monotonic() + TIMEOUT_S
    while record.alive:
        if time.monotonic() > deadline:
            raise UserError(
                f"run {record.key} has not stopped after {TIMEOUT_S:.0f} s; it still saves, or"
                f" process {record.driver['pid']} hangs and can be ended with kill -9",
                exit_code=1,
            )
        time.sleep(0.5)
        record = read_run(record.key) or record
    print(f"run {record.key} reads {record.status}; go on with: latentlm resume {record.key}")
    return Result({"key": record.key, "status": record.status})
