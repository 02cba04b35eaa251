"""The rows by name, and running them."""

from collections.abc import Iterator, Sequence

from latentlm_platform.benchmarks import decode, head_sampler, speech_decode, train_step
from latentlm_platform.benchmarks.harness import Cases, Outcome, run_row

ROWS: dict[str, Cases] = {
    "train_step": train_step.cases,
    "decode": decode.cases,
    "head_sampler": head_sampler.cases,
    "speech_decode": speech_decode.cases,
}


def run_suite(names: Sequence[str], *, quick: bool) -> Iterator[Outcome]:
    """Outcomes of these rows in this order, as they come."""
    for name in names:
        yield from run_row(name, ROWS[name], quick=quick)
