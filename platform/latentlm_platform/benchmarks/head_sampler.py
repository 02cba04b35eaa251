"""Row: a latent from a hidden state: solver loop and guidance around one diffusion head (§2.1).

Both sides are given the same hidden states and the same initial noise. Ours also normalises the
states, which in the peer is the language model's work and is done beforehand.
"""

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from latentlm.head_sampler import HeadSampler
from latentlm.models import LatentLM
from latentlm.settings import HeadSettings, LatentLMSettings, SamplerSettings
from latentlm_platform.benchmarks.given_noise import GivenNoise
from latentlm_platform.benchmarks.harness import Agreement, Case, distance
from latentlm_platform.benchmarks.weights import head_weights

SCALE, LATENT_WIDTH, DEPTH, FFN_RATIO = 3.0, 64, 4, 3
TOLERANCE = 1e-4
NEVER_SLOWER, ROOM = 1.0, 1.3
ROOM_UP_TO_BATCH = 16  # with more rows both sides are bound by the same matrix products


def cases(*, quick: bool) -> Iterator[Case]:
    """Widths, batches and step counts; the widest only with few rows, to stay in minutes."""
    widths = (256,) if quick else (256, 512, 1024)
    for width, batch, steps in product(widths, (1, 16, 64), (5, 20) if quick else (5, 10, 20)):
        if width * batch * steps <= 512 * 64 * 20:
            yield case(width=width, batch=batch, steps=steps)


def case(*, width: int, batch: int, steps: int) -> Case:
    """One latent for each of `batch` rows, guided, by DPM-Solver++(2M)."""
    from latentlm_platform.benchmarks.peers_scheduler import new_head, new_scheduler, sample

    torch.manual_seed(0)
    head = new_head(
        width=width, latent_width=LATENT_WIDTH, depth=DEPTH, ffn_width=FFN_RATIO * width
    )
    model = _same_head(head, width)
    scheduler = new_scheduler()
    hidden_PD, noise_BZ = torch.randn(2 * batch, width), torch.randn(batch, LATENT_WIDTH)
    condition_PD = model.head.condition_norm(hidden_PD).detach()
    with torch.inference_mode():  # where decoding makes its sampler: weights may be packed
        sampler = HeadSampler(model, SamplerSettings(steps=steps, cfg_scale=SCALE), compiled=False)
    noise, rows = GivenNoise([noise_BZ]).at(0), list(range(batch))

    @torch.inference_mode()
    def ours() -> Tensor:
        scales = [SCALE] * batch
        return sampler.sample(hidden_PD, scales=scales, guided_rows=rows, noise=noise)

    def peer() -> Tensor:
        return sample(head, scheduler, condition_PD, noise_BZ, steps=steps, scale=SCALE)

    return Case(
        name=f"width {width}, batch {batch}, {steps} steps",
        sizes={"width": width, "batch": batch, "steps": steps, "head_depth": DEPTH}
        | {"head_ffn_width": FFN_RATIO * width, "latent_width": LATENT_WIDTH, "cfg_scale": SCALE}
        | {"peer": "diffusers DPMSolverMultistepScheduler around VibeVoiceDiffusionHead"},
        ours=ours,
        peer=peer,
        gate=lambda: Agreement(distance(ours(), peer()), TOLERANCE),
        bar=ROOM if batch <= ROOM_UP_TO_BATCH else NEVER_SLOWER,
    )


def _same_head(head: torch.nn.Module, width: int) -> LatentLM:
    """The smallest LatentLM around the peer's head."""
    settings = LatentLMSettings(
        classes=1,
        latent_count=1,
        latent_width=LATENT_WIDTH,
        width=width,
        depth=1,
        heads=1,
        ffn_width=64,
        norm="learned",
        head=HeadSettings(depth=DEPTH, ffn_width=FFN_RATIO * width),
    )
    model = LatentLM(settings).eval()
    loaded = model.load_state_dict(head_weights(head), strict=False)
    left = [name for name in loaded.missing_keys if name.startswith("head.")]
    if loaded.unexpected_keys or left != ["head.condition_norm.weight"]:
        raise ValueError(f"the peer's head does not fit ours: {loaded}")
    return model
