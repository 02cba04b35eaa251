"""What goes into the latent cache comes out, row by row, orientation by orientation."""

from pathlib import Path

import numpy as np
import pytest

from latentlm_platform.batches.ordering import SampleOrder
from latentlm_platform.errors import UserError
from latentlm_platform.latents.cache import LatentCache


@pytest.mark.parametrize("with_std", [False, True])
def test_rows_come_back_in_order_and_orientation(tmp_path: Path, with_std: bool) -> None:
    generator = np.random.default_rng(0)
    cache = LatentCache(tmp_path, 4, 3, orientations=2, with_std=with_std)
    shards = []
    for chunk, size in enumerate((5, 2, 6)):
        mean = generator.normal(size=(size, 2, 4, 3)).astype(np.float32)
        std = np.exp(generator.normal(size=mean.shape)).astype(np.float32) if with_std else None
        labels = generator.integers(0, 9, size)
        keys = [f"{chunk}/{row}" for row in range(size)]
        cache.write_shard("train", chunk, keys=keys, labels_B=labels, mean_BONZ=mean, std_BONZ=std)
        shards.append((labels, mean, std))
    rows = SampleOrder((5, 2, 6), seed=1, window_chunks=2).rows(3, 20)
    mirrored = generator.random(len(rows.ids)) < 0.5
    found = cache.read_rows("train", rows, mirrored_B=mirrored)
    assert mirrored.any()
    assert not mirrored.all()
    for place, (chunk, row, side) in enumerate(zip(rows.chunks, rows.rows, mirrored, strict=True)):
        labels, mean, std = shards[chunk]
        assert found.labels_B[place] == labels[row]
        assert np.array_equal(found.mean_BNZ[place], mean[row, int(side)])
        if std is not None:
            assert found.std_BNZ is not None
            assert np.array_equal(found.std_BNZ[place], std[row, int(side)])


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    cache = LatentCache(tmp_path, 4, 3, orientations=1, with_std=False)
    mean = np.zeros((2, 1, 4, 3), np.float32)
    cache.write_shard(
        "train", 0, keys=["a", "b"], labels_B=np.zeros(2, np.int64), mean_BONZ=mean, std_BONZ=None
    )
    path = cache.shard_path("train", 0)
    path.write_bytes(path.read_bytes()[:100])
    rows = SampleOrder((2,), seed=0, window_chunks=1).rows(0, 2)
    with pytest.raises(UserError, match=r"000000\.arrow cannot be read"):
        cache.read_rows("train", rows, mirrored_B=np.zeros(2, np.bool_))


def test_a_cache_without_its_summary_is_incomplete(tmp_path: Path) -> None:
    cache = LatentCache(tmp_path, 4, 3, orientations=1, with_std=False)
    assert cache.summary() is None
    cache.commit({"rows": {"train": [2]}, "bad_records": []})
    assert cache.summary() == {"rows": {"train": [2]}, "bad_records": []}
