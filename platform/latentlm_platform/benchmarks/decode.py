"""Row: autoregressive decoding of latents after a text prompt, guided, without the codec (§2.2)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentlm.generate import generate
from latentlm.randomness import RowNoise
from latentlm.sequence import Document, LatentSpan, TextSpan
from latentlm.settings import SamplerSettings
from latentlm_platform.benchmarks.given_noise import GivenNoise
from latentlm_platform.benchmarks.harness import Agreement, Case, distance

SCALE, VOCABULARY, LATENT_WIDTH, PROMPT = 3.0, 2048, 64, 8
TOLERANCE, GATED = 1e-3, 4  # latents are fed back, so that fp32 rounding grows along them
AS_SHIPPED, SPARED, WIDE = 1.5, 1.3, 1.2  # least ratios; wide models leave only matrix products


def cases(*, quick: bool) -> Iterator[Case]:
    """Batch 32, 20 solver steps, guidance 3, as VibeVoice decodes."""
    small: dict[str, Any] = {
        "width": 256,
        "depth": 6,
        "batch": 32,
        "latents": 8 if quick else 16,
        "steps": 20,
    }
    yield case(**small, bar=AS_SHIPPED)
    if not quick:
        yield case(**small, bar=SPARED, logits_guidance=False)
        yield case(width=512, depth=8, batch=32, latents=4, steps=20, bar=WIDE)


def case(
    *,
    width: int,
    depth: int,
    batch: int,
    latents: int,
    steps: int,
    bar: float,
    logits_guidance: bool = True,
) -> Case:
    """`latents` latents for each of `batch` prompts of 8 words and BOD."""
    from latentlm_platform.benchmarks.peers_vibevoice import VibeVoicePeer, settings_of

    torch.manual_seed(0)
    settings = settings_of(
        width=width,
        depth=depth,
        heads=width // 64,
        vocabulary=VOCABULARY,
        latent_width=LATENT_WIDTH,
        latent_count=latents,
    )
    peer = VibeVoicePeer(settings, logits_guidance=logits_guidance)
    model = peer.same_weights()
    ids_BT = torch.randint(peer.special.end, (batch, PROMPT + 1))
    ids_BT[:, -1] = peer.special.bod
    prompts: list[Document] = [(TextSpan(ids.astype(np.int64)),) for ids in ids_BT.numpy()]
    sampler = SamplerSettings(steps=steps, cfg_scale=SCALE)

    def ours(noise: RowNoise) -> Tensor:
        documents = generate(model, prompts, sampler=sampler, noise=noise, capacity=latents)
        return torch.stack([_latents(document) for document in documents])

    def gate() -> Agreement:
        noises = peer.noises(batch, seed=1)
        theirs = peer.generate(ids_BT, steps=steps, scale=SCALE, null_prefix=True)
        found = ours(GivenNoise(noises, first=PROMPT + 1))
        return Agreement(distance(found[:, :GATED], theirs[:, :GATED]), TOLERANCE)

    keyed = RowNoise(seed=0, ids_B=torch.arange(batch))
    return Case(
        name=f"width {width}, batch {batch}, {steps} steps"
        + (", 2 forwards" if not logits_guidance else ""),
        sizes={"width": width, "depth": depth, "batch": batch, "latents": latents, "steps": steps}
        | {"vocabulary": VOCABULARY, "latent_width": LATENT_WIDTH, "prompt": PROMPT + 1}
        | {"cfg_scale": SCALE, "head_depth": settings.head.depth}
        | {"head_ffn_width": settings.head.ffn_width}
        | {"logits_guidance": logits_guidance, "peer": "transformers VibeVoice, without codec"},
        ours=lambda: ours(keyed),
        peer=lambda: peer.generate(ids_BT, steps=steps, scale=SCALE),
        gate=gate,
        bar=bar,
    )


def _latents(document: Document) -> Tensor:
    (span,) = document
    if not isinstance(span, LatentSpan):
        raise ValueError("a row gave words where the benchmark asks for latents alone")
    return torch.from_numpy(span.latents_NZ)
