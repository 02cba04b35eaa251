"""Classifier-free guidance as data: a scale for every row and evaluation."""

from typing import Any

import pytest
import torch

from latentlm.diffusion.process import DiffusionProcess
from latentlm.diffusion.samplers import (
    guidance_table,
    guided,
    guided_rows,
    guided_steps,
    heun,
    sample_x,
    scheduled_scale,
    solver_times,
)
from latentlm.settings import DiffusionSettings

SCALES = torch.tensor([1.0, 3.0, 0.0, 1.5])
DDPM = DiffusionProcess(DiffusionSettings())
FLOW = DiffusionProcess(DiffusionSettings(process="flow", prediction="velocity"))


def network(x: torch.Tensor, time: float) -> torch.Tensor:
    return torch.sin(1.3 * x + time / 300) + 0.3 * x.roll(1, -1)


class Streams:
    """A denoiser whose null stream differs, and which remembers what it was given."""

    def __init__(self, batch: int = 4) -> None:
        self.batch = batch
        self.given: list[torch.Tensor] = []

    def __call__(self, x: torch.Tensor, index: int) -> torch.Tensor:
        self.given.append(x)
        conditional = network(x[: self.batch], index)
        return torch.cat((conditional, network(x[self.batch :], index + 500)))


def test_every_row_has_its_own_scale_and_one_without_a_twin_is_conditional() -> None:
    rows = guided_rows(SCALES)
    assert rows.tolist() == [1, 2, 3]
    streams = Streams()
    x = torch.randn(4, 8)
    found = guided(streams, scales_SB=SCALES.expand(3, 4), rows=rows)(x, 2)
    conditional, null = network(x, 2), network(x, 502)
    assert torch.equal(found[0], conditional[0])
    assert torch.equal(found[2], null[2])
    torch.testing.assert_close(found, null + SCALES[:, None] * (conditional - null))
    assert torch.equal(streams.given[0][4:], x[1:])


def test_twins_may_stand_in_any_order() -> None:
    scales_SB, x = torch.tensor([[2.0, 3.0, 0.5, 4.0]]), torch.randn(4, 8)
    expected = guided(Streams(), scales_SB=scales_SB, rows=torch.arange(4))(x, 0)
    found = guided(Streams(), scales_SB=scales_SB, rows=torch.tensor([2, 0, 3, 1]))(x, 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scales", [[2.0, 3.0, 0.5, 1.0 + 1e-6], [1.0, 1.0, 1.0, 1.0]])
def test_all_rows_with_a_twin_and_none(scales: list[float]) -> None:
    scales_SB = torch.tensor([scales])
    streams, x = Streams(), torch.randn(4, 8)
    found = guided(streams, scales_SB=scales_SB, rows=guided_rows(scales_SB))(x, 0)
    conditional, null = network(x, 0), network(x, 500)
    torch.testing.assert_close(found, null + scales_SB.T * (conditional - null))
    if scales[0] == 1:
        assert torch.equal(found, conditional)
        assert len(streams.given[0]) == 4


def test_predictions_of_16_bits_are_mixed_in_fp32() -> None:
    scales_SB, x = torch.tensor([[2.0, 3.0, 1.0, 0.5]]), torch.randn(4, 8)
    streams = Streams()

    def halves(x: torch.Tensor, index: int) -> torch.Tensor:
        return streams(x, index).bfloat16()

    found = guided(halves, scales_SB=scales_SB, rows=guided_rows(scales_SB))(x, 0)
    conditional, null = (network(x, time).bfloat16().float() for time in (0, 500))
    expected = null + scales_SB.T * (conditional - null)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "interval", [(0.0, 1.0), (0.2, 0.8), (0.0, 0.5), (0.799, 1.0), (0.9, 0.95)]
)
@pytest.mark.parametrize("process", [DDPM, FLOW], ids=["ddpm", "flow"])
def test_outside_the_interval_every_scale_is_one(
    process: DiffusionProcess, interval: tuple[float, float]
) -> None:
    times = solver_times(process, steps=10)
    table = guidance_table(SCALES, times_S=times, process_timesteps=1000, interval=interval)
    assert table.shape == (10, 4)
    for time, row in zip(times, table, strict=True):
        inside = interval[0] * 1000 < time <= interval[1] * 1000
        assert torch.equal(row, SCALES if inside else torch.ones(4))


def test_the_whole_interval_holds_time_zero_and_borders_belong_to_the_lower_part() -> None:
    times = solver_times(DDPM, steps=1000)
    assert all(guided_steps(times, process_timesteps=1000))
    low = guided_steps(times, process_timesteps=1000, interval=(0.0, 0.3))
    high = guided_steps(times, process_timesteps=1000, interval=(0.3, 1.0))
    assert [a + b for a, b in zip(low, high, strict=True)] == [1] * 1000
    assert sum(low) == 301


def test_steps_without_guidance_skip_the_twins_and_change_nothing() -> None:
    table = heun(DDPM, steps=6)
    times = [step.time for step in table]
    active = guided_steps(times, process_timesteps=1000, interval=(0.2, 0.7))
    assert len(active) == 11
    assert 0 < sum(active) < 11
    scales_SB = guidance_table(SCALES, times_S=times, process_timesteps=1000, interval=(0.2, 0.7))
    rows, noise = guided_rows(scales_SB), torch.randn(4, 8)
    assert rows.tolist() == [1, 2, 3]

    def sample(streams: Streams, active_S: Any) -> torch.Tensor:
        denoise = guided(streams, scales_SB=scales_SB, rows=rows, active_S=active_S)
        return sample_x(denoise, noise, steps=table)

    every, some = Streams(), Streams()
    assert torch.equal(sample(every, None), sample(some, active))
    assert [len(x) for x in every.given] == [7] * 11
    assert [len(x) for x in some.given] == [7 if on else 4 for on in active]


def test_an_interval_between_two_steps_leaves_no_row_to_guide() -> None:
    table = guidance_table(
        SCALES, times_S=solver_times(DDPM, steps=5), process_timesteps=1000, interval=(0.41, 0.59)
    )
    assert guided_rows(table).numel() == 0


def test_scales_rise_or_fall_along_an_item() -> None:
    fractions = (0.0, 0.25, 1.0)
    expected = {"constant": [5, 5, 5], "rising": [1, 2, 5], "falling": [5, 4, 1]}
    schedule: Any
    for schedule, scales in expected.items():
        found = [scheduled_scale(5.0, fraction=one, schedule=schedule) for one in fractions]
        assert found == scales
        for fraction, scale in zip(fractions, scales, strict=True):
            rows = scheduled_scale(torch.tensor([5.0, 1.0]), fraction=fraction, schedule=schedule)
            assert rows.tolist() == [scale, 1]
