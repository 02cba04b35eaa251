"""What the numbers were measured on, and who else was using it meanwhile."""

import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from latentlm_platform.tracking.provenance import collect

SOURCE = Path(__file__).parents[3]
OTHERS_MAY_USE = 0.10
STEAL_MAY_BE = 0.02


class Shares(NamedTuple):
    """Parts of all cores' time: what other processes used, what the hypervisor took away."""

    others: float
    steal: float

    @property
    def noisy(self) -> bool:
        """Whether times of this while are to be taken with care."""
        return self.others > OTHERS_MAY_USE or self.steal > STEAL_MAY_BE


class Load:
    """The machine's use from construction to `shares()`."""

    def __init__(self) -> None:
        self.start = _Clock.read()

    def shares(self) -> Shares:
        """Use by others and steal since the start; zeros where the system does not count them."""
        now = _Clock.read()
        whole = max(now.total - self.start.total, 1e-9)
        steal = (now.steal - self.start.steal) / whole
        busy = now.busy - self.start.busy - (now.own - self.start.own)
        return Shares(max(busy / whole, 0.0), max(steal, 0.0))


class _Clock(NamedTuple):
    total: float
    busy: float
    steal: float
    own: float

    @classmethod
    def read(cls) -> "_Clock":
        times = psutil.cpu_times()
        guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        total = sum(times) - guests  # user and nice already hold the guests' time
        idle = times.idle + getattr(times, "iowait", 0.0)
        steal = getattr(times, "steal", 0.0)
        return cls(total, total - idle - steal, steal, time.process_time())


def host_facts() -> dict[str, Any]:
    """Processor, memory, system, package versions and source revision of a report."""
    source = collect(SOURCE)
    packages = dict(source.packages)
    for name in ("transformers", "diffusers"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "missing"
    return {
        "commit": source.commit,
        "dirty": source.dirty,
        "python": source.python,
        "system": source.system,
        "cpu": source.cpu,
        "cores": source.cores,
        "memory_gib": round(source.memory_bytes / 2**30, 1),
        "threads": 1,
        "packages": packages,
    }
