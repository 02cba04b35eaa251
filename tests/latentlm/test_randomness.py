"""Keyed noise: the right distributions, independent streams, and rows that ignore their batch."""

import numpy as np
import pytest
import torch
from scipy import stats

from latentlm.randomness import Draw, RowNoise, _mix, _signed

IDS = torch.arange(200) * 7919 - 300


def noise(*, seed: int = 3, ids: torch.Tensor = IDS, epoch: int = 0) -> RowNoise:
    return RowNoise(seed=seed, ids_B=ids, epochs_B=epoch)


def test_mixing_gives_the_published_outputs_of_splitmix64() -> None:
    state, golden = 1234567, 0x9E3779B97F4A7C15
    words = torch.tensor([_signed(state + golden), _signed(state + 2 * golden)])
    assert _mix(words).tolist() == [_signed(6457827717110365317), _signed(3203168211198807973)]


def test_normal_has_the_normal_distribution() -> None:
    values = noise().normal(Draw.DIFFUSION_NOISE, 33, 16).double().numpy().ravel()
    assert stats.kstest(values, "norm").pvalue > 1e-3
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        spread = np.std(values**power) / np.sqrt(values.size)
        assert abs(np.mean(values**power) - moment) < 4 * spread


def test_uniform_is_uniform_and_stays_below_one() -> None:
    values = noise().uniform(Draw.LABEL_DROPOUT, 500).double().numpy().ravel()
    assert stats.kstest(values, "uniform").pvalue > 1e-3
    assert values.min() >= 0
    assert values.max() < 1


@pytest.mark.parametrize("high", [1, 2, 10, 1000])
def test_integers_are_uniform_over_their_range(high: int) -> None:
    values = noise().integers(Draw.TIMESTEP, high, 500)
    counts = torch.bincount(values.flatten(), minlength=high).numpy()
    assert len(counts) == high
    assert high == 1 or stats.chisquare(counts).pvalue > 1e-3


def test_every_part_of_the_key_gives_independent_noise() -> None:
    streams = [
        noise().normal(5, 64),
        noise().normal(6, 64),
        noise(seed=4).normal(5, 64),
        noise(seed=3 + 2**40).normal(5, 64),
        noise(seed=-3).normal(5, 64),
        noise(epoch=1).normal(5, 64),
        noise(ids=IDS + 1).normal(5, 64),
        noise(ids=IDS.flip(0)).normal(5, 64),
        noise().at(0).normal(5, 64),
        noise().at(5).normal(5, 64),
        noise().at(0).at(5).normal(5, 64),
        noise().at(5).at(0).normal(5, 64),
    ]
    correlations = torch.corrcoef(torch.stack([stream.flatten() for stream in streams]))
    correlations.fill_diagonal_(0.0)
    assert correlations.abs().max() < 5 / (200 * 64) ** 0.5


def test_neighbours_within_a_row_are_independent() -> None:
    values = noise().normal(5, 2, 500)
    shifted = torch.stack((values[..., :-1].flatten(), values[..., 1:].flatten()))
    assert torch.corrcoef(shifted)[0, 1].abs() < 5 / values.numel() ** 0.5
    squares = torch.corrcoef(shifted.square())
    assert squares[0, 1].abs() < 5 / values.numel() ** 0.5


def test_a_row_never_depends_on_its_batch() -> None:
    for shape in ((), (1,), (3,), (5, 7), (16, 4, 16)):
        whole = noise().normal(5, *shape)
        assert whole.shape == (200, *shape)
        for start, stop in ((0, 1), (3, 4), (17, 22), (64, 128), (199, 200)):
            part = noise(ids=IDS[start:stop]).normal(5, *shape)
            assert torch.equal(part, whole[start:stop])


def test_epochs_may_differ_within_a_batch() -> None:
    epochs = torch.arange(200) % 3
    mixed = RowNoise(seed=3, ids_B=IDS, epochs_B=epochs).uniform(5, 8)
    for epoch in range(3):
        rows = epochs == epoch
        assert torch.equal(mixed[rows], noise(epoch=epoch).uniform(5, 8)[rows])


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"ids_B is torch.float32"):
        RowNoise(seed=0, ids_B=torch.zeros(3))
    with pytest.raises(ValueError, match="high is 0"):
        noise().integers(Draw.TIMESTEP, 0, 4)
