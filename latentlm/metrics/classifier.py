"""A small classifier of real images that judges whether generated ones show the class asked for.

In: uint8 images (B, C, Y, X) and labels, real ones to learn from. Out: class logits, accuracies.
"""

from collections.abc import Iterable
from functools import partial
from itertools import islice
from math import cos, pi, sqrt

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from latentlm.metrics import NORMAL_95, Interval

WIDTHS = (16, 32, 64)
PEAK_LEARNING_RATE = 1e-2  # AdamW at about 128 images a batch
WEIGHT_DECAY = 0.05
WARMUP_FRACTION = 0.2


class SmallImageClassifier(nn.Module):
    """Four 3x3 convolutions at half, quarter and eighth resolution, maximum over positions.

    It measures the mean and variance of its own training images, so no constant of a corpus is in
    it; sides must be even. Weights are drawn from `generator`.
    """

    def __init__(self, *, channels: int, classes: int, generator: Generator) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.standardise = nn.BatchNorm2d(channels, affine=False)
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(2),
            *_convolution(4 * channels, first),
            *_convolution(first, second, stride=2),
            *_convolution(second, third, stride=2),
            *_convolution(third, third),
        )
        self.head = nn.Linear(third, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, generator=generator)
        nn.init.normal_(self.head.weight, std=third**-0.5, generator=generator)
        nn.init.zeros_(self.head.bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, images_BCYX: Tensor) -> Tensor:
        """Logits (B, classes) of uint8 images."""
        x_BCYX = self.standardise(images_BCYX / 255)
        x_BCYX = self.layers(x_BCYX.contiguous(memory_format=torch.channels_last))
        return self.head(x_BCYX.amax((2, 3)))


def train_classifier(
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    channels: int,
    classes: int,
    steps_total: int,
    generator: Generator,
) -> SmallImageClassifier:
    """A classifier trained on `steps_total` batches of (uint8 images, labels), ready to judge.

    Deterministic given the generator and the batches. Batches of about 128 suit its learning rate.
    Raises ValueError where the batches end early.
    """
    model = SmallImageClassifier(channels=channels, classes=classes, generator=generator).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate_at, steps=steps_total))
    step = 0
    for step, (images_BCYX, labels_B) in enumerate(islice(batches, steps_total), start=1):
        if step == 1:
            model.to(images_BCYX.device)
        loss = F.cross_entropy(model(images_BCYX), labels_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    if step < steps_total:
        raise ValueError(
            f"the batches ended after {step} of steps_total = {steps_total}; give as many batches"
            " or lower steps_total"
        )
    return model.eval().requires_grad_(False)


def accuracy_interval(correct: int, n: int) -> Interval:
    """correct / n with Wilson's 95 % score interval, which holds near 0 and 1 too."""
    if not 0 <= correct <= n or n == 0:
        raise ValueError(f"{correct} of {n} is no accuracy; give 0 ≤ correct ≤ n and n > 0")
    share, spread = correct / n, NORMAL_95**2 / n
    centre = (share + spread / 2) / (1 + spread)
    margin = sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return Interval(share, max(0.0, centre - margin), min(1.0, centre + margin))


def _rate_at(step: int, *, steps: int) -> float:
    """Share of the peak rate: a linear rise, then half a cosine that ends just above 0."""
    rise = max(1, round(WARMUP_FRACTION * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + cos(pi * (step + 1 - rise) / (steps + 1 - rise)))


def _convolution(before: int, after: int, *, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
