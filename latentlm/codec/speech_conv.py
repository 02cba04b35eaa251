"""σ-VAE for speech (§3.3): causal ConvNeXt on both sides of one latent for every `hop` samples.

In: signals (B, S), mono fp32 in [-1, 1]. Out: latents (B, N, Z), N = ⌈S / hop⌉, and signals again.
A signal that is no multiple of the hop gets zeros at its end. Latent n sees no sample after its
own, sample s no latent after its own, so both directions also run as streams.
"""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from latentlm.codec import sigma
from latentlm.codec.causal import (
    CausalChain,
    CausalConv,
    CausalUpsampling,
    ConvNeXtBlock,
    Past,
    initialise,
)
from latentlm.codec.contract import LatentPosterior
from latentlm.codec.image_vit import LOG_VARIANCE_RANGE
from latentlm.codec.statistics import LatentStatistics
from latentlm.randomness import RowNoise
from latentlm.settings import DiagonalGaussianVariance, SpeechCodecSettings


class SpeechConvCodec(LatentStatistics):
    """The speech codec. Weights are drawn from `generator`, by default torch's global one.

    With 32 channels and blocks 3-3-3-3-3-12 the encoder has the paper's 120M parameters.
    """

    def __init__(
        self, settings: SpeechCodecSettings, *, generator: Generator | None = None
    ) -> None:
        super().__init__()
        self.settings = settings
        self.encoder = CausalChain(_encoder_layers(settings))
        self.decoder = CausalChain(_decoder_layers(settings))
        initialise(self, generator)

    @property
    def latent_width(self) -> int:
        return self.settings.latent_width

    @property
    def hop(self) -> int:
        """Samples for each latent."""
        return self.settings.hop

    @property
    def last_weight(self) -> Tensor:
        """The weight nearest the samples, where gradients of loss terms are compared."""
        return self.decoder.layers[-1].get_parameter("weight")

    def latents_in(self, samples: int) -> int:
        """N of a signal of so many samples: the last latent may be part of one."""
        return -(-samples // self.hop)

    def encode(self, signal: Tensor) -> LatentPosterior:
        """Posterior of signals (B, S) in [-1, 1], zeros added up to whole hops; deterministic."""
        _check_signal(signal)
        missing = -signal.shape[1] % self.hop
        return self._posterior(F.pad(signal, (0, missing)), None)

    def draw(self, posterior: LatentPosterior, *, noise: RowNoise) -> Tensor:
        """Latents (B, N, Z) by the codec's own variance law (Eq. 5)."""
        return sigma.draw(posterior, variance=self.settings.variance, noise=noise)

    def decode(self, latents_BNZ: Tensor) -> Tensor:
        """Signals (B, N · hop), about [-1, 1] but not clamped."""
        return self._signal(latents_BNZ, None)

    def forward(self, signal: Tensor, *, noise: RowNoise) -> tuple[Tensor, LatentPosterior, Tensor]:
        """(reconstruction as long as the signal, posterior, latents), for training."""
        posterior = self.encode(signal)
        latents_BNZ = self.draw(posterior, noise=noise)
        return self.decode(latents_BNZ)[:, : signal.shape[1]], posterior, latents_BNZ

    def stream_encoder(self, batch: int) -> "SpeechEncoderStream":
        """An encoder of `batch` signals that arrive in pieces."""
        return SpeechEncoderStream(self, batch=batch)

    def stream_decoder(self, batch: int) -> "SpeechDecoderStream":
        """A decoder of `batch` rows of latents that arrive in pieces."""
        return SpeechDecoderStream(self, batch=batch)

    def _posterior(self, signal: Tensor, past: Past | None) -> LatentPosterior:
        """Posterior of whole hops after `past`."""
        predicts_std = isinstance(self.settings.variance, DiagonalGaussianVariance)
        if not signal.shape[1]:
            empty_BNZ = signal.new_empty(len(signal), 0, self.latent_width)
            return LatentPosterior(empty_BNZ, empty_BNZ if predicts_std else None)
        latents_BNZ = self.encoder(signal.unsqueeze(-1), past)
        if not predicts_std:
            return LatentPosterior(latents_BNZ)
        mean_BNZ, log_variance_BNZ = latents_BNZ.chunk(2, dim=-1)
        return LatentPosterior(mean_BNZ, (0.5 * log_variance_BNZ.clamp(*LOG_VARIANCE_RANGE)).exp())

    def _signal(self, latents_BNZ: Tensor, past: Past | None) -> Tensor:
        """Samples of latents after `past`."""
        if latents_BNZ.ndim != 3 or latents_BNZ.shape[2] != self.latent_width:
            raise ValueError(
                f"the latents have shape {tuple(latents_BNZ.shape)}, but this codec decodes"
                f" (B, N, {self.latent_width}); use the codec that the latents or the model were"
                " made with"
            )
        if not latents_BNZ.shape[1]:
            return latents_BNZ.new_empty(len(latents_BNZ), 0)
        return self.decoder(latents_BNZ, past).squeeze(-1)


class SpeechDecoderStream:
    """Decodes latents as they come: the pieces, joined, are what `decode` gives for the whole.

    Keeps what each convolution still needs of the past and computes nothing twice. No gradients.
    """

    def __init__(self, codec: SpeechConvCodec, *, batch: int) -> None:
        self._codec, self._batch = codec, batch
        self._past: Past = {}

    @torch.no_grad()  # a graph would grow for as long as the stream runs
    def push(self, latents_BNZ: Tensor) -> Tensor:
        """The next N latents of every row → their N · hop samples, at once."""
        _check_rows(latents_BNZ, self._batch)
        return self._codec._signal(latents_BNZ, self._past)


class SpeechEncoderStream:
    """Encodes samples as they come: the posteriors, joined, are what `encode` gives for the whole.

    Samples wait until their hop is full; `flush` fills the last one with zeros. No gradients.
    """

    def __init__(self, codec: SpeechConvCodec, *, batch: int) -> None:
        self._codec, self._batch = codec, batch
        self._past: Past = {}
        self._waiting: Tensor | None = None

    @torch.no_grad()
    def push(self, signal: Tensor) -> LatentPosterior:
        """The next samples (B, S) → posteriors of the hops that they fill; there may be none."""
        _check_rows(signal, self._batch)
        if self._waiting is not None:
            signal = torch.cat((self._waiting, signal), dim=1)
        full = signal.shape[1] - signal.shape[1] % self._codec.hop
        self._waiting = signal[:, full:].clone()
        return self._codec._posterior(signal[:, :full], self._past)

    def flush(self) -> LatentPosterior:
        """The posterior of samples that still wait, N = 1 or 0. It ends the signals."""
        if self._waiting is None:
            raise ValueError("flush() came before any push(); push the signal first")
        missing = -self._waiting.shape[1] % self._codec.hop
        return self.push(self._waiting.new_zeros(self._batch, missing))


def _encoder_layers(settings: SpeechCodecSettings) -> Iterator[nn.Module]:
    """Stem, blocks with a downsampling between stages, head to Z numbers or 2 Z with deviations."""
    kernel, widths = settings.kernel, _widths(settings)
    yield CausalConv(1, widths[0], kernel=kernel)
    for stage, (width, depth) in enumerate(zip(widths, settings.depths, strict=True)):
        if stage:
            stride = settings.strides[stage - 1]
            yield CausalConv(widths[stage - 1], width, kernel=2 * stride, stride=stride)
        yield from (ConvNeXtBlock(width, kernel=kernel) for _ in range(depth))
    outputs = 2 if isinstance(settings.variance, DiagonalGaussianVariance) else 1
    yield CausalConv(widths[-1], outputs * settings.latent_width, kernel=kernel)


def _decoder_layers(settings: SpeechCodecSettings) -> Iterator[nn.Module]:
    """The encoder's mirror: stem from Z numbers, stages from wide to narrow, head to samples."""
    kernel, widths = settings.kernel, _widths(settings)
    yield CausalConv(settings.latent_width, widths[-1], kernel=kernel)
    for stage in reversed(range(len(widths))):
        yield from (
            ConvNeXtBlock(widths[stage], kernel=kernel) for _ in range(settings.depths[stage])
        )
        if stage:
            stride = settings.strides[stage - 1]
            yield CausalUpsampling(widths[stage], widths[stage - 1], stride=stride)
    yield CausalConv(widths[0], 1, kernel=kernel)


def _widths(settings: SpeechCodecSettings) -> list[int]:
    return [settings.channels * 2**stage for stage in range(len(settings.depths))]


def _check_signal(signal: Tensor) -> None:
    if signal.ndim != 2 or not signal.shape[1]:
        raise ValueError(
            f"the signal has shape {tuple(signal.shape)}, but this codec takes (B, S) mono samples,"
            " S at least 1; average the channels and drop their dimension"
        )


def _check_rows(pushed: Tensor, batch: int) -> None:
    if len(pushed) != batch:
        raise ValueError(
            f"{len(pushed)} rows were pushed into a stream of {batch};"
            " open a stream for every batch size"
        )
