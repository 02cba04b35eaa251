"""Row: one training step on packed text and latents: losses, backward, AdamW (§2.2).

The mixture is the paper's for MLLM training, by tokens: text 2, pairs 1, interleaved pages 1.
Ours runs each head only where it has something to predict, the peer runs both everywhere.
"""

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from latentlm.diffusion.timesteps import draw_times
from latentlm.models import LatentLM, find_targets
from latentlm.randomness import Draw, RowNoise
from latentlm.sequence import (
    LATENT,
    Document,
    LatentSpan,
    PackedBatch,
    TextSpan,
    pack,
)
from latentlm.settings import HeadSettings, LatentLMSettings
from latentlm.vocabulary import special_ids
from latentlm_platform.benchmarks.harness import Agreement, Case, distance
from latentlm_platform.training.losses import LossLaw

if TYPE_CHECKING:
    from latentlm_platform.benchmarks.peers_llama import Draws, LlamaMarPeer

DRAWS, LENGTH, LATENT_WIDTH, VOCABULARY = 4, 257, 64, 8192
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.1}
BAR = 1.2


def cases(*, quick: bool) -> Iterator[Case]:
    """fp32 and, where the processor computes in it, bf16 autocast for both sides."""
    native = torch.cpu._is_avx512_bf16_supported()
    for dtype in (torch.float32, torch.bfloat16) if native else (torch.float32,):
        if quick:
            yield case(width=128, depth=2, repeats=1, dtype=dtype)
        else:
            yield case(width=256, depth=6, repeats=4, dtype=dtype)


def case(
    *, width: int, depth: int, repeats: int, dtype: torch.dtype, vocabulary: int = VOCABULARY
) -> Case:
    """One step on `repeats` times the mixture's smallest whole: 2 texts, a pair, a page."""
    from latentlm_platform.benchmarks.peers_llama import LlamaMarPeer

    torch.manual_seed(0)
    settings = LatentLMSettings(
        vocabulary=vocabulary,
        latent_width=LATENT_WIDTH,
        width=width,
        depth=depth,
        heads=width // 64,
        ffn_width=4 * width,
        rotary="llama",
        norm="learned",
        stop="eod",
        head=HeadSettings(depth=4, ffn_width=3 * width),
    )
    peer = LlamaMarPeer(settings, draws=DRAWS)
    model = LatentLM(settings)
    model.load_state_dict(peer.weights_for_ours())
    documents = mixture(vocabulary, repeats=repeats)
    batch = pack(documents, length=LENGTH, latent_width=LATENT_WIDTH)
    noise = RowNoise(seed=0, ids_B=torch.arange(len(documents)))
    autocast = torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32)

    def our_loss() -> Tensor:
        with autocast:
            targets = find_targets(batch, settings, noise=noise, condition_dropout=0.0)
            terms = model(batch, targets, noise=noise, timesteps_per_token=DRAWS)
        shares_K = LossLaw((1.0, 1.0, 1.0, 1.0)).shares(terms.counts_K.tolist())
        return (terms.sums_K @ shares_K).float()

    def peer_loss(module: nn.Module = peer, given: "Draws | None" = None) -> Tensor:
        with autocast:
            diffusion, words = module(batch, given)
        return diffusion + words

    def gate() -> Agreement:
        error = _gradient_distance(
            model, our_loss, peer, peer_loss, _same_draws(batch, noise, settings)
        )
        return Agreement(error, TOLERANCES[dtype])

    latents = int((batch.ids_BT == LATENT).sum())
    return Case(
        name=f"width {width}, {depth} layers, {'fp32' if dtype == torch.float32 else 'bf16'}",
        sizes={"width": width, "depth": depth, "vocabulary": vocabulary, "draws": DRAWS}
        | {"rows": len(batch.ids_BT), "length": LENGTH, "latents": latents}
        | {"head_depth": settings.head.depth, "head_ffn_width": settings.head.ffn_width}
        | {"peer": "transformers LlamaModel with a diffusion loss as MAR's"},
        ours=_step(model, our_loss),
        peer=_step(peer, peer_loss),
        gate=gate,
        bar=BAR,
        dtype=str(dtype).removeprefix("torch."),
    )


def mixture(vocabulary: int, *, repeats: int) -> list[Document]:
    """Documents whose positions are text 2 : pairs 1 : interleaved 1, nearly; words are random."""
    generator = np.random.default_rng(0)
    special = special_ids(vocabulary)

    def words(count: int, *last: int) -> TextSpan:
        drawn = generator.integers(0, special.end, count)
        return TextSpan(np.array([*drawn, *last], np.int64))

    def latents(count: int) -> LatentSpan:
        return LatentSpan(generator.standard_normal((count, LATENT_WIDTH), np.float32))

    documents: list[Document] = []
    for _ in range(repeats):
        documents += [(words(127, special.end),), (words(127, special.end),)]
        documents.append((words(32, special.bod), latents(64), words(0, special.eod, special.end)))
        page = (words(24, special.bod), latents(48), words(24, special.eod, special.bod))
        documents.append((*page, latents(48), words(0, special.eod, special.end)))
    return documents


def _step(module: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=1e-4, betas=(0.9, 0.98), weight_decay=0.1, fused=True
    )

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


def _same_draws(batch: PackedBatch, noise: RowNoise, settings: LatentLMSettings) -> "Draws":
    """What ours draws at each latent, for all positions and in the order of the peer's copies."""
    from latentlm_platform.benchmarks.peers_llama import Draws

    own = noise.rows(batch.document_BT[:, 1:].flatten().clamp(min=0))
    own = own.at(batch.position_BT[:, 1:].flatten())
    times_PM = draw_times(own.uniform(Draw.TIMESTEP, DRAWS), settings=settings.diffusion)
    epsilon_PMZ = own.normal(Draw.DIFFUSION_NOISE, DRAWS, settings.latent_width)
    return Draws(times_PM.T.flatten(), epsilon_PMZ.transpose(0, 1).flatten(0, 1))


def _gradient_distance(
    model: LatentLM,
    our_loss: Callable[[], Tensor],
    peer: "LlamaMarPeer",
    peer_loss: Callable[..., Tensor],
    given: "Draws",
) -> float:
    """The worst relative difference of the loss and of every weight's gradient.

    The last norm is one in the peer and one a head in ours, so its gradients are not compared.
    """
    model.zero_grad()
    ours = our_loss()
    ours.backward()
    twin = copy.deepcopy(peer)
    theirs = peer_loss(twin, given)
    theirs.backward()
    for parameter in twin.parameters():  # rearranging weights is rearranging their gradients
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    errors = [distance(ours.detach(), theirs.detach())]
    for name, expected in twin.weights_for_ours().items():
        if name in ("softmax_head.norm.weight", "head.condition_norm.weight"):
            continue
        found = model.get_parameter(name).grad
        errors.append(float("nan") if found is None else distance(found, expected))
    model.zero_grad()
    return float(np.max(errors))
