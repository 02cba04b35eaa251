"""The rows by name, and running them."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from latentlm_platform.benchmarks import decode, head_sampler, ingest, speech_decode, train_step
from latentlm_platform.benchmarks.harness import Cases, Outcome, run_row

Row = Callable[..., Iterator[Outcome]]
"""`row(quick=…)` gives the outcomes of its cases, one after another."""

CASES: dict[str, Cases] = {
    "train_step": train_step.cases,
    "decode": decode.cases,
    "head_sampler": head_sampler.cases,
    "speech_decode": speech_decode.cases,
}
ROWS: dict[str, Row] = {name: partial(run_row, name, cases) for name, cases in CASES.items()}
ROWS["ingest"] = ingest.outcomes


def run_suite(names: Sequence[str], *, quick: bool) -> Iterator[Outcome]:
    """Outcomes of these rows in this order, as they come."""
    for name in names:
        yield from ROWS[name](quick=quick)
