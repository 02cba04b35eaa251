"""The speech codec against the paper's size and an independent peer; streams against wholes."""

from collections.abc import Sequence
from dataclasses import replace
from math import pi

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from latentlm.codec.causal import CausalConv, CausalUpsampling, ConvNeXtBlock, ScaledRMSNorm
from latentlm.codec.speech_conv import SpeechConvCodec
from latentlm.randomness import RowNoise
from latentlm.settings import (
    DiagonalGaussianVariance,
    FixedVariance,
    HalfNormalVariance,
    SpeechCodecSettings,
)

SMALL = SpeechCodecSettings(
    channels=4,
    strides=(2, 3),
    depths=(1, 2, 1),
    latent_width=5,
    variance=HalfNormalVariance(c_sigma=0.1),
)
PAPER = SpeechCodecSettings(latent_width=32, variance=HalfNormalVariance())
HOP = 6


def lively(settings: SpeechCodecSettings = SMALL) -> SpeechConvCodec:
    """A codec whose every parameter matters: scales near 1e-6 would hide the blocks."""
    codec = SpeechConvCodec(settings, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in codec.named_parameters():
        if parameter.ndim == 1:
            offset = 1.0 if "norm" in name else 0.0
            drawn = offset + 0.3 * torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(drawn)
    return codec.eval()


def noise_like(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("strides", "latent_width", "hop"),
    [((2, 4, 5, 5, 8), 32, 1600), ((4, 4, 5, 5, 8), 64, 3200), ((4, 5, 5, 8, 8), 128, 6400)],
)
def test_the_papers_encoders_have_120_million_parameters(
    strides: tuple[int, ...], latent_width: int, hop: int
) -> None:
    with torch.device("meta"):
        codec = SpeechConvCodec(replace(PAPER, strides=strides, latent_width=latent_width))
    count = sum(parameter.numel() for parameter in codec.encoder.parameters())
    assert count == pytest.approx(120e6, rel=0.01)
    assert codec.hop == hop
    decoder = sum(parameter.numel() for parameter in codec.decoder.parameters())
    assert decoder == pytest.approx(count, rel=0.01)


def parts_of_the_peer(side: nn.Module) -> list[nn.Module]:
    """The peer's layers in order of use, as ours are."""
    parts = [side.stem.conv.conv, *side.stem.stage]
    for layer in side.conv_layers:
        parts.append(layer.conv.conv if hasattr(layer, "conv") else layer.convtr.convtr)
        parts.extend(layer.stage)
    return [*parts, side.head.conv]


def give_weights(ours: nn.Module, theirs: nn.Module) -> None:
    if isinstance(ours, ConvNeXtBlock):
        pairs = [
            (theirs.norm.weight, ours.conv_norm.weight),
            (theirs.mixer.conv.weight, ours.conv.weight.squeeze(1)),
            (theirs.mixer.conv.bias, ours.conv.bias),
            (theirs.gamma, ours.conv_scale),
            (theirs.ffn_norm.weight, ours.ffn_norm.weight),
            (theirs.ffn.linear1.weight, ours.ffn_in.weight.T),
            (theirs.ffn.linear1.bias, ours.ffn_in.bias),
            (theirs.ffn.linear2.weight, ours.ffn_out.weight),
            (theirs.ffn.linear2.bias, ours.ffn_out.bias),
            (theirs.ffn_gamma, ours.ffn_scale),
        ]
    elif isinstance(ours, CausalConv):
        pairs = [(theirs.weight, ours.weight.transpose(1, 2)), (theirs.bias, ours.bias)]
    else:
        assert isinstance(ours, CausalUpsampling)
        kernels = ours.weight.flatten(1, 2).transpose(1, 2)  # inputs, outputs, kernel
        pairs = [(theirs.weight, kernels), (theirs.bias, ours.bias)]
    assert len(pairs) == len(list(ours.parameters()))
    with torch.no_grad():
        for to, source in pairs:
            to.copy_(source)


def test_encoder_and_decoder_are_the_peers() -> None:
    """transformers' VibeVoice tokenizer is an independent writing of the same architecture."""
    transformers = pytest.importorskip("transformers")
    ours = lively()
    config = transformers.VibeVoiceAcousticTokenizerConfig(
        hidden_size=5, num_filters=4, downsampling_ratios=[2, 3], depths=[1, 2, 1]
    )
    peer = transformers.VibeVoiceAcousticTokenizerModel(config).eval()
    for one, other in ((ours.encoder, peer.encoder), (ours.decoder, peer.decoder)):
        for mine, theirs in zip(one.layers, parts_of_the_peer(other), strict=True):
            give_weights(mine, theirs)
    signal, latents_BNZ = noise_like(2, 20 * HOP), noise_like(2, 20, 5)
    with torch.no_grad():
        wanted_BNZ = peer.encode(signal.unsqueeze(1), sample=False).latents
        wanted = peer.decode(latents_BNZ).audio.squeeze(1)
        assert wanted.shape == (2, 20 * HOP)
        assert torch.allclose(ours.encode(signal).mean_BNZ, wanted_BNZ, atol=1e-5)
        assert torch.allclose(ours.decode(latents_BNZ), wanted, atol=1e-5)
    assert float(wanted.std()) > 0.1
    assert float(wanted_BNZ.std()) > 0.1


def test_no_output_changes_when_the_future_does() -> None:
    codec = lively()
    signal, latents_BNZ = noise_like(1, 20 * HOP), noise_like(1, 20, 5)
    later_signal, later_BNZ = signal.clone(), latents_BNZ.clone()
    later_signal[:, 8 * HOP :] += 1.0
    later_BNZ[:, 8:] += 1.0
    changed_N = (codec.encode(signal).mean_BNZ != codec.encode(later_signal).mean_BNZ).any(-1)[0]
    changed_S = (codec.decode(latents_BNZ) != codec.decode(later_BNZ))[0]
    assert not changed_N[:8].any()
    assert bool(changed_N[8])
    assert not changed_S[: 8 * HOP].any()
    assert bool(changed_S[8 * HOP])


lengths = st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(lambda pieces: sum(pieces) > 0)
few = hypothesis_settings(deadline=None, max_examples=25, derandomize=True)


@few
@given(pieces=lengths)
def test_decoding_in_any_pieces_is_decoding_the_whole(pieces: list[int]) -> None:
    codec = lively()
    latents_BNZ = noise_like(2, sum(pieces), 5)
    stream = codec.stream_decoder(2)
    joined = torch.cat([stream.push(piece) for piece in latents_BNZ.split(pieces, dim=1)], dim=1)
    assert torch.allclose(joined, codec.decode(latents_BNZ), atol=1e-5)


@few
@given(pieces=lengths, kind=st.sampled_from([SMALL.variance, DiagonalGaussianVariance()]))
def test_encoding_in_any_pieces_is_encoding_the_whole(
    pieces: list[int], kind: HalfNormalVariance | DiagonalGaussianVariance
) -> None:
    codec = lively(replace(SMALL, variance=kind))
    signal = noise_like(2, sum(pieces))
    stream = codec.stream_encoder(2)
    found = [stream.push(piece) for piece in signal.split(pieces, dim=1)]
    assert sum(part.mean_BNZ.shape[1] for part in found) == sum(pieces) // HOP
    found.append(stream.flush())
    whole = codec.encode(signal)
    assert whole.mean_BNZ.shape[1] == codec.latents_in(sum(pieces))
    assert torch.allclose(torch.cat([part[0] for part in found], 1), whole.mean_BNZ, atol=1e-5)
    if whole.std_BNZ is not None:
        stds = [part.std_BNZ for part in found if part.std_BNZ is not None]
        assert torch.allclose(torch.cat(stds, 1), whole.std_BNZ, atol=1e-5)


@pytest.mark.parametrize("pieces", [[1] * 12, [5, 1, 6], [3, 9]])
def test_streams_compute_nothing_twice(pieces: Sequence[int]) -> None:
    codec = lively()
    latents_BNZ, signal = noise_like(1, 12, 5), noise_like(1, 12 * HOP)
    with FlopCounterMode(display=False) as wholes, torch.no_grad():
        codec.decode(latents_BNZ)
        codec.encode(signal)
    decoder, encoder = codec.stream_decoder(1), codec.stream_encoder(1)
    with FlopCounterMode(display=False) as streams:
        for piece in latents_BNZ.split(list(pieces), dim=1):
            decoder.push(piece)
        for piece in signal.split([HOP * count for count in pieces], dim=1):
            encoder.push(piece)
    assert streams.get_total_flops() == wholes.get_total_flops() > 0


def test_a_stream_does_not_keep_its_chunks_in_memory() -> None:
    codec = lively()
    stream = codec.stream_decoder(1)
    stream.push(noise_like(1, 100, 5))
    kept = [tensor.untyped_storage().nbytes() // 4 for tensor in stream._past.values()]
    assert len(kept) == 2 + 4 + 2  # two dense convolutions, four blocks, two upsamplings
    assert max(kept) <= (SMALL.kernel - 1) * 16


def test_a_part_of_a_hop_is_filled_with_zeros() -> None:
    codec = lively()
    signal = noise_like(2, 3 * HOP + 1)
    padded = torch.cat((signal, torch.zeros(2, HOP - 1)), dim=1)
    assert torch.equal(codec.encode(signal).mean_BNZ, codec.encode(padded).mean_BNZ)
    assert [codec.latents_in(samples) for samples in (1, HOP, HOP + 1)] == [1, 1, 2]


@pytest.mark.parametrize(
    "variance", [SMALL.variance, FixedVariance(sigma=0.2), DiagonalGaussianVariance()]
)
def test_forward_is_encode_draw_decode(
    variance: HalfNormalVariance | FixedVariance | DiagonalGaussianVariance,
) -> None:
    codec = lively(replace(SMALL, variance=variance))
    signal, noise = noise_like(2, 4 * HOP + 2), RowNoise(seed=3, ids_B=torch.arange(2))
    reconstruction, posterior, latents_BNZ = codec(signal, noise=noise)
    again = codec.encode(signal)
    assert torch.equal(posterior.mean_BNZ, again.mean_BNZ)
    assert (posterior.std_BNZ is None) == (variance != DiagonalGaussianVariance())
    assert torch.equal(latents_BNZ, codec.draw(again, noise=noise))
    assert latents_BNZ.shape == (2, 5, codec.latent_width)
    assert reconstruction.shape == signal.shape
    assert torch.equal(reconstruction, codec.decode(latents_BNZ)[:, : 4 * HOP + 2])
    reconstruction.square().mean().backward()
    assert all(bool(parameter.grad.any()) for parameter in codec.parameters())


def test_predicted_deviations_are_those_of_the_log_variance() -> None:
    codec = lively(replace(SMALL, variance=DiagonalGaussianVariance()))
    head = codec.encoder.layers[-1]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.arange(10.0))
    mean_BNZ, std_BNZ = codec.encode(noise_like(1, HOP))
    assert std_BNZ is not None
    assert torch.equal(mean_BNZ[0, 0], torch.arange(5.0))
    assert torch.allclose(std_BNZ[0, 0] ** 2, torch.arange(5.0, 10.0).exp())
    none_yet = codec.stream_encoder(1).push(noise_like(1, HOP - 1))
    assert none_yet.std_BNZ is not None
    assert none_yet.mean_BNZ.shape == none_yet.std_BNZ.shape == (1, 0, 5)
    assert lively().stream_encoder(1).push(noise_like(1, HOP - 1)).std_BNZ is None


def test_a_tiny_codec_learns_a_chord() -> None:
    settings = replace(SMALL, channels=8, strides=(2, 4), depths=(1, 1, 1), latent_width=16)
    settings = replace(settings, variance=FixedVariance(sigma=0.02))
    codec = SpeechConvCodec(settings, generator=torch.Generator().manual_seed(0))
    seconds_S = torch.arange(800) / 8000
    tones = [(2 * pi * hertz * seconds_S).sin() for hertz in (220.0, 550.0, 1310.0)]
    signal = 0.3 * torch.stack(tones).sum(0, keepdim=True)
    optimizer = torch.optim.AdamW(codec.parameters(), lr=5e-3)
    for step in range(100):
        noise = RowNoise(seed=0, ids_B=torch.arange(1), epochs_B=step)
        loss = (codec(signal, noise=noise)[0] - signal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05 * float(signal.var())


def test_initial_layers_keep_variance_and_follow_the_generator() -> None:
    settings = replace(SMALL, channels=64, latent_width=64)
    first, second, other = (
        SpeechConvCodec(settings, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.last_weight, second.last_weight)
    assert not torch.equal(first.last_weight, other.last_weight)
    signal, latents_BNZ = noise_like(1, 200 * HOP), noise_like(1, 200, 64)
    with torch.no_grad():
        assert float(first.encode(signal).mean_BNZ.std()) == pytest.approx(1.0, rel=0.2)
        assert float(first.decode(latents_BNZ).std()) == pytest.approx(1.0, rel=0.3)


def test_norms_are_computed_in_full_precision() -> None:
    norm = ScaledRMSNorm(64)
    norm.weight.data.uniform_(0.5, 2.0)
    x_BTW = noise_like(1, 3, 64) * 100
    exact = norm(x_BTW.bfloat16().float())
    assert torch.equal(norm(x_BTW.bfloat16()), exact.bfloat16())


def test_statistics_travel_with_the_weights() -> None:
    codec, other = lively(), lively()
    latents_BNZ = noise_like(4, 16, 5) * 3 + 2
    for move in (codec.normalise, codec.denormalise):
        with pytest.raises(ValueError, match="no latent statistics"):
            move(latents_BNZ)
    with pytest.raises(ValueError, match="cannot normalise"):
        codec.set_statistics(mean=0.0, std=0.0)
    codec.set_statistics(mean=2.0, std=3.0)
    other.load_state_dict(codec.state_dict())
    assert torch.allclose(other.normalise(latents_BNZ), (latents_BNZ - 2) / 3)
    assert torch.allclose(other.denormalise(other.normalise(latents_BNZ)), latents_BNZ, atol=1e-5)


def test_wrong_shapes_are_named() -> None:
    codec = lively()
    with pytest.raises(ValueError, match=r"\(2, 1, 60\).*takes \(B, S\)"):
        codec.encode(torch.zeros(2, 1, 60))
    with pytest.raises(ValueError, match=r"\(1, 5, 16\).*decodes \(B, N, 5\)"):
        codec.decode(torch.zeros(1, 5, 16))
    with pytest.raises(ValueError, match="3 rows were pushed into a stream of 2"):
        codec.stream_decoder(2).push(torch.zeros(3, 1, 5))
    with pytest.raises(ValueError, match="before any push"):
        codec.stream_encoder(2).flush()
