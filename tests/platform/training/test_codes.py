"""Codes on their way through the platform: encoded, cached, made into batches."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from latentlm_platform.batches.ordering import SampleOrder

from latentlm.load import load
from latentlm.sequence import LATENT
from latentlm.signals import pixels_to_signal
from latentlm_platform.latents.cache import LatentCache
from latentlm_platform.latents.encoder import EncoderActor
from latentlm_platform.latents.wire_rows import pack_row, unpack_row
from latentlm_platform.training.model_training import ModelWorker
from making_exports import CODES, make_export


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_export(tmp_path_factory.mktemp("export"), "codes")


def encoded(export: Path, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    actor = EncoderActor(export, batch_size=3, orientations=2)
    mean: np.ndarray[Any, Any] = unpack_row(actor(pack_row({"pixels": pixels})))["mean"]
    return mean


def test_codes_are_cached_and_come_back_as_documents_of_their_ids(
    export: Path, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1), dtype=np.uint8)
    labels = np.arange(7) % 3
    cache = LatentCache(
        tmp_path,
        CODES.latent_count,
        CODES.posterior_width,
        orientations=2,
        with_std=CODES.predicts_std,
    )
    cache.write_shard(
        "train",
        0,
        keys=[str(i) for i in range(7)],
        labels_B=labels,
        mean_BONZ=encoded(export, pixels),
        std_BONZ=None,
    )
    rows = SampleOrder((7,), seed=1, window_chunks=1).rows(0, 7)
    mirrored = np.arange(7) % 2 == 1
    found = cache.read_rows("train", rows, mirrored_B=mirrored)
    codec: Any = load(export).codec
    worker: Any = SimpleNamespace(
        device=torch.device("cpu"),
        codec=codec,
        experiment=SimpleNamespace(model_seed=0, model=SimpleNamespace(kind="code_lm")),
    )
    arrays = {"mean": found.mean_BNZ, "labels": found.labels_B, "ids": rows.ids,
              "epochs": rows.epochs}  # fmt: skip
    batch = ModelWorker._collate(worker, arrays).packed
    seen = pixels[rows.rows].copy()
    seen[mirrored] = seen[mirrored][:, :, ::-1]
    with torch.no_grad():
        wanted = codec.encode_ids(pixels_to_signal(torch.from_numpy(seen)))
    assert torch.equal(batch.ids_BT[:, 1:], wanted)
    assert batch.ids_BT[:, 0].tolist() == labels[rows.rows].tolist()
    assert not (batch.ids_BT == LATENT).any()
    assert batch.scored_BT.sum() == 7 * 4
    assert len(wanted.unique()) > 2
