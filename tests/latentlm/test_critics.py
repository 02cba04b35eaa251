"""The patch critic: its receptive field, rows that do not see each other, its limits."""

import pytest
import torch

from latentlm.codec.critics import PatchCritic


def critic() -> PatchCritic:
    return PatchCritic(3, width=16, generator=torch.Generator().manual_seed(0))


def test_no_row_sees_another_and_patches_are_many() -> None:
    signal = torch.rand(3, 3, 32, 32) * 2 - 1
    together = critic()(signal)
    assert together.shape == (3, 1, 2, 2)
    assert torch.allclose(together[1:2], critic()(signal[1:2]), atol=1e-6)


def test_a_logit_sees_the_70_pixels_of_patchgan() -> None:
    """Reach of the convolutions alone, because group norm looks at the whole image."""
    convolutions = torch.nn.Sequential(
        *[layer for layer in critic().layers if isinstance(layer, torch.nn.Conv2d)]
    )
    signal = torch.zeros(1, 3, 160, 160, requires_grad=True)
    logits = convolutions(signal)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    assert signal.grad is not None
    seen = signal.grad.abs().sum((0, 1)).nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [70, 70]


def test_weights_come_from_the_generator() -> None:
    first, second = (next(critic().parameters()).detach() for _ in range(2))
    assert torch.equal(first, second)
    assert float(first.std()) == pytest.approx(0.02, rel=0.1)


def test_images_too_small_are_refused_and_the_smallest_pass() -> None:
    assert critic()(torch.zeros(1, 3, 24, 24)).numel() == 1
    with pytest.raises(ValueError, match="needs 24 or more a side"):
        critic()(torch.zeros(1, 3, 16, 16))
