"""Ray: a local one of our own, or a cluster that is already there."""

import contextlib
import importlib
import logging
import os
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latentlm_platform.errors import UserError
from latentlm_platform.experiment.sections import Cluster
from latentlm_platform.home import home

PACKAGES = ("latentlm", "latentlm_platform", "latentlm_dashboards")
LOCAL_CPUS_PER_CORE = 2  # logical; torch's threads are set apart from them
OBJECT_STORE_BYTES = 1_500_000_000


@contextlib.contextmanager
def connected(cluster: Cluster, *, verbose: bool) -> Iterator[None]:
    """Ray for the time of a run; a local one ends with it."""
    prepare_process(verbose=verbose)
    import ray

    try:
        _start(ray, cluster, verbose=verbose)
    except (ConnectionError, ValueError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"cluster.address = {cluster.address!r} does not answer ({first});"
            " start it, name another, or use `local`",
            exit_code=1,
        ) from error
    try:
        ray.get(ray.remote(require_one_source).options(num_cpus=0).remote(source_roots()))
        yield
    finally:
        ray.shutdown()


def _start(ray: Any, cluster: Cluster, *, verbose: bool) -> None:
    logging_level = logging.INFO if verbose else logging.ERROR
    environment = worker_environment()
    if cluster.address != "local":
        ray.init(
            address=cluster.address,
            runtime_env={"env_vars": environment},
            log_to_driver=verbose,
            logging_level=logging_level,
        )
        return
    os.environ.update(environment)
    ray.init(
        address="local",
        num_cpus=cluster.cpus or local_cpus(),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=verbose,
        logging_level=logging_level,
        _temp_dir=str(_socket_folder()),
        _metrics_export_port=None,
    )


def prepare_process(*, verbose: bool) -> None:
    """Quiet logs and a PATH on which DeepSpeed finds this environment's ninja."""
    scripts = sysconfig.get_path("scripts")
    if scripts not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = scripts + os.pathsep + os.environ.get("PATH", "")
    if verbose:
        return
    warnings.filterwarnings("ignore")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    for name in ("ray", "ray.data", "ray.train", "ray.tune", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.ERROR)


def worker_environment() -> dict[str, str]:
    """What every Ray process of ours needs: our state folder and our sources."""
    roots = [str(root) for root in dict.fromkeys(source_roots().values())]
    paths = [*roots, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        "LATENTLM_HOME": str(home()),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "PATH": os.environ.get("PATH", ""),
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # who was given no GPU sees none
    }


def source_roots() -> dict[str, Path]:
    """The folder from which each of our packages is imported."""
    roots = {}
    for name in PACKAGES:
        file = importlib.import_module(name).__file__
        roots[name] = Path(file or "").resolve().parent.parent
    return roots


def require_one_source(expected: dict[str, Path]) -> None:
    """Fail where a worker would import other sources than the driver does."""
    for name, root in source_roots().items():
        if root != expected[name]:
            raise UserError(
                f"a Ray worker imports {name} from {root}, the driver from {expected[name]};"
                f" install the same version on every node (python {sys.version.split()[0]})",
                exit_code=1,
            )


def _socket_folder() -> Path:
    """Ray's own temporary files; short, since the path of a Unix socket is limited to 107 bytes."""
    return Path(tempfile.gettempdir()) / f"latentlm-ray-{os.getuid()}"


def local_cpus() -> int:
    """Logical CPUs that a local Ray declares."""
    return LOCAL_CPUS_PER_CORE * cores()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
