"""Where a result comes from: source commit and difference, packages, hardware.

Everything here is measured on the machine that calls `collect`; nothing fails without git, which
an installed wheel has not. Sources that were submitted to a cluster bring `git.json` instead.
"""

import json
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import psutil

DIFF_BYTES = 1_000_000
GIT_FILE = "git.json"
PACKAGES = (
    "latentlm",
    "torch",
    "ray",
    "deepspeed",
    "mlflow",
    "numpy",
    "pyarrow",
    "pydantic",
    "pillow",
    "safetensors",
    "scipy",
    "torchmetrics",
    "efficientnet-lite-pytorch",
)


@dataclass(frozen=True)
class Provenance:
    """Source and machine of a run; `commit` is None where there is no git repository.

    `diff` is what the working tree changed against the commit, at most 1 MB, with the names of
    untracked files at its end; `memory_bytes` is the machine's, not the container's share.
    """

    commit: str | None
    dirty: bool
    diff: str
    python: str
    system: str
    packages: dict[str, str]
    cpu: str
    cores: int
    memory_bytes: int
    gpus: tuple[str, ...]

    def tags(self) -> dict[str, str]:
        """The short form, for the tags of a run."""
        return {
            "latentlm.git_commit": self.commit or "none",
            "latentlm.git_dirty": str(self.dirty).lower(),
            "latentlm.hardware": ", ".join((f"{self.cores} × {self.cpu}", *self.gpus)),
        }

    def text(self) -> str:
        """The long form, one fact a line, for `environment.txt` of a run."""
        facts = {
            "git commit": f"{self.commit or 'none'}{' (changed)' if self.dirty else ''}",
            "python": self.python,
            "system": self.system,
            "processor": f"{self.cpu}, {self.cores} cores, {self.memory_bytes / 2**30:.1f} GiB",
            "gpus": ", ".join(self.gpus) or "none",
        }
        lines = [f"{name}: {fact}" for name, fact in facts.items()]
        return "\n".join([*lines, *(f"{name}=={v}" for name, v in self.packages.items())]) + "\n"


class GitState(NamedTuple):
    """The part of a provenance that only a git repository knows."""

    commit: str | None
    dirty: bool
    diff: str


def collect_git(root: Path) -> GitState:
    """What git says of the source tree at `root`, or said of it before it was submitted."""
    carried = root / GIT_FILE
    if carried.is_file():
        return GitState(**json.loads(carried.read_text(encoding="utf-8")))
    untracked = _git(root, "ls-files", "--others", "--exclude-standard").splitlines()
    changed = _git(root, "diff", "HEAD", "--no-color", "--no-ext-diff")
    return GitState(
        commit=_git(root, "rev-parse", "HEAD").strip() or None,
        dirty=bool(changed or untracked),
        diff=_capped(changed, untracked),
    )


def collect(root: Path) -> Provenance:
    """Provenance of the source tree at `root` on this machine."""
    git = collect_git(root)
    return Provenance(
        commit=git.commit,
        dirty=git.dirty,
        diff=git.diff,
        python=platform.python_version(),
        system=platform.platform(),
        packages=_packages(),
        cpu=_cpu(),
        cores=psutil.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        gpus=_gpus(),
    )


def _git(root: Path, *arguments: str) -> str:
    """What git says, or nothing: no git, no repository, no commit yet."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace")


def _capped(changed: str, untracked: list[str]) -> str:
    names = "".join(f"# untracked: {name}\n" for name in untracked)
    text = (changed + names).encode()
    if len(text) <= DIFF_BYTES:
        return text.decode()
    note = f"\n# cut: {len(text)} bytes in all, {DIFF_BYTES} kept\n".encode()
    return text[: DIFF_BYTES - len(note)].decode(errors="ignore") + note.decode()


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpus() -> tuple[str, ...]:
    """Names from the driver's own tool: asking torch would open a context on every GPU."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(name.strip() for name in done.stdout.decode(errors="replace").splitlines())
