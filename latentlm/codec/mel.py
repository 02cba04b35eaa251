"""Distance of log mel spectrograms at seven scales, "as configured in DAC" (Tables 5 and 6).

In: signals (B, S) in [-1, 1]. Out: scalars. A training loss and, without gradients, the metric.
"""

from math import log

import torch
from torch import Tensor, nn

WINDOWS = (32, 64, 128, 256, 512, 1024, 2048)
MELS = (5, 10, 20, 40, 80, 160, 320)
FLOOR = 1e-5

LINEAR_HZ_PER_MEL = 200.0 / 3.0
KNEE_HZ = 1000.0
KNEE_MEL = KNEE_HZ / LINEAR_HZ_PER_MEL
LOG_STEP = 27.0 / log(6.4)


class MultiScaleMel(nn.Module):
    """Σ over scales of the mean |log₁₀ mel(x̂) - log₁₀ mel(x)|.

    A scale is a Hann window, a hop of a quarter of it and a number of mel bands: magnitudes (power
    1), Slaney's filters, values below 1e-5 raised to it. The ends are mirrored.
    """

    def __init__(
        self,
        *,
        sample_rate_hz: int,
        windows: tuple[int, ...] = WINDOWS,
        mels: tuple[int, ...] = MELS,
    ) -> None:
        super().__init__()
        if len(windows) != len(mels):
            raise ValueError(
                f"{len(windows)} windows do not fit {len(mels)} numbers of mel bands; give one"
                " number for each window"
            )
        self.windows = windows
        for window, bands in zip(windows, mels, strict=True):
            filters_FM = slaney_filters(window, bands=bands, sample_rate_hz=sample_rate_hz).float()
            self.register_buffer(f"filters_{window}", filters_FM, persistent=False)
            self.register_buffer(f"window_{window}", torch.hann_window(window), persistent=False)

    def forward(self, reconstruction: Tensor, signal: Tensor) -> Tensor:
        """The distance, a mean over rows, so that equal shards of a batch average to the batch."""
        if reconstruction.shape != signal.shape:
            raise ValueError(
                f"the reconstruction has shape {tuple(reconstruction.shape)}, the signal"
                f" {tuple(signal.shape)}; crop or pad one to the other before comparing"
            )
        pairs = zip(self.log_mels(reconstruction), self.log_mels(signal), strict=True)
        return torch.stack([(found - wanted).abs().mean() for found, wanted in pairs]).sum()

    def log_mels(self, signal: Tensor) -> list[Tensor]:
        """log₁₀ mel spectrograms (B, frames, bands) of every scale, in fp32."""
        if signal.shape[-1] <= max(self.windows) // 2:
            raise ValueError(
                f"the signal has {signal.shape[-1]} samples, but a mel window of"
                f" {max(self.windows)} needs more than {max(self.windows) // 2}; use longer signals"
            )
        with torch.autocast(signal.device.type, enabled=False):
            return [self._log_mel(signal.float(), window) for window in self.windows]

    def _log_mel(self, signal: Tensor, window: int) -> Tensor:
        spectrum_BFT = torch.stft(
            signal,
            window,
            hop_length=window // 4,
            window=self.get_buffer(f"window_{window}"),
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        mel_BTM = spectrum_BFT.abs().transpose(1, 2) @ self.get_buffer(f"filters_{window}")
        return mel_BTM.clamp(min=FLOOR).log10()


def slaney_filters(window: int, *, bands: int, sample_rate_hz: int) -> Tensor:
    """Triangles of equal area on Slaney's mel scale, fp64 (window / 2 + 1, bands), 0 Hz to half.

    The scale is linear below 1 kHz (200/3 Hz a mel) and logarithmic above (27 mels to 6.4 kHz).
    """
    bins_F1 = torch.arange(window // 2 + 1).double()[:, None] * (sample_rate_hz / window)
    mels = torch.linspace(0.0, _mel_of(sample_rate_hz / 2), bands + 2, dtype=torch.float64)
    left_M, top_M, right_M = _hz_of(mels).unfold(0, bands, 1)
    rising_FM = (bins_F1 - left_M) / (top_M - left_M)
    falling_FM = (right_M - bins_F1) / (right_M - top_M)
    return torch.minimum(rising_FM, falling_FM).clamp(min=0.0) * 2.0 / (right_M - left_M)


def _mel_of(hz: float) -> float:
    if hz < KNEE_HZ:
        return hz / LINEAR_HZ_PER_MEL
    return KNEE_MEL + LOG_STEP * log(hz / KNEE_HZ)


def _hz_of(mel: Tensor) -> Tensor:
    above = KNEE_HZ * ((mel - KNEE_MEL) / LOG_STEP).exp()
    return torch.where(mel < KNEE_MEL, mel * LINEAR_HZ_PER_MEL, above)
