"""Whether this machine can run experiments: one line a check, with a remedy where it cannot."""

import os
import shutil
import stat
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from latentlm_platform.cluster import cores
from latentlm_platform.home import corpora_folder, home
from latentlm_platform.planning.resources import free_disk_bytes

State = Literal["ok", "warning", "fail"]
GIB = 2**30
NEEDED_MEMORY_GIB = 6
NEEDED_DISK_GIB = 5


class Check(NamedTuple):
    """What was looked at, how it stands, what was found, and what to do about it."""

    name: str
    state: State
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f": {self.remedy}" if self.remedy else ""
        return f"{self.state:<8} {self.name:<10} {self.found}{remedy}"


def examine(*, build: bool = False) -> Iterator[Check]:
    """Every check in turn; `build` compiles DeepSpeed's communication op first."""
    yield Check("python", "ok", sys.version.split()[0])
    yield from _packages()
    yield _size("cores", cores(), "", 2, "runs will be slow; two or more help")
    yield _memory()
    free = free_disk_bytes() / GIB
    yield _size(
        "disk", free, f"GiB free for {home()}", NEEDED_DISK_GIB, "set LATENTLM_HOME elsewhere"
    )
    yield _home()
    yield from _compiler()
    yield _communication_op(build=build)
    yield _ray_token()
    yield _mlflow()
    yield _corpora()


def _packages() -> Iterator[Check]:
    """What is installed against what pyproject.toml pins."""
    from packaging.requirements import Requirement

    wrong = []
    required = [Requirement(line) for line in metadata.requires("latentlm") or []]
    ours = [one for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    for one in ours:
        try:
            version = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{one.name} is missing")
            continue
        if not one.specifier.contains(version, prereleases=True):
            wrong.append(f"{one.name} is {version}, not {one.specifier}")
    if wrong:
        yield Check("packages", "fail", "; ".join(wrong), "run `pip install -e .`")
    else:
        yield Check("packages", "ok", f"{len(ours)} as pyproject.toml pins them")


def _size(name: str, found: float, unit: str, needed: float, remedy: str) -> Check:
    text = f"{found:.0f} {unit}".strip()
    if found >= needed:
        return Check(name, "ok", text)
    return Check(name, "warning", f"{text}, fewer than {needed:g}", remedy)


def _memory() -> Check:
    import psutil

    available = psutil.virtual_memory().available / GIB
    remedy = "close other programs, or use smaller batches"
    return _size("memory", available, "GiB available", NEEDED_MEMORY_GIB, remedy)


def _home() -> Check:
    try:
        home().mkdir(parents=True, exist_ok=True)
        writable = os.access(home(), os.W_OK)
    except OSError:
        writable = False
    if writable:
        return Check("home", "ok", f"{home()} is writable")
    return Check("home", "fail", f"{home()} is not writable", "set LATENTLM_HOME to another folder")


def _compiler() -> Iterator[Check]:
    for program, remedy in (
        ("g++", "install it, such as `apt-get install g++`"),
        ("ninja", "run `pip install ninja`"),
    ):
        scripts = str(Path(sys.executable).parent)
        path = shutil.which(program) or shutil.which(program, path=scripts)
        if path:
            yield Check(program, "ok", path)
        else:
            yield Check(program, "fail", "not found; DeepSpeed compiles with it", remedy)


def _communication_op(*, build: bool) -> Check:
    """DeepSpeed's shared-memory op for several ranks on one machine: 45 s once, then cached."""
    name, module = "deepspeed", "deepspeed_shm_comm.so"
    if build:
        from latentlm_platform.cluster import prepare_process
        from latentlm_platform.training.zero import build_communication_op

        prepare_process(verbose=False)
        try:
            build_communication_op()
        except (OSError, RuntimeError, ImportError) as error:
            first = (str(error).strip().splitlines() or ["no message"])[0]
            return Check(name, "fail", f"its CPU op does not build ({first})", "see g++ and ninja")
        return Check(name, "ok", "the CPU communication op is built")
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or "~/.cache/torch_extensions").expanduser()
    if any(root.rglob(module)):
        return Check(name, "ok", f"the CPU communication op is in {root}")
    remedy = "run `latentlm doctor --build`, else the first run with two workers waits for it"
    return Check(name, "warning", "the CPU communication op is not built yet", remedy)


def _ray_token() -> Check:
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if not token.exists():
        return Check("ray token", "ok", f"{token} will be written by the first local Ray")
    mode = stat.S_IMODE(token.stat().st_mode)
    if mode & 0o077:
        found = f"{token} can be read by others (mode {mode:o})"
        return Check("ray token", "warning", found, f"run `chmod 600 {token}`")
    return Check("ray token", "ok", f"{token}, mode {mode:o}")


def _mlflow() -> Check:
    version = metadata.version("mlflow")
    major, minor = (int(part) for part in version.split(".")[:2])
    if (3, 15) <= (major, minor) < (3, 18):
        return Check("mlflow", "ok", f"{version}, whose comparison views are known")
    remedy = "run `pip install 'mlflow>=3.15,<3.18'`"
    return Check("mlflow", "fail", f"{version} has other comparison views", remedy)


def _corpora() -> Check:
    folder = corpora_folder()
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if names:
        return Check("corpora", "ok", ", ".join(names))
    return Check("corpora", "ok", "none fetched yet; a run fetches the one it names")
