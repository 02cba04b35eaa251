"""What travels to a cluster: our three packages from one source, and the experiment.

    submitted.json                       the experiment, resolved, and who it is
    git.json                             the commit and changes, in place of a repository
    latentlm/
    platform/latentlm_platform/
    dashboards/latentlm_dashboards/  dashboards/views/

Nothing else: no `.git`, no caches, no corpora. Ray's Jobs API refuses an upload of more than
100 MiB with an unexplained error, so the size is checked before anything is sent.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from latentlm_platform.cluster import source_roots
from latentlm_platform.errors import UserError
from latentlm_platform.tracking.provenance import GIT_FILE, collect_git

LIMIT_BYTES = 100 * 2**20
SUBMITTED_FILE = "submitted.json"
PLACES = {
    "latentlm": "latentlm",
    "latentlm_platform": "platform/latentlm_platform",
    "latentlm_dashboards": "dashboards/latentlm_dashboards",
}
PYTHONPATH = "platform:dashboards"  # Ray adds the package's own folder
ENTRYPOINT = "python -m latentlm_platform.commands.submitted"


@dataclass(frozen=True)
class Submission:
    """What a job is told: its id, the id without the attempt, the experiment as resolved YAML."""

    submission_id: str
    base: str
    experiment: str
    new: bool = False


def build_package(folder: Path, submission: Submission) -> int:
    """Fill the empty `folder` with what travels; its size in bytes. UserError if too large."""
    roots = source_roots()
    for package, place in PLACES.items():
        _copy(roots[package] / package, folder / place)
    for beside in ("views", "paper"):
        if (data := roots["latentlm_dashboards"] / beside).is_dir():
            _copy(data, folder / "dashboards" / beside)
    _write(folder / SUBMITTED_FILE, asdict(submission))
    _write(folder / GIT_FILE, collect_git(roots["latentlm"])._asdict())
    sizes = {file: file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    if sum(sizes.values()) > LIMIT_BYTES:
        largest = max(sizes, key=lambda file: sizes[file])
        raise UserError(
            f"the sources are {sum(sizes.values()) / 2**20:.0f} MiB and a cluster takes"
            f" {LIMIT_BYTES / 2**20:.0f} MiB: remove what does not belong there, first of all"
            f" {largest.relative_to(folder)} ({sizes[largest] / 2**20:.0f} MiB)"
        )
    return sum(sizes.values())


def read_submission(folder: Path) -> Submission:
    """What the package in `folder` says of its job."""
    return Submission(**json.loads((folder / SUBMITTED_FILE).read_text(encoding="utf-8")))


def _copy(source: Path, target: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
    shutil.copytree(source, target, ignore=ignored)


def _write(path: Path, fields: dict[str, object]) -> None:
    path.write_text(json.dumps(fields, indent=1), encoding="utf-8")
