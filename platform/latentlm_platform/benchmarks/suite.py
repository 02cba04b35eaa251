"""The rows by name, and running them."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from latentlm_platform.benchmarks import decode, head_sampler, ingest, speech_decode, train_step
from latentlm_platform.benchmarks.harness import Outcome, run_row

Row = Callable[..., Iterator[Outcome]]
"""`row(quick=…)` gives the outcomes of its cases, one after another."""

ROWS: dict[str, Row] = {
    "train_step": partial(run_row, "train_step", train_step.cases),
    "decode": partial(run_row, "decode", decode.cases),
    "head_sampler": partial(run_row, "head_sampler", head_sampler.cases),
    "speech_decode": partial(run_row, "speech_decode", speech_decode.cases),
    "ingest": ingest.outcomes,
}


def run_suite(names: Sequence[str], *, quick: bool) -> Iterator[Outcome]:
    """Outcomes of these rows in this order, as they come."""
    for name in names:
        yield from ROWS[name](quick=quick)
