"""Fixtures of the platform's tests: a state folder of their own, one Ray for all, small corpora."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from latentlm.media import encode_png


@pytest.fixture(scope="session")
def local_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One local Ray of four logical CPUs for the whole session."""
    import ray

    from latentlm_platform.cluster import prepare_process, worker_environment

    prepare_process(verbose=False)
    os.environ["LATENTLM_HOME"] = str(tmp_path_factory.mktemp("home"))
    os.environ.update(worker_environment())
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=200_000_000,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def class_folders() -> Callable[..., Path]:
    """Writes a folder tree of small images with classes that can be told apart."""
    return write_class_folders


def write_class_folders(
    root: Path, *, classes: int, images_a_class: int, size: int = 16, seed: int = 0
) -> Path:
    """A folder tree of small grey images: class c is a bright bar at height c, with noise."""
    generator = np.random.default_rng(seed)
    for label in range(classes):
        folder = root / f"class-{label}"
        folder.mkdir(parents=True)
        for number in range(images_a_class):
            pixels = generator.integers(0, 60, (size, size, 1), dtype=np.uint8)
            top = label * size // classes
            pixels[top : top + size // classes] += 180
            (folder / f"{number:04d}.png").write_bytes(encode_png(pixels))
    return root
