"""The judge: it learns what can be learnt, repeats itself, and its interval is Wilson's."""

from collections.abc import Iterator

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from latentlm.metrics.classifier import accuracy_interval, train_classifier

CLASSES = 4


def gratings(rows: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy stripes at four angles and any phase: no single pixel tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels_B = torch.randint(CLASSES, (rows,), generator=generator)
    angle_B = labels_B * torch.pi / CLASSES
    phase_B = torch.rand(rows, generator=generator) * 2 * torch.pi
    y_YX, x_YX = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    along_BYX = angle_B.cos()[:, None, None] * x_YX + angle_B.sin()[:, None, None] * y_YX
    clean_BYX = (along_BYX * 1.3 + phase_B[:, None, None]).sin()
    noisy_BYX = clean_BYX + 0.5 * torch.randn(rows, 16, 16, generator=generator)
    return (noisy_BYX * 60 + 128).clamp(0, 255).byte()[:, None], labels_B


def batches(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    for step in range(steps):
        yield gratings(64, seed=step)


def train(steps: int, *, seed: int = 0) -> torch.nn.Module:
    return train_classifier(
        batches(steps),
        channels=1,
        classes=CLASSES,
        steps_total=steps,
        generator=torch.Generator().manual_seed(seed),
    )


def test_it_learns_and_judges_unseen_images() -> None:
    model = train(40)
    assert not model.training
    images_BCYX, labels_B = gratings(400, seed=10_000)
    accuracy = float((model(images_BCYX).argmax(1) == labels_B).float().mean())
    assert accuracy > 0.95
    shuffled = labels_B[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    assert float((model(images_BCYX).argmax(1) == shuffled).float().mean()) < 0.4


def test_it_depends_on_the_generator_alone() -> None:
    torch.manual_seed(1)
    first = train(3)
    torch.manual_seed(2)
    again, other = train(3), train(3, seed=1)
    images_BCYX, _ = gratings(8, seed=0)
    assert torch.equal(first(images_BCYX), again(images_BCYX))
    assert not torch.equal(first(images_BCYX), other(images_BCYX))


def test_batches_that_end_early_are_named() -> None:
    with pytest.raises(ValueError, match="ended after 2 of steps_total = 5"):
        train_classifier(
            batches(2),
            channels=1,
            classes=CLASSES,
            steps_total=5,
            generator=torch.Generator().manual_seed(0),
        )


@pytest.mark.parametrize(("correct", "n"), [(0, 20), (20, 20), (905, 1000), (1, 3)])
def test_the_interval_is_wilsons(correct: int, n: int) -> None:
    found = accuracy_interval(correct, n)
    wanted = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    assert found.value == correct / n
    assert found.low == pytest.approx(wanted.low, abs=1e-6)
    assert found.high == pytest.approx(wanted.high, abs=1e-6)


def test_impossible_counts_are_refused() -> None:
    for correct, n in ((3, 2), (0, 0), (-1, 5)):
        with pytest.raises(ValueError, match="is no accuracy"):
            accuracy_interval(correct, n)
