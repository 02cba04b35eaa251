"""The learning rate: warm-up, cosine, floor, and a schedule longer than the training."""

import math

import pytest

from latentlm_platform.experiment.sections import Optimizer
from latentlm_platform.training.learning_rate import learning_rate_at

PEAK = Optimizer(learning_rate=1.0, warmup_steps=10, final_learning_rate_fraction=0.2)


def test_warm_up_cosine_and_floor() -> None:
    rates = [learning_rate_at(step, 110, PEAK) for step in range(111)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.6)
    assert rates[35] == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert rates[110] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(1.0)


def test_a_longer_schedule_stops_short_of_its_end() -> None:
    long = PEAK.model_copy(update={"schedule_steps": 210})
    assert learning_rate_at(109, 110, long) == pytest.approx(learning_rate_at(109, 210, PEAK))
    assert learning_rate_at(109, 110, long) > 0.59
