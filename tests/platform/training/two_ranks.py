"""What `test_modalities_on_two_ranks` runs as a process of its own: one rank of a model."""

import json
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist

from latentlm.catalogue import build_model
from latentlm.models import find_targets
from latentlm.randomness import RowNoise
from latentlm.sequence import (
    Document,
    PackedBatch,
    class_conditional,
    class_conditional_codes,
    pack,
)
from latentlm.settings import (
    CodeLMSettings,
    DiTSettings,
    HeadSettings,
    LatentLMSettings,
    ModelSettings,
)
from latentlm_platform.experiment.sections import Optimizer
from latentlm_platform.training.losses import LossLaw, StepSums
from latentlm_platform.training.zero import ZeroEngine
from making_documents import LATENT_ONLY, TEXT_ONLY

SETTINGS = LatentLMSettings(
    vocabulary=30,
    latent_width=4,
    width=32,
    depth=2,
    heads=4,
    kv_heads=2,
    ffn_width=64,
    norm="learned",
    stop="continue",
    head=HeadSettings(depth=2, ffn_width=64),
)
DIT = DiTSettings(
    classes=3, latent_count=4, latent_width=4, width=32, depth=2, heads=4, ffn_width=64
)
CODES = CodeLMSettings(classes=3, codes=9, latent_count=4, width=32, depth=2, heads=4, ffn_width=64)
LAW = LossLaw((2.0, 1.0, 1.0, 0.5))
STEPS = 6


def words_or_latents(mine: list[int]) -> PackedBatch:
    """Document 0 has only words, document 1 only latents."""
    documents: list[Document] = [TEXT_ONLY, LATENT_ONLY]
    return pack([documents[n] for n in mine], length=10, latent_width=4)


def images(mine: list[int]) -> PackedBatch:
    """Image n is of class n."""
    generator = torch.Generator().manual_seed(1)
    return class_conditional(torch.randn(2, 4, 4, generator=generator)[mine], torch.tensor(mine))


def codes(mine: list[int]) -> PackedBatch:
    """Image n is of class n."""
    codes_BN = torch.arange(8).view(2, 4)
    return class_conditional_codes(codes_BN[mine], torch.tensor(mine))


MODELS: dict[str, tuple[ModelSettings, Callable[[list[int]], PackedBatch]]] = {
    "t": (SETTINGS, words_or_latents),
    "d": (DIT, images),
    "c": (CODES, codes),
}


def train(stage: int, *, model_name: str, recompute: bool) -> list[dict[str, float]]:
    """Losses by step; rank 0 of two sees row 0, rank 1 row 1, one rank both."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    settings, batch_of = MODELS[model_name]
    model = build_model(settings)
    model.recompute_activations(recompute)
    engine = ZeroEngine(
        model,
        optimizer=Optimizer(learning_rate=1e-2, warmup_steps=0),
        stage=stage,
        micro_batch_size=1,
        accumulation=1,
        ema_decay=0.9,
    )
    mine = [0, 1] if ranks == 1 else [rank]
    losses = []
    for step in range(STEPS):
        batch = batch_of(mine)
        noise = RowNoise(seed=0, ids_B=torch.tensor(mine), epochs_B=step)
        targets = find_targets(batch, settings, noise=noise, condition_dropout=0.0)
        counts = targets.counts_K(4)
        dist.all_reduce(counts)
        terms = engine(batch, targets, noise=noise, timesteps_per_token=4)
        engine.backward(terms.sums_K @ (ranks * LAW.shares(counts.tolist())))
        engine.micro_step(learning_rate=1e-2)
        sums = StepSums()
        sums.add(terms)
        vector = sums.vector()
        dist.all_reduce(vector)
        losses.append(LAW.means(vector))
    return losses


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = [
        train(int(case[1]), model_name=case[0], recompute=case.endswith("r"))
        for case in sys.argv[1:]
    ]
    if dist.get_rank() == 0:
        print("LOSSES " + json.dumps(found), flush=True)
    dist.barrier()
