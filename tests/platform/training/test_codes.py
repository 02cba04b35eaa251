"""Codes on their way through the platform: encoded, cached, made into batches."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentlm.load import load
from latentlm.sequence import LATENT
from latentlm.signals import pixels_to_signal
from latentlm_platform.batches.collating import collate
from latentlm_platform.batches.documents import Composer
from latentlm_platform.batches.lane import LaneDocument, Ref
from latentlm_platform.latents.cache import LatentCache
from latentlm_platform.latents.encoded import IMAGE, LABEL, EncodedChunk
from latentlm_platform.latents.encoder import EncoderActor
from latentlm_platform.training.drawing import draw_batch
from making_exports import CODES, make_export

IMAGES = 7


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_export(tmp_path_factory.mktemp("export"), "codes")


def encoded(export: Path, pixels: np.ndarray[Any, Any]) -> EncodedChunk:
    """A label and a picture each."""
    actor = EncoderActor(export, batch_size=3, orientations=2)
    decoded = {
        "ids": np.arange(IMAGES),
        "part_starts": np.arange(IMAGES + 1) * 2,
        "kinds": np.tile([LABEL, IMAGE], IMAGES).astype(np.uint8),
        "scored": np.tile([False, True], IMAGES),
        "lengths": np.tile([1, 0], IMAGES).astype(np.int32),
        "words": (np.arange(IMAGES) % 3).astype(np.int32),
        "pixels": pixels,
    }
    return EncodedChunk.of_arrays(actor.encode(decoded))


def test_codes_are_cached_and_come_back_as_documents_of_their_ids(
    export: Path, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 8, 8, 1), dtype=np.uint8)
    cache = LatentCache(tmp_path, CODES.posterior_width)
    names = [str(i) for i in range(IMAGES)]
    cache.write_chunk("train", 0, encoded(export, pixels), keys=names)
    found = cache.read_chunk("train", 0)
    composer = Composer(length=CODES.latent_count + 1, vocabulary=None)
    documents = [
        LaneDocument(Ref(0, 0, 0, row), row, spans)
        for row in range(IMAGES)
        for spans in composer.compose(found.parts(row, mirrored=row % 2 == 1), key=str(row))
    ]
    raw = collate([[d] for d in documents], length=composer.length, latent_width=1)
    codec: Any = load(export).codec
    device = torch.device("cpu")
    batch = draw_batch(raw, codec, seed=0, device=device, as_words=True).packed
    seen = pixels.copy()
    seen[1::2] = seen[1::2][:, :, ::-1]
    with torch.no_grad():
        wanted = codec.encode_ids(pixels_to_signal(torch.from_numpy(seen)))
    assert torch.equal(batch.ids_BT[:, 1:], wanted)
    assert batch.ids_BT[:, 0].tolist() == [row % 3 for row in range(IMAGES)]
    assert not (batch.ids_BT == LATENT).any()
    assert batch.scored_BT.sum() == IMAGES * 4
    assert batch.latents_BTZ.shape[-1] == 0
    assert len(wanted.unique()) > 2
