"""Benchmarks: the harness's logic, and that each row's two sides compute the same thing."""

import builtins
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from latentlm_platform import cli
from latentlm_platform.benchmarks import decode, harness, head_sampler, speech_decode, train_step
from latentlm_platform.benchmarks.harness import Agreement, Case, compare, distance, run_row
from latentlm_platform.benchmarks.host import Load, Shares, host_facts
from latentlm_platform.benchmarks.suite import CASES, ROWS


class Clock:
    """Stands in for `time` in the harness: work takes what it says, and nothing else takes any."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.now / 2  # half the wall time: the machine is shared

    def work(self, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(harness, "time", clock)
    return clock


def make_case(*, ours: Callable[[], object] = int, peer: Callable[[], object] = int) -> Case:
    return Case(
        name="trivial",
        sizes={"n": 1},
        ours=ours,
        peer=peer,
        gate=lambda: Agreement(0.0, 1e-3),
        bar=0.5,
    )


def test_the_ratio_is_peer_time_over_our_time(clock: Clock) -> None:
    case = make_case(ours=clock.work(0.25), peer=clock.work(0.75))
    outcome = compare("row", case, seconds=5.0)
    assert outcome.status == "ok"
    assert outcome.ratio == outcome.cpu_ratio == pytest.approx((3.0, 3.0, 3.0))
    assert (outcome.ours_ms, outcome.peer_ms) == pytest.approx((250.0, 750.0))
    assert outcome.pairs == 5


def test_the_ratio_is_the_median_of_pairs_not_of_times(clock: Clock) -> None:
    """The machine is three times slower in the second pair: neighbours slow down alike."""
    seconds = iter([1.0, 1.0, 1.0, 2.0, 3.0, 6.0, 2.0, 3.0])  # warm-up, then ours, peer, ours, …

    def take() -> None:
        clock.now += next(seconds)

    outcome = compare("row", make_case(ours=take, peer=take), seconds=0.0)
    assert outcome.pairs == harness.FEWEST_PAIRS == 3
    assert outcome.ratio == pytest.approx((2.0, 1.5, 2.0))
    assert (outcome.ours_ms, outcome.peer_ms) == pytest.approx((2000.0, 3000.0))


def test_below_its_bar_a_case_is_slower(clock: Clock) -> None:
    case = make_case(ours=clock.work(3.0), peer=clock.work(1.0))
    outcome = compare("row", case, seconds=1.0)
    assert outcome.status == "slower"
    assert "below 0.5" in outcome.reason


@pytest.mark.parametrize("error", [2e-3, float("nan")])
def test_a_wrong_case_is_not_timed(error: float) -> None:
    def never() -> None:
        raise AssertionError("a wrong thing was timed")

    case = Case(
        name="wrong", sizes={}, ours=never, peer=never, gate=lambda: Agreement(error, 1e-3), bar=1
    )
    outcome = compare("row", case, seconds=0.05)
    assert (outcome.status, outcome.ratio) == ("wrong", None)


def test_calls_alternate() -> None:
    calls: list[str] = []
    case = Case(
        name="",
        sizes={},
        ours=lambda: calls.append("ours"),
        peer=lambda: calls.append("peer"),
        gate=lambda: Agreement(0.0, 0.0),
        bar=0.0,
    )
    compare("row", case, seconds=0.0)
    assert calls == ["ours", "peer"] * (1 + harness.FEWEST_PAIRS)


def test_a_missing_peer_is_said_and_other_missing_modules_are_errors() -> None:
    def needs(package: str) -> Callable[..., Iterator[Case]]:
        def cases(*, quick: bool) -> Iterator[Case]:
            yield make_case()
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)

        return cases

    first, missing = run_row("row", needs("diffusers.schedulers"), quick=True)
    assert first.status == "ok"
    assert missing.status == "peer missing"
    assert "diffusers is not installed; pip install" in missing.reason
    with pytest.raises(ModuleNotFoundError):
        list(run_row("row", needs("latentlm.nothing"), quick=True))


def test_rows_run_on_one_thread_and_give_the_threads_back() -> None:
    before = torch.get_num_threads()
    seen: list[int] = []

    def cases(*, quick: bool) -> Iterator[Case]:
        seen.append(torch.get_num_threads())
        yield make_case()

    torch.set_num_threads(2)
    try:
        list(run_row("row", cases, quick=True))
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_distance_is_relative_and_never_broadcasts() -> None:
    assert distance(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 5.0])) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="shape"):
        distance(torch.zeros(3, 1), torch.zeros(3))


def test_noise_is_what_others_use_not_our_own_work(monkeypatch: pytest.MonkeyPatch) -> None:
    from latentlm_platform.benchmarks import host

    readings = iter(
        [host._Clock(100, 10, 0, 5), host._Clock(110, 16, 1, 9), host._Clock(110, 14, 0, 9)]
    )
    monkeypatch.setattr(host._Clock, "read", classmethod(lambda _cls: next(readings)))
    load = Load()
    assert load.shares() == pytest.approx((0.2, 0.1))
    assert not load.shares().noisy
    assert Shares(0.2, 0.0).noisy
    assert Shares(0.0, 0.05).noisy


def test_host_facts_name_versions_and_revision() -> None:
    facts = host_facts()
    assert facts["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert {"transformers", "diffusers"} <= set(facts["packages"])
    assert {"commit", "dirty", "cpu", "cores", "threads"} <= set(facts)


def tiny(row: str) -> Case:
    match row:
        case "train_step":
            return train_step.case(
                width=64, depth=2, repeats=1, dtype=torch.float32, vocabulary=256
            )
        case "decode":
            return decode.case(width=64, depth=2, batch=3, latents=3, steps=4, bar=1.0)
        case "head_sampler":
            return head_sampler.case(width=64, batch=3, steps=5)
        case _:
            return speech_decode.case(
                channels=4, batch=2, latents=3, depths=(1, 1, 2), strides=(2, 5)
            )


@pytest.mark.parametrize("row", CASES)
def test_both_sides_of_a_row_compute_the_same(row: str) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("diffusers")
    agreement = tiny(row).gate()
    assert agreement.error > 0  # two implementations never round alike: one side is not the other
    assert agreement.holds, agreement


def test_the_gate_of_training_sees_another_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer whose loss has the same value but whose diffusion gradient is scaled."""
    pytest.importorskip("transformers")
    from latentlm_platform.benchmarks.peers_llama import LlamaMarPeer

    right = LlamaMarPeer._diffusion

    def scaled(self: LlamaMarPeer, *arguments: Any) -> torch.Tensor:
        loss = right(self, *arguments)
        return 2 * loss - loss.detach()

    monkeypatch.setattr(LlamaMarPeer, "_diffusion", scaled)
    assert not tiny("train_step").gate().holds


def test_the_gate_of_decoding_sees_another_guidance(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr(decode, "SamplerSettings", lambda **named: _unguided(**named))
    assert not tiny("decode").gate().holds


def _unguided(**named: Any) -> Any:
    from latentlm.settings import SamplerSettings

    return SamplerSettings(**{**named, "cfg_scale": 2.0})


def test_the_command_reports_rows_and_fails_without_a_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def cases(*, quick: bool) -> Iterator[Case]:
        yield make_case()
        raise ModuleNotFoundError("no", name="transformers")

    monkeypatch.setitem(ROWS, "decode", partial(run_row, "decode", cases))
    target = tmp_path / "bench.json"
    assert cli.main(["bench", "decode", "--quick", "--json", str(target)]) == 1
    report = json.loads(target.read_text())
    assert [row["status"] for row in report["rows"]] == ["ok", "peer missing"]
    assert set(report["rows"][0]["ratio"]) == {"median", "low", "high"}
    assert report["host"]["threads"] == 1
    assert "PEER MISSING: transformers" in capfd.readouterr().out


def test_the_command_names_the_rows_there_are(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "decoding"]) == 2
    assert "there is no row decoding; choose of train_step, decode" in capfd.readouterr().err


def test_without_transformers_every_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.partition(".")[0] in harness.PEER_PACKAGES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments)

    for module in ("peers_llama", "peers_vibevoice", "peers_scheduler", "peers_acoustic"):
        monkeypatch.delitem(sys.modules, f"latentlm_platform.benchmarks.{module}", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    for name, cases in CASES.items():
        (outcome,) = run_row(name, cases, quick=True)
        assert outcome.status == "peer missing", name
