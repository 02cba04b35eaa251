"""Debian packages as a source of public data: downloaded and unpacked, never installed."""

import os
import shutil
import subprocess
from hashlib import file_digest
from pathlib import Path
from typing import NamedTuple

from latentlm_platform.errors import UserError

TIMEOUT_SECONDS = 900
APT_OPTIONS = ("-qq", "-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=30")


class Package(NamedTuple):
    """What was downloaded: the file's name says its version."""

    name: str
    file: str
    sha256: str

    @property
    def version(self) -> str:
        return self.file.split("_")[1].replace("%3a", ":")


def unpack_package(name: str, *, into: Path, work: Path) -> Package:
    """Download a package to `work` and unpack its files below `into`; UserError if it cannot be.

    The machine's own package lists are used where they know the package; else fresh lists are
    fetched into `work`, so that neither root nor a change to the system is needed.
    """
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise UserError(
                f"this corpus comes from the Debian package {name}, and this machine has no"
                f" {program}; use Debian or Ubuntu, or set corpus.source to your own images"
                " (a folder for each class, Parquet, or WebDataset tars)",
                exit_code=1,
            )
    work.mkdir(parents=True, exist_ok=True)
    deb = _download(name, work)
    _check(["dpkg-deb", "-x", str(deb), str(into)], work, what=f"unpacking {deb.name}")
    with deb.open("rb") as file:
        sha256 = file_digest(file, "sha256").hexdigest()
    return Package(name, deb.name, sha256)


def _download(name: str, work: Path) -> Path:
    """The package's file, by the machine's lists or by fresh ones."""
    own_lists = _own_lists(work)
    attempts = [["download", name], [*own_lists, "update"], [*own_lists, "download", name]]
    for arguments in attempts:
        done = _run(["apt-get", *_options(), *arguments], work)
        found = sorted(work.glob(f"{name}_*.deb"))
        if done.returncode == 0 and found:
            return found[-1]
    raise UserError(
        f"the Debian package {name} could not be downloaded: {_last_line(done.stderr)};"
        " check the network and /etc/apt/sources.list, or set corpus.source to your own images",
        exit_code=1,
    )


def _options() -> list[str]:
    """apt as root drops to a user that cannot write into our folder unless it is told not to."""
    return [*APT_OPTIONS, *(("-o", "APT::Sandbox::User=root") if os.geteuid() == 0 else ())]


def _own_lists(work: Path) -> list[str]:
    for folder in ("lists/partial", "archives/partial"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    return ["-o", f"Dir::State::lists={work}/lists", "-o", f"Dir::Cache={work}"]


def _check(command: list[str], work: Path, *, what: str) -> None:
    done = _run(command, work)
    if done.returncode:
        raise UserError(f"{what} failed: {_last_line(done.stderr)}", exit_code=1)


def _run(command: list[str], work: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        return subprocess.run(
            command,
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no end after {TIMEOUT_SECONDS} s")


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("E:")] or text.splitlines()
    return lines[-1] if lines else "no message"
