"""Reading a corpus: every byte once an epoch, whatever the number of workers; the meter counts."""

import tarfile
from pathlib import Path

import numpy as np
import pytest

from latentlm_platform.batches.lanes import LaneOrder
from latentlm_platform.benchmarks import ingest
from latentlm_platform.benchmarks.suite import ROWS

SMALL = ingest.Sizes(images=2048, side=16, timed=64)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ingest")
    ingest.write_pictures(folder, SMALL)
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLM_HOME", str(tmp_path / "home"))


def test_the_row_is_in_the_bench() -> None:
    assert ROWS["ingest"] is ingest.outcomes


def test_pictures_of_tars_are_read_once(root: Path) -> None:
    pictures = 0
    for path in (root / "tars").iterdir():
        with tarfile.open(path) as tar:
            pictures += sum(m.size for m in tar if m.name.endswith(".jpg"))
    split = ingest._split(root / "tars", SMALL)
    for workers in ingest.WORKERS:
        assert ingest.pixels_read(split, workers=workers) == pictures  # all and nothing else


def test_row_groups_of_parquet_are_read_once(root: Path) -> None:
    size = (root / "parquet" / "0.parquet").stat().st_size
    split = ingest._split(root / "parquet", SMALL)
    for workers in (1, 4):
        # less than the file by its footer, which tells where the groups are
        assert 0.8 < ingest.pixels_read(split, workers=workers) / size <= ingest.MOST_READ


def test_pages_of_the_latent_cache_are_read_once(tmp_path: Path) -> None:
    cache = ingest.write_latents(tmp_path / "cache", records=4096)
    stored = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.arrow"))
    order = ingest._order(4096)
    for workers in ingest.WORKERS:
        read = ingest.latents_read(cache, order, workers=workers)
        assert 0.9 < read / stored <= ingest.MOST_READ


def test_pages_that_two_lanes_want_count_twice(tmp_path: Path) -> None:
    cache = ingest.write_latents(tmp_path / "cache", records=2 * ingest.CHUNK)
    sizes = np.full(2, ingest.CHUNK, np.int64)
    few = LaneOrder(sizes, seed=0, lanes=ingest.LANES, window_chunks=16)  # each chunk cut in four
    stored = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.arrow"))
    assert ingest.latents_read(cache, few, workers=1) / stored > ingest.MOST_READ
