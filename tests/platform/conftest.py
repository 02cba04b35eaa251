"""Fixtures of the platform's tests: a state folder of their own, one Ray for all, small corpora."""

import os
from collections.abc import Iterator

import pytest


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
