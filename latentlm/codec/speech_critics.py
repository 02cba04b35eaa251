"""The critics of the speech codec (§3.3): multi-period (HiFi-GAN) and multi-band STFT (DAC).

In: signals (B, S). Out: one map of logits for each sub-critic, and what every layer saw, for
feature matching. Signals are levelled first, so loudness tells a critic nothing.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

SLOPE = 0.1
PEAK = 0.8
PEAK_EPS = 1e-9
Bands = tuple[tuple[float, float], ...]

PERIODS = (2, 3, 5, 7, 11)
WINDOWS = (2048, 1024, 512)
BANDS: Bands = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))
WIDTH = 32


class Judgement(NamedTuple):
    """What critics say of a batch: logits of each sub-critic, high where real; hidden maps."""

    logits: list[Tensor]
    maps: list[Tensor]


class PeriodCritic(nn.Module):
    """Compares samples that are whole periods apart: samples in rows of one period, 5 rows a tap.

    The signal is mirrored at its end up to a whole period, and left alone where it has whole ones.
    """

    def __init__(self, period: int, *, width: int, generator: Generator | None) -> None:
        super().__init__()
        self.period = period
        widths = [1, *(width * min(4**level, 32) for level in range(4)), 32 * width]
        self.body = _Layers(
            _conv(inputs, outputs, (5, 1), stride=(3 if level < 4 else 1, 1), generator=generator)
            for level, (inputs, outputs) in enumerate(pairwise(widths))
        )
        self.head = _conv(widths[-1], 1, (3, 1), generator=generator)

    def forward(self, signal_BS: Tensor) -> tuple[Tensor, list[Tensor]]:
        missing = -signal_BS.shape[-1] % self.period
        padded_B1S = F.pad(signal_BS.unsqueeze(1), (0, missing), mode="reflect")
        x, maps = self.body(padded_B1S.unflatten(-1, (-1, self.period)))
        return self.head(x), maps


class MultiPeriodCritic(nn.Module):
    """One critic for each period; layers are 1, 4, 16, 32 and 32 times `width` wide."""

    def __init__(
        self,
        periods: tuple[int, ...] = PERIODS,
        *,
        width: int = WIDTH,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.shortest = max(periods)
        self.critics = nn.ModuleList(
            PeriodCritic(period, width=width, generator=generator) for period in periods
        )

    def forward(self, signal_BS: Tensor) -> Judgement:
        _check_length(signal_BS, self.shortest, critic="multi-period")
        return _judged(self.critics, levelled(signal_BS))


class SpectrumCritic(nn.Module):
    """Looks at real and imaginary parts of an STFT, each band through layers of its own."""

    taper: Tensor

    def __init__(
        self, window: int, *, bands: Bands, width: int, generator: Generator | None
    ) -> None:
        super().__init__()
        self.window, self.bands = window, bands
        self.stacks = nn.ModuleList(_band_layers(width, generator) for _ in bands)
        self.head = _conv(width, 1, (3, 3), generator=generator)
        self.register_buffer("taper", torch.hann_window(window), persistent=False)

    def forward(self, signal_BS: Tensor) -> tuple[Tensor, list[Tensor]]:
        spectrum_B2TF = self.spectrum(signal_BS)
        bins = spectrum_B2TF.shape[-1]
        outputs, maps = [], []
        for (low, high), stack in zip(self.bands, self.stacks, strict=True):
            output, seen = stack(spectrum_B2TF[..., int(low * bins) : int(high * bins)])
            outputs.append(output)
            maps.extend(seen)
        return self.head(torch.cat(outputs, dim=-1)), maps

    def spectrum(self, signal_BS: Tensor) -> Tensor:
        """(B, 2, ⌈S / hop⌉, window / 2 + 1): frame n is centred on hop n of a quarter window."""
        hop = self.window // 4
        side = (self.window - hop) // 2
        missing = -signal_BS.shape[-1] % hop
        padded_BS = F.pad(signal_BS.unsqueeze(1), (side, side + missing), "reflect").squeeze(1)
        spectrum_BFT = torch.stft(
            padded_BS,
            self.window,
            hop_length=hop,
            window=self.taper,
            center=False,
            return_complex=True,
        )
        return torch.view_as_real(spectrum_BFT).permute(0, 3, 2, 1)


class MultiBandSTFTCritic(nn.Module):
    """One critic for each window. Bands are parts of the frequencies up to half the sample rate."""

    def __init__(
        self,
        windows: tuple[int, ...] = WINDOWS,
        *,
        bands: Bands = BANDS,
        width: int = WIDTH,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.shortest = 5 * max(windows) // 8  # 3/8 and the rest of a hop are mirrored
        self.critics = nn.ModuleList(
            SpectrumCritic(window, bands=bands, width=width, generator=generator)
            for window in windows
        )

    def forward(self, signal_BS: Tensor) -> Judgement:
        _check_length(signal_BS, self.shortest, critic="STFT")
        return _judged(self.critics, levelled(signal_BS))


class SpeechCritic(nn.Module):
    """Both critics of the paper as one."""

    def __init__(self, *, width: int = WIDTH, generator: Generator | None = None) -> None:
        super().__init__()
        self.periods = MultiPeriodCritic(width=width, generator=generator)
        self.spectra = MultiBandSTFTCritic(width=width, generator=generator)

    def forward(self, signal_BS: Tensor) -> Judgement:
        periods, spectra = self.periods(signal_BS), self.spectra(signal_BS)
        return Judgement(periods.logits + spectra.logits, periods.maps + spectra.maps)


def levelled(signal_BS: Tensor) -> Tensor:
    """Each row without its mean and with a peak of 0.8; fp32."""
    centred_BS = signal_BS.float() - signal_BS.float().mean(-1, keepdim=True)
    return PEAK * centred_BS / (centred_BS.abs().amax(-1, keepdim=True) + PEAK_EPS)


class _Layers(nn.Module):
    """Layers, each followed by a leaky ReLU; gives the last output and every output."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
            maps.append(x)
        return x, maps


def _band_layers(width: int, generator: Generator | None) -> _Layers:
    """Five layers of 3 frames; the middle three halve the frequencies."""
    first = _conv(2, width, (3, 9), generator=generator)
    halving = [_conv(width, width, (3, 9), stride=(1, 2), generator=generator) for _ in range(3)]
    return _Layers([first, *halving, _conv(width, width, (3, 3), generator=generator)])


def _conv(
    inputs: int,
    outputs: int,
    kernel: tuple[int, int],
    *,
    stride: tuple[int, int] = (1, 1),
    generator: Generator | None,
) -> nn.Module:
    """Weight-normalised convolution, padded by half its kernel; torch's usual initial law."""
    padding = (kernel[0] // 2, kernel[1] // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding)
    bound = conv.weight[0].numel() ** -0.5
    nn.init.uniform_(conv.weight, -bound, bound, generator=generator)
    if conv.bias is not None:
        nn.init.uniform_(conv.bias, -bound, bound, generator=generator)
    return weight_norm(conv)


def _judged(critics: Iterable[nn.Module], signal_BS: Tensor) -> Judgement:
    said = Judgement([], [])
    for critic in critics:
        logits, maps = critic(signal_BS)
        said.logits.append(logits)
        said.maps.extend(maps)
    return said


def _check_length(signal_BS: Tensor, shortest: int, *, critic: str) -> None:
    if signal_BS.shape[-1] < shortest:
        raise ValueError(
            f"the {critic} critic saw {signal_BS.shape[-1]} samples, but needs {shortest} or more;"
            " use longer signals"
        )
