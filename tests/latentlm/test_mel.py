"""The mel distance against numpy's FFT and torchaudio's filters, and the laws of a distance."""

import numpy as np
import pytest
import torch
from scipy.signal import get_window
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from latentlm.codec.mel import MELS, WINDOWS, MultiScaleMel, slaney_filters

RATE_HZ = 24_000


def some_signal(seed: int = 0, samples: int = 5000) -> Tensor:
    return 0.3 * torch.randn(2, samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rate_hz", [16_000, RATE_HZ])
@pytest.mark.parametrize(("window", "bands"), zip(WINDOWS, MELS, strict=True))
def test_filters_are_torchaudios_slaney_filters(window: int, bands: int, rate_hz: int) -> None:
    peer = melscale_fbanks(
        window // 2 + 1, 0.0, rate_hz / 2, bands, rate_hz, norm="slaney", mel_scale="slaney"
    )
    ours = slaney_filters(window, bands=bands, sample_rate_hz=rate_hz).float()
    assert torch.allclose(ours, peer, atol=1e-4 * float(peer.max()))


def reference_distance(first: np.ndarray, second: np.ndarray) -> float:
    """The distance of two batches, frame by frame in fp64."""
    total = 0.0
    for window, bands in zip(WINDOWS, MELS, strict=True):
        filters = slaney_filters(window, bands=bands, sample_rate_hz=RATE_HZ).numpy()
        taper = get_window("hann", window)
        logs = []
        for batch in (first, second):
            padded = np.pad(batch, ((0, 0), (window // 2, window // 2)), mode="reflect")
            starts = range(0, padded.shape[1] - window + 1, window // 4)
            frames = np.stack([padded[:, start : start + window] for start in starts], axis=1)
            mel = np.abs(np.fft.rfft(frames * taper)) @ filters
            logs.append(np.log10(np.maximum(mel, 1e-5)))
        total += np.abs(logs[0] - logs[1]).mean()
    return total


def test_the_distance_is_numpys() -> None:
    first, second = some_signal(0), some_signal(1)
    second[:, 2000:] *= 1e-4  # below the floor of 1e-5 in the narrow bands
    found = MultiScaleMel(sample_rate_hz=RATE_HZ)(first, second)
    wanted = reference_distance(first.double().numpy(), second.double().numpy())
    assert float(found) == pytest.approx(wanted, rel=1e-4)


def test_a_tone_lands_in_its_band() -> None:
    mel = MultiScaleMel(sample_rate_hz=RATE_HZ)
    for hertz in (440.0, 3000.0):
        tone = (2 * torch.pi * hertz * torch.arange(6000) / RATE_HZ).sin()[None]
        loudest = mel.log_mels(tone)[-1].mean(1).argmax()
        centre = slaney_filters(2048, bands=320, sample_rate_hz=RATE_HZ)[:, loudest].argmax()
        assert float(centre) * RATE_HZ / 2048 == pytest.approx(hertz, abs=RATE_HZ / 2048)


def test_a_distance_is_zero_for_equals_symmetric_and_grows_with_noise() -> None:
    mel = MultiScaleMel(sample_rate_hz=RATE_HZ)
    signal, noise = some_signal(0), some_signal(1)
    assert float(mel(signal, signal)) == 0.0
    distances = [float(mel(signal + level * noise, signal)) for level in (0.01, 0.03, 0.1, 0.3, 1)]
    assert distances == sorted(distances)
    assert distances[0] > 0
    assert float(mel(noise, signal)) == pytest.approx(float(mel(signal, noise)))
    rows = [float(mel(noise[row : row + 1], signal[row : row + 1])) for row in range(2)]
    assert float(mel(noise, signal)) == pytest.approx(sum(rows) / 2, rel=1e-5)


def test_gradients_lead_to_the_signal_and_survive_silence() -> None:
    mel = MultiScaleMel(sample_rate_hz=RATE_HZ)
    signal = some_signal(0)
    guess = (signal + 0.3 * some_signal(1)).requires_grad_()
    before = mel(guess, signal)
    (gradient,) = torch.autograd.grad(before, guess)
    closer = guess.detach() - 0.02 * gradient / gradient.norm()
    assert float(mel(closer, signal)) < float(before.detach())
    silence = torch.zeros(1, 4096, requires_grad=True)
    (gradient,) = torch.autograd.grad(mel(silence, some_signal(0, 4096)[:1]), silence)
    assert bool(gradient.isfinite().all())


def test_precision_does_not_follow_autocast() -> None:
    mel = MultiScaleMel(sample_rate_hz=RATE_HZ)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = mel(some_signal(0), some_signal(1))
    assert torch.equal(inside, mel(some_signal(0), some_signal(1)))
    assert not mel.state_dict()


def test_signals_that_cannot_be_compared_are_refused() -> None:
    mel = MultiScaleMel(sample_rate_hz=RATE_HZ)
    with pytest.raises(ValueError, match="crop or pad"):
        mel(some_signal()[:, :4000], some_signal())
    with pytest.raises(ValueError, match=r"1024 samples.*needs more than 1024"):
        mel(torch.zeros(1, 1024), torch.zeros(1, 1024))
    assert float(mel(torch.zeros(1, 1025), torch.zeros(1, 1025))) == 0.0
    with pytest.raises(ValueError, match="2 windows do not fit 1"):
        MultiScaleMel(sample_rate_hz=RATE_HZ, windows=(32, 64), mels=(5,))
