"""Row: the speech codec's decoder as a stream, one latent at a time (§3.3)."""

from collections.abc import Iterator

import torch

from latentlm.settings import FixedVariance, SpeechCodecSettings
from latentlm_platform.benchmarks.harness import Agreement, Case, distance

TOLERANCE = 1e-4
BAR = 1.0


def cases(*, quick: bool) -> Iterator[Case]:
    """A voice (batch 1) and eight at once; the paper's strides, fewer channels when quick."""
    channels, latents = (8, 4) if quick else (32, 4)
    for batch in (1, 8):
        yield case(channels=channels, batch=batch, latents=latents)


def case(
    *,
    channels: int,
    batch: int,
    latents: int,
    depths: tuple[int, ...] = (3, 3, 3, 3, 3, 12),
    strides: tuple[int, ...] = (2, 4, 5, 5, 8),
) -> Case:
    """`latents` latents of 64 numbers, pushed one by one through both decoders."""
    from latentlm_platform.benchmarks.peers_acoustic import AcousticPeer

    torch.manual_seed(0)
    settings = SpeechCodecSettings(
        channels=channels,
        strides=strides,
        depths=depths,
        latent_width=64,
        variance=FixedVariance(),
    )
    peer = AcousticPeer(settings)
    codec = peer.same_weights()
    latents_BNZ = torch.randn(batch, latents, settings.latent_width)

    @torch.inference_mode()
    def ours() -> torch.Tensor:
        stream = codec.stream_decoder(batch)
        return torch.cat([stream.push(one) for one in latents_BNZ.split(1, dim=1)], dim=1)

    sizes = {"channels": channels, "strides": strides, "depths": depths, "batch": batch}
    return Case(
        name=f"{channels} channels, batch {batch}",
        sizes={**sizes, "latents": latents, "peer": "transformers VibeVoiceAcousticTokenizer"},
        ours=ours,
        peer=lambda: peer.stream(latents_BNZ),
        gate=lambda: Agreement(distance(ours(), peer.stream(latents_BNZ)), TOLERANCE),
        bar=BAR,
    )
