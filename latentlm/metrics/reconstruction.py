"""Reconstruction scores of a codec: PSNR and SSIM of each image, the ceiling of what it generates.

In: signals and reconstructions (B, C, Y, X) in [-1, 1]. Out: one number per image.
"""

from torch import Tensor

RANGE = 2.0  # of signals in [-1, 1]


def psnr(reconstruction: Tensor, signal: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB, 10 log₁₀(4 / mean squared error); ∞ where equal.

    Reconstructions are clamped to [-1, 1] first, as they are shown.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    return peak_signal_noise_ratio(
        reconstruction.clamp(-1, 1),
        signal,
        data_range=RANGE,
        reduction="none",
        dim=(1, 2, 3),
    )


def ssim(reconstruction: Tensor, signal: Tensor) -> Tensor:
    """Structural similarity (B,), Gaussian window of σ 1.5 and 11 pixels (Wang et al. 2004).

    The mean over every pixel and channel, borders mirrored; sides need 6 pixels.
    Reconstructions are clamped to [-1, 1] first, as they are shown.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    return structural_similarity_index_measure(
        reconstruction.clamp(-1, 1), signal, data_range=RANGE, reduction="none"
    )
