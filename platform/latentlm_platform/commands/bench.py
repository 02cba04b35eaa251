"""Measure speed against the libraries one would use instead, on this machine, one thread.

    latentlm bench                          # every row, about seven minutes
    latentlm bench decode head_sampler      # these rows
    latentlm bench --quick --json bench.json

Rows: train_step (transformers Llama with MAR's loss), decode (transformers VibeVoice),
head_sampler (diffusers' scheduler), speech_decode (transformers' acoustic tokenizer), ingest (how
often a corpus is read, and torch's DataLoader).
The peers come with pip install -e '.[bench]'. Exit code 1 where a row is slower than its bar, gives
other outputs than its peer, or has no peer.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from latentlm_platform.commands import Result
from latentlm_platform.errors import UserError

if TYPE_CHECKING:
    from latentlm_platform.benchmarks.harness import Outcome


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("rows", nargs="*", metavar="ROW", help="which rows; all without any")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, about two minutes")


def execute(arguments: argparse.Namespace) -> Result:
    from latentlm_platform.benchmarks.host import host_facts
    from latentlm_platform.benchmarks.suite import ROWS, run_suite

    unknown = sorted(set(arguments.rows) - set(ROWS))
    if unknown:
        raise UserError(f"there is no row {', '.join(unknown)}; choose of {', '.join(ROWS)}")
    outcomes = []
    print(HEADER)
    for outcome in run_suite(arguments.rows or list(ROWS), quick=arguments.quick):
        print(line(outcome), flush=True)
        outcomes.append(outcome)
    if any(outcome.noisy for outcome in outcomes):
        print("noisy: others used the machine meanwhile; repeat when it is quiet", file=sys.stderr)
    report = {
        "host": host_facts(),
        "quick": arguments.quick,
        "rows": [outcome.as_report() for outcome in outcomes],
    }
    return Result(report, int(any(outcome.status != "ok" for outcome in outcomes)))


HEADER = f"{'row':<14} {'case':<44} {'ours':>10} {'peer':>10} {'ratio':>6} {'min…max':>12}  bar"


def line(outcome: "Outcome") -> str:
    """One outcome for a person; times in milliseconds."""
    start = f"{outcome.row:<14} {outcome.case:<44}"
    if outcome.ratio is None:
        return f"{start} {outcome.status.upper()}: {outcome.reason}"
    times = f"{outcome.ours_ms:>10.1f} {outcome.peer_ms:>10.1f} {outcome.ratio.median:>6.2f}"
    spread = f"{outcome.ratio.low:.2f}…{outcome.ratio.high:.2f}"
    marks = [outcome.status] * (outcome.status != "ok") + ["noisy"] * outcome.noisy
    return f"{start} {times} {spread:>12}  {outcome.bar:g} {' '.join(marks)}".rstrip()
