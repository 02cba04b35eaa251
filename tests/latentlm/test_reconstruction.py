"""PSNR and SSIM of each image against numpy and scipy."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from latentlm.metrics.reconstruction import psnr, ssim


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    signal = torch.rand(3, 3, 24, 24, generator=generator) * 2 - 1
    noise = torch.randn(3, 3, 24, 24, generator=generator)
    levels = torch.tensor([0.05, 0.2, 0.5])[:, None, None, None]
    return (signal + levels * noise).clamp(-1, 1), signal


def test_psnr_of_each_image() -> None:
    reconstruction, signal = batch()
    errors = ((reconstruction - signal).double() ** 2).mean((1, 2, 3)).numpy()
    found = psnr(reconstruction, signal).numpy()
    assert found == pytest.approx(10 * np.log10(4 / errors), rel=1e-5)
    assert found[0] > found[1] > found[2]


def test_ssim_of_each_image_is_wangs() -> None:
    reconstruction, signal = batch()
    found = ssim(reconstruction, signal).numpy()
    wanted = [_ssim(a, b) for a, b in zip(reconstruction, signal, strict=True)]
    assert found == pytest.approx(wanted, abs=1e-4)
    assert ssim(signal, signal).numpy() == pytest.approx(1.0)


def _ssim(a_CYX: Tensor, b_CYX: Tensor) -> float:
    """Equation 13 of Wang et al. 2004, over every pixel, borders mirrored."""
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    values = []
    for a, b in zip(a_CYX.double().numpy(), b_CYX.double().numpy(), strict=True):

        def blur(x: np.ndarray) -> np.ndarray:
            return gaussian_filter(x, 1.5, radius=5, mode="mirror")

        mean_a, mean_b = blur(a), blur(b)
        var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
        cov = blur(a * b) - mean_a * mean_b
        above = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
        values.append(above / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    return float(np.mean(values))


def test_reconstructions_are_scored_as_shown() -> None:
    reconstruction, signal = batch()
    beyond = reconstruction * 3
    assert torch.equal(psnr(beyond, signal), psnr(beyond.clamp(-1, 1), signal))
    assert torch.equal(ssim(beyond, signal), ssim(beyond.clamp(-1, 1), signal))
    assert torch.isinf(psnr(signal, signal)).all()
