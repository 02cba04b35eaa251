"""The Fréchet distance against scipy's matrix root, torchmetrics, closed forms and resampling."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from latentlm.metrics.frechet import frechet_distance, frechet_interval


def features(rows: int, width: int, *, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
    noise = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return scale * (noise @ mixing + 0.3 * noise) + shift


class Identity(nn.Module):
    """torchmetrics calls an extractor on images; here the images are features already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features_NF: Tensor) -> Tensor:
        return features_NF


def torchmetrics_distance(a_NF: Tensor, b_NF: Tensor) -> float:
    peer = FrechetInceptionDistance(Identity(a_NF.shape[1]), normalize=True).set_dtype(
        torch.float64
    )
    peer.update(a_NF, real=True)
    peer.update(b_NF, real=False)
    return float(peer.compute())


@pytest.mark.parametrize(("rows", "other_rows"), [(400, 300), (20, 300), (300, 25)])
def test_it_is_the_distance_of_scipy_and_torchmetrics(rows: int, other_rows: int) -> None:
    """Many rows (full rank) and fewer rows than features on either side (singular)."""
    a_NF = features(rows, 32, seed=0)
    b_NF = features(other_rows, 32, seed=1, scale=1.3, shift=0.2)
    found = frechet_distance(a_NF, b_NF)
    assert found == pytest.approx(torchmetrics_distance(a_NF, b_NF), rel=1e-6)
    if min(rows, other_rows) > 32:
        first, second = np.cov(a_NF.T), np.cov(b_NF.T)
        root = np.trace(sqrtm(first @ second)).real
        means = float((a_NF.mean(0) - b_NF.mean(0)).square().sum())
        expected = means + np.trace(first) + np.trace(second) - 2 * root
        assert found == pytest.approx(expected, rel=1e-9)


def test_closed_forms() -> None:
    a_NF = features(200, 16, seed=0)
    spread = float(a_NF.var(0).sum())
    assert frechet_distance(a_NF, a_NF) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(a_NF, a_NF + 0.5) == pytest.approx(16 * 0.25)
    centred_NF = a_NF - a_NF.mean(0)
    assert frechet_distance(centred_NF, 3 * centred_NF) == pytest.approx(4 * spread)
    few_NF = features(5, 64, seed=3)
    few_NF = few_NF - few_NF.mean(0)
    assert frechet_distance(few_NF, 2 * few_NF) == pytest.approx(float(few_NF.var(0).sum()))


def test_single_precision_features_are_taken_to_double() -> None:
    a_NF, b_NF = features(300, 24, seed=0) + 50, features(300, 24, seed=1) + 50
    assert frechet_distance(a_NF.float(), b_NF.float()) == pytest.approx(
        frechet_distance(a_NF, b_NF), rel=1e-4
    )


def test_the_interval_has_the_width_of_repeated_experiments() -> None:
    def experiment(number: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(number)
        return (
            torch.randn(200, 6, generator=generator),
            torch.randn(200, 6, generator=generator) * 1.5 + 0.4,
        )

    distances = [frechet_distance(*experiment(number)) for number in range(200)]
    wanted = 1.96 * float(np.std(distances))
    intervals = [
        frechet_interval(*experiment(number), seed=number, replicates=20) for number in range(20)
    ]
    widths = [(interval.high - interval.low) / 2 for interval in intervals]
    assert float(np.mean(widths)) == pytest.approx(wanted, rel=0.25)
    assert intervals[0].value == distances[0]
    assert intervals[0] == frechet_interval(*experiment(0), seed=0, replicates=20)
    assert intervals[0] != frechet_interval(*experiment(0), seed=1, replicates=20)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="N ≥ 2"):
        frechet_distance(torch.zeros(1, 4), torch.zeros(5, 4))
    with pytest.raises(ValueError, match="one net only"):
        frechet_distance(torch.rand(5, 4), torch.rand(5, 3))
    with pytest.raises(ValueError, match="NaN or infinity"):
        frechet_distance(torch.rand(5, 4), torch.full((5, 4), torch.nan))
