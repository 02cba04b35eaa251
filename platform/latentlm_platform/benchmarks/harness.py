"""Measuring two callables against each other: gate first, then A/B/A/B, then ratios of pairs.

A faster wrong thing is worth nothing, so a case whose outputs differ is not timed. The ratio is
peer time / our time of neighbouring calls, which share whatever the machine was doing just then.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from latentlm_platform.benchmarks.host import Load

Status = Literal["ok", "slower", "wrong", "peer missing"]
PEER_PACKAGES = frozenset({"transformers", "diffusers"})
FEWEST_PAIRS, MOST_PAIRS = 3, 25


class Agreement(NamedTuple):
    """How far the outputs are apart at most, and how far they may be."""

    error: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the outputs are the same; NaN never is."""
        return self.error <= self.tolerance


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison. `ours` and `peer` do the same work once; `bar` is the least ratio wanted.

    `gate` runs both on the same numbers and says how far their outputs are apart. `sizes` is what
    a reader needs to repeat it.
    """

    name: str
    sizes: dict[str, Any]
    ours: Callable[[], object]
    peer: Callable[[], object]
    gate: Callable[[], Agreement]
    bar: float
    dtype: str = "fp32"


class Ratio(NamedTuple):
    """Peer time over our time: median of the pairs, and their extremes."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a case came to. Times are medians in milliseconds; `cpu_ratio` is by CPU time."""

    row: str
    case: str
    status: Status
    reason: str = ""
    sizes: dict[str, Any] = field(default_factory=dict)
    dtype: str = ""
    bar: float | None = None
    agreement: Agreement | None = None
    ratio: Ratio | None = None
    cpu_ratio: Ratio | None = None
    ours_ms: float | None = None
    peer_ms: float | None = None
    pairs: int = 0
    load: dict[str, float] = field(default_factory=dict)
    noisy: bool = False

    def as_report(self) -> dict[str, Any]:
        """The outcome for JSON, with its tuples spelled out."""
        report = asdict(self)
        for name in ("agreement", "ratio", "cpu_ratio"):
            value = getattr(self, name)
            report[name] = None if value is None else value._asdict()
        return report


Cases = Callable[..., Iterator[Case]]
"""`cases(quick=…)` of a row's module: cases are built one by one, so that memory holds one."""


def run_row(row: str, cases: Cases, *, quick: bool) -> Iterator[Outcome]:
    """The outcome of each case of a row; one outcome "peer missing" where its package is not there.

    Every call runs on one thread, because the ratio on many depends on who else is running.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = 0.5 if quick else 1.2
    try:
        for case in cases(quick=quick):
            yield compare(row, case, seconds=seconds)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in PEER_PACKAGES:
            raise
        reason = f"{package} is not installed; pip install -e '.[bench]'"
        yield Outcome(row=row, case="", status="peer missing", reason=reason)
    finally:
        torch.set_num_threads(threads)


def compare(row: str, case: Case, *, seconds: float) -> Outcome:
    """Gate, warm up, and time pairs for about `seconds`, at least 3 and at most 25 of them."""
    facts: dict[str, Any] = {
        "row": row,
        "case": case.name,
        "sizes": case.sizes,
        "dtype": case.dtype,
    }
    agreement = case.gate()
    if not agreement.holds:
        return Outcome(
            **facts,
            status="wrong",
            reason=f"outputs differ by {agreement.error:.2g}, {agreement.tolerance:.2g} is allowed",
            bar=case.bar,
            agreement=agreement,
        )
    case.ours(), case.peer()
    load = Load()
    ours, peer = _timed_pairs(case, seconds=seconds)
    shares = load.shares()
    ratio = _ratio([theirs.wall / own.wall for own, theirs in zip(ours, peer, strict=True)])
    slow = ratio.median < case.bar
    return Outcome(
        **facts,
        status="slower" if slow else "ok",
        reason=f"{ratio.median:.2f} is below {case.bar:g}" if slow else "",
        bar=case.bar,
        agreement=agreement,
        ratio=ratio,
        cpu_ratio=_ratio([theirs.cpu / own.cpu for own, theirs in zip(ours, peer, strict=True)]),
        ours_ms=1e3 * statistics.median(one.wall for one in ours),
        peer_ms=1e3 * statistics.median(one.wall for one in peer),
        pairs=len(ours),
        load=shares._asdict(),
        noisy=shares.noisy,
    )


class _Seconds(NamedTuple):
    wall: float
    cpu: float


def _timed_pairs(case: Case, *, seconds: float) -> tuple[list[_Seconds], list[_Seconds]]:
    ours: list[_Seconds] = []
    peer: list[_Seconds] = []
    end = time.perf_counter() + seconds
    while len(ours) < FEWEST_PAIRS or (len(ours) < MOST_PAIRS and time.perf_counter() < end):
        ours.append(_timed(case.ours))
        peer.append(_timed(case.peer))
    return ours, peer


def _timed(work: Callable[[], object]) -> _Seconds:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return _Seconds(time.perf_counter() - wall, max(time.process_time() - cpu, 1e-9))


def _ratio(ratios: list[float]) -> Ratio:
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def distance(ours: Tensor, peer: Tensor) -> float:
    """The largest difference of two outputs over the largest entry of the peer's.

    Raises ValueError when their shapes differ, which no broadcasting may hide.
    """
    if ours.shape != peer.shape:
        raise ValueError(f"ours has shape {tuple(ours.shape)}, the peer's {tuple(peer.shape)}")
    return ((ours - peer).abs().max() / peer.abs().max()).item()
