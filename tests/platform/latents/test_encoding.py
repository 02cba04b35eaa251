"""Statistics of a pass: merged moments, their error, and the chunks that a sample is of."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentlm.codec.sigma import LatentMoments
from latentlm.settings import DiagonalGaussianVariance, FixedVariance
from latentlm_platform.latents.cache import LatentCache
from latentlm_platform.latents.encoding import (
    SPREAD_CHUNKS,
    ShardWriter,
    error_of,
    moments_from,
    moments_state,
    sampled_chunks,
)
from latentlm_platform.latents.wire_rows import pack_row, unpack_row
from making_chunks import BAD, WIDTH, chunk_of, image, label, same_chunk

LAW = FixedVariance(sigma=0.3)


def moments_of(*latents_NZ: np.ndarray[Any, Any]) -> LatentMoments:
    moments = LatentMoments.of_width(latents_NZ[0].shape[1])
    for values in latents_NZ:
        moments.add(torch.from_numpy(values))
    return moments


def drawn(sizes: list[int]) -> list[np.ndarray[Any, Any]]:
    """Chunks of latents whose means differ by chunk, as records that resemble one another do."""
    random = np.random.default_rng(0)
    return [
        (random.normal() + random.normal(size=(n, 3)) * random.uniform(0.5, 2)).astype(np.float32)
        for n in sizes
    ]


def test_the_error_of_a_mean_of_equal_parts_is_the_usual_standard_error() -> None:
    chunks = drawn([50] * 12)
    means = np.array([chunk.astype(np.float64).mean() for chunk in chunks])
    found = error_of([moments_of(chunk) for chunk in chunks], lambda m: m.latent_mean())
    assert found == pytest.approx(means.std(ddof=1) / math.sqrt(12), rel=1e-9)


def test_the_error_is_the_jackknife_over_parts() -> None:
    chunks = drawn([10, 70, 25, 40])
    parts = [moments_of(chunk) for chunk in chunks]
    left_out = []
    for gone in range(4):
        kept = np.concatenate([c for n, c in enumerate(chunks) if n != gone]).astype(np.float64)
        left_out.append(math.sqrt(kept.var() + LAW.sigma**2))
    direct = math.sqrt(3 / 4 * sum((x - np.mean(left_out)) ** 2 for x in left_out))
    assert error_of(parts, lambda m: m.latent_std(LAW)) == pytest.approx(direct, rel=1e-9)
    assert direct > 0.01
    assert error_of(iter(parts), lambda m: m.latent_std(LAW)) == pytest.approx(direct, rel=1e-9)


def test_of_one_part_there_is_no_error() -> None:
    assert math.isnan(error_of([moments_of(*drawn([9]))], lambda m: m.latent_mean()))


def test_more_parts_have_a_smaller_error() -> None:
    errors = [
        error_of([moments_of(chunk) for chunk in drawn([20] * count)], lambda m: m.latent_mean())
        for count in (8, 128)
    ]
    assert errors[1] < errors[0] / 2


def test_moments_travel_as_json_to_the_last_bit() -> None:
    moments = moments_of(*drawn([3, 4]))
    moments.add(torch.rand(2, 5, 3), torch.rand(2, 5, 3))
    found = moments_from(json.loads(json.dumps(moments_state(moments))))
    assert found.count == moments.count == 17
    for name in ("sum_Z", "square_sum_Z", "variance_sum_Z"):
        assert torch.equal(getattr(found, name), getattr(moments, name))


def test_a_shard_is_written_with_its_report(tmp_path: Path) -> None:
    cache = LatentCache(tmp_path, WIDTH)
    chunk = chunk_of([[label(1), image(3)], BAD, [label(0), image(5)]], sides=2, with_std=True)
    about = {"bad": {"counts": {}, "examples": []}, "keys": ["a", "b", "c"]}
    row = chunk.arrays() | {
        "split": np.array([1]),
        "chunk": np.array([4]),
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
    }
    passed = unpack_row(ShardWriter(cache)(pack_row(row)))
    assert {name: int(value[0]) for name, value in passed.items()} == {"split": 1, "chunk": 4}
    assert same_chunk(cache.read_chunk("held_out", 4), chunk)
    report = cache.read_report("held_out", 4)
    assert (report["rows"], report["bad"]) == (2, about["bad"])
    moments = moments_from(report["moments"])
    means, stds = np.concatenate(chunk.mean), np.concatenate(chunk.std)
    assert moments.count == 16  # both orientations
    assert moments.latent_mean() == pytest.approx(means.mean(), rel=1e-5)
    wanted = math.sqrt(means.var() + np.square(stds).mean())
    assert moments.latent_std(DiagonalGaussianVariance()) == pytest.approx(wanted, rel=1e-5)


def test_a_sample_is_of_enough_chunks_spread_over_the_corpus() -> None:
    sizes = np.array([10, 0, 7, 30] * 50)
    few = sampled_chunks(sizes, records=20, seed=0)
    assert len(few) == SPREAD_CHUNKS
    many = sampled_chunks(sizes, records=900, seed=0)
    assert 900 <= sizes[list(many)].sum() < 900 + 30
    assert many[:SPREAD_CHUNKS] == few
    assert len(set(many)) == len(many)
    assert not any(sizes[chunk] == 0 for chunk in many)
    assert max(few) - min(few) > 100
    assert sampled_chunks(sizes, records=20, seed=1) != few
    assert sorted(sampled_chunks(np.array([4, 0, 5]), records=3, seed=0)) == [0, 2]
    assert len(sampled_chunks(sizes, records=10**9, seed=0)) == 150
