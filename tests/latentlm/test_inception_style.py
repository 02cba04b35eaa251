"""The Inception-style score against its bounds and torchmetrics."""

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.inception import InceptionScore

from latentlm.metrics.inception_style import inception_style_score


class Identity(nn.Module):
    """torchmetrics calls an extractor on images; here the images are logits already."""

    def forward(self, logits_NK: Tensor) -> Tensor:
        return logits_NK


def test_bounds() -> None:
    unsure = torch.zeros(50, 7)
    certain = torch.eye(7).repeat(10, 1) * 1e4
    one_class = torch.eye(7)[:1].repeat(30, 1) * 1e4
    assert inception_style_score(unsure, splits=5).value == pytest.approx(1.0)
    assert inception_style_score(certain, splits=1).value == pytest.approx(7.0)
    assert inception_style_score(one_class, splits=3).value == pytest.approx(1.0)


def test_one_split_is_torchmetrics() -> None:
    logits_NK = 3 * torch.randn(120, 9, generator=torch.Generator().manual_seed(0))
    peer = InceptionScore(Identity(), splits=1)
    peer.update(logits_NK)
    found = inception_style_score(logits_NK, splits=1)
    assert found.value == pytest.approx(float(peer.compute()[0]), rel=1e-4)
    assert found.low == found.value == found.high


def test_rows_sorted_by_class_are_spread_over_the_splits() -> None:
    sorted_NK = torch.eye(5).repeat_interleave(40, dim=0) * 1e4
    assert inception_style_score(sorted_NK, splits=8).value == pytest.approx(5.0)


def test_the_interval_is_that_of_the_mean_over_splits() -> None:
    logits_NK = 2 * torch.randn(400, 5, generator=torch.Generator().manual_seed(1))
    parts = torch.tensor([inception_style_score(logits_NK[i::4], splits=1).value for i in range(4)])
    found = inception_style_score(logits_NK, splits=4)
    assert found.value == pytest.approx(float(parts.mean()))
    assert found.high - found.value == pytest.approx(1.96 * float(parts.std()) / 2, rel=1e-3)


def test_more_splits_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="3 rows cannot be cut into 10"):
        inception_style_score(torch.zeros(3, 4))
