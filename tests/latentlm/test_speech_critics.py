"""The speech critics: DAC's shapes and sizes, what they may not see, and the least-squares game."""

import pytest
import torch
from torch import Tensor, nn

from latentlm.codec.contract import LatentPosterior
from latentlm.codec.mel import MultiScaleMel
from latentlm.codec.speech_critics import (
    BANDS,
    Judgement,
    MultiBandSTFTCritic,
    MultiPeriodCritic,
    SpeechCritic,
    levelled,
)
from latentlm.codec.speech_objectives import (
    SpeechCodecLoss,
    critic_loss,
    feature_matching,
    generator_loss,
)
from latentlm.settings import HalfNormalVariance

VARIANCE = HalfNormalVariance()


def some_signal(seed: int = 0, samples: int = 2048, rows: int = 2) -> Tensor:
    return 0.2 * torch.randn(rows, samples, generator=torch.Generator().manual_seed(seed))


def small(kind: type[nn.Module]) -> nn.Module:
    return kind(width=2, generator=torch.Generator().manual_seed(0))


def effective_weights(critic: nn.Module) -> list[tuple[int, ...]]:
    """Shapes of the convolutions' weights as they act, without the norm's parametrisation."""
    return [tuple(part.weight.shape) for part in critic.modules() if isinstance(part, nn.Conv2d)]


def test_shapes_are_dacs() -> None:
    with torch.device("meta"):
        periods, spectra = MultiPeriodCritic(), MultiBandSTFTCritic()
    widths = [(32, 1), (128, 32), (512, 128), (1024, 512), (1024, 1024)]
    one_period = [(*pair, 5, 1) for pair in widths] + [(1, 1024, 3, 1)]
    assert effective_weights(periods) == one_period * 5
    band = [(32, 2, 3, 9)] + [(32, 32, 3, 9)] * 3 + [(32, 32, 3, 3)]
    assert effective_weights(spectra) == (band * 5 + [(1, 32, 3, 3)]) * 3


def test_initial_weights_are_torchs_law_from_the_generator() -> None:
    first, second = small(SpeechCritic), small(SpeechCritic)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    conv = MultiPeriodCritic((2,), width=8).critics[0].body.layers[4]
    bound = (256 * 5) ** -0.5
    weight = conv.weight.detach()
    assert float(weight.abs().max()) == pytest.approx(bound, rel=0.01)
    assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.01)


def test_whole_periods_are_not_padded() -> None:
    """12 samples in periods of 3 are 4 rows; DAC's own padding would make them 5."""
    critic = MultiPeriodCritic((3,), width=2)
    for samples, rows in [(12, 4), (13, 5), (15, 5)]:
        seen: list[Tensor] = []
        hook = (
            critic.critics[0]
            .body.layers[0]
            .register_forward_pre_hook(lambda _, x, s=seen: s.append(x[0]))
        )
        critic(some_signal(samples=samples))
        hook.remove()
        assert seen[0].shape == (2, 1, rows, 3)
        assert torch.equal(seen[0].flatten(1)[:, :samples], levelled(some_signal(samples=samples)))


def test_a_period_critic_compares_samples_a_period_apart() -> None:
    critic = MultiPeriodCritic((3,), width=2, generator=torch.Generator().manual_seed(0))
    x = some_signal(samples=243, rows=1).view(1, 1, 81, 3).requires_grad_()
    y = critic.critics[0].head(critic.critics[0].body(x)[0])
    y[0, 0, 0, 1].backward()
    assert x.grad is not None
    assert x.grad.abs().sum((0, 1, 2)).bool().tolist() == [False, True, False]


def test_the_spectrum_is_an_stft_of_mirrored_frames() -> None:
    critic = MultiBandSTFTCritic((64,), width=2)
    signal = some_signal(samples=200)
    spectrum = critic.critics[0].spectrum(signal)
    assert spectrum.shape == (2, 2, 13, 33)  # ⌈200 / 16⌉ frames, 33 frequencies
    mirrored = torch.cat((signal[:, 1:25].flip(1), signal, signal[:, -33:-1].flip(1)), dim=1)
    taper = 0.5 - 0.5 * torch.cos(2 * torch.pi * torch.arange(64) / 64)
    for frame in (0, 1, 7, 12):
        wanted = torch.fft.rfft(mirrored[:, 16 * frame : 16 * frame + 64] * taper)
        assert torch.allclose(spectrum[:, 0, frame], wanted.real, atol=1e-5)
        assert torch.allclose(spectrum[:, 1, frame], wanted.imag, atol=1e-5)


def test_bands_cover_every_frequency_once_and_see_no_other() -> None:
    critic = MultiBandSTFTCritic((512,), width=2, generator=torch.Generator().manual_seed(0))
    widths: list[int] = []
    for stack in critic.critics[0].stacks:
        stack.layers[0].register_forward_pre_hook(lambda _, x: widths.append(x[0].shape[-1]))
    said = critic(some_signal())
    assert [pair[0] for pair in BANDS[1:]] == [pair[1] for pair in BANDS[:-1]]
    assert sum(widths) == 257
    assert widths == [25, 39, 64, 64, 65]
    assert said.logits[0].shape == (2, 1, 16, 4 + 5 + 8 + 8 + 9)  # three halvings, rounded up


def test_neither_loudness_nor_offset_nor_the_other_rows_matter() -> None:
    critic, signal = small(SpeechCritic), some_signal()
    said = critic(signal)
    for other in (signal * 3.0, signal + 0.5, -0.1 + 0.2 * signal):
        for one, another in zip(said.logits, critic(other).logits, strict=True):
            assert torch.allclose(one, another, atol=1e-4)
    alone = critic(signal[1:])
    for one, another in zip(said.maps, alone.maps, strict=True):
        assert torch.allclose(one[1:], another, atol=1e-5)
    level = levelled(signal + 7.0)
    assert torch.allclose(level.mean(-1), torch.zeros(2), atol=1e-5)
    assert torch.allclose(level.abs().amax(-1), torch.full((2,), 0.8))
    assert not levelled(torch.zeros(1, 9)).any()


def test_logits_and_maps_are_counted() -> None:
    said = small(SpeechCritic)(some_signal())
    assert len(said.logits) == 5 + 3
    assert len(said.maps) == 5 * 5 + 3 * 5 * 5
    assert all(logits.shape[:2] == (2, 1) for logits in said.logits)


def test_signals_too_short_are_refused_and_the_shortest_pass() -> None:
    spectra, periods = small(MultiBandSTFTCritic), small(MultiPeriodCritic)
    for samples in (1280, 1281, 1535, 1536):
        assert len(spectra(some_signal(samples=samples)).logits) == 3
    with pytest.raises(ValueError, match="needs 1280 or more"):
        spectra(some_signal(samples=1279))
    for samples in (11, 12):
        assert len(periods(some_signal(samples=samples)).logits) == 5
    with pytest.raises(ValueError, match="needs 11 or more"):
        periods(some_signal(samples=10))


def test_least_squares_losses_are_their_formulas() -> None:
    def critic(signal: Tensor) -> Judgement:
        return Judgement([signal.mean(-1), 2 * signal], [signal])

    real, rebuilt = torch.tensor([[0.5, 1.0]]), torch.tensor([[0.25, -0.5]], requires_grad=True)
    found = critic_loss(critic, signal=real, reconstruction=rebuilt)
    wanted = 0.25**2 + (0.0 + 1.0) / 2 + 0.125**2 + (0.5**2 + 1.0) / 2
    assert float(found) == pytest.approx(wanted)
    assert not found.requires_grad  # x̂ is detached
    fooled = generator_loss(critic(rebuilt))
    assert float(fooled.detach()) == pytest.approx(1.125**2 + (0.5**2 + 2.0**2) / 2)
    matched = feature_matching(real=critic(real), rebuilt=critic(rebuilt))
    assert float(matched.detach()) == pytest.approx((0.25 + 1.5) / 2)
    assert float(feature_matching(real=critic(real), rebuilt=critic(real))) == 0.0


def speech_loss(**weights: float) -> SpeechCodecLoss:
    mel = MultiScaleMel(sample_rate_hz=24_000)
    return SpeechCodecLoss(variance=VARIANCE, mel=mel, beta=0.1, **weights)


def test_the_total_is_the_weighted_sum_and_critics_join_at_their_step() -> None:
    loss = speech_loss(waveform_weight=3.0, adversarial_start_step=10)
    critic, signal = small(SpeechCritic), some_signal()
    rebuilt = some_signal(1).requires_grad_()
    posterior = LatentPosterior(torch.randn(2, 4, 5))
    early = loss.terms(signal, rebuilt, posterior=posterior, step=9)
    assert float(early.adversarial) == float(early.features) == 0.0
    late = loss.terms(signal, rebuilt, posterior=posterior, step=10, critic=critic)
    total = 15 * late.mel + 3 * late.waveform + 0.1 * late.regulariser
    total = total + 2 * late.features + late.adversarial
    assert torch.allclose(late.total, total)
    assert torch.allclose(late.adversarial, generator_loss(critic(rebuilt)))
    assert float(late.features.detach()) > 0
    for term in (late.mel, late.waveform, late.features, late.adversarial):
        (gradient,) = torch.autograd.grad(term, rebuilt, retain_graph=True)
        assert bool(gradient.any())
    with pytest.raises(ValueError, match="needs critic="):
        loss.terms(signal, rebuilt, posterior=posterior, step=10)
    without = speech_loss(adversarial_weight=0.0, feature_weight=0.0)
    assert not without.adversarial_at(10**6)


def test_equal_shards_average_to_the_batch() -> None:
    loss, critic = speech_loss(waveform_weight=1.0), small(SpeechCritic)
    signal, rebuilt = some_signal(0, rows=4), some_signal(1, rows=4)
    mean_BNZ = torch.randn(4, 3, 5)

    def total(part: slice) -> Tensor:
        posterior = LatentPosterior(mean_BNZ[part])
        return loss.terms(
            signal[part], rebuilt[part], posterior=posterior, step=0, critic=critic
        ).total

    shards = torch.stack([total(slice(0, 2)), total(slice(2, 4))])
    assert torch.allclose(shards.mean(), total(slice(0, 4)), rtol=1e-4)


def test_critics_learn_to_tell_noise_from_tones() -> None:
    critic = small(MultiPeriodCritic)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=3e-3, betas=(0.8, 0.99))
    phases = torch.arange(4)[:, None] + torch.arange(2048) * 0.1
    losses = []
    for step in range(30):
        loss = critic_loss(critic, signal=phases.sin(), reconstruction=some_signal(step, rows=4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
