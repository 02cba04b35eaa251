"""Sending an experiment to a Ray cluster, and finding it there again.

A submission's id is the experiment's name and key, so that the same YAML is the same run whoever
submits it, and Ray itself refuses the second of two that come at the same moment. Ids cannot be
used twice: what goes on or is repeated becomes ID.2, ID.3 …; ID names the newest of them.
"""

import base64
import difflib
import os
import re
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentlm_platform.errors import UserError
from latentlm_platform.experiment.files import experiment_key, resolved_yaml
from latentlm_platform.experiment.sections import Experiment
from latentlm_platform.submission.head_node import read_head
from latentlm_platform.submission.job_client import Job, JobClient
from latentlm_platform.submission.source_package import (
    ENTRYPOINT,
    PYTHONPATH,
    Submission,
    build_package,
)

STOP_WAIT_S = 180  # between SIGTERM and SIGKILL: time for a checkpoint; Ray's default is 3
NAME_CHARACTERS = 60
ID = re.compile(r"(?P<base>.+-[0-9a-f]{12})(?:\.(?P<attempt>\d+))?")
RUN_LINE = "latentlm: run {key}, MLflow run {run_id} in {uri}"
RUN_PATTERN = re.compile(r"^latentlm: run (\S+), MLflow run (\S+) in (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Sent:
    """A submission's job; `sent` is False where the cluster had it already."""

    job: Job
    sent: bool


def open_client(address: str | None, *, token_file: str | None = None) -> JobClient:
    """The cluster at `address`; None or `local` is the head that `latentlm cluster up` started."""
    head = read_head()
    if address in (None, "local"):
        if head is None:
            raise UserError(
                "no cluster is named and none of yours is up: give --address URL, or start one on"
                " this machine with `latentlm cluster up`"
            )
        address = head.address
    url = _url(str(address))
    own = head is not None and url == head.address
    return JobClient(url, token=_token(token_file, own=head.token_file if own and head else None))


def _url(address: str) -> str:
    scheme, separator, rest = address.rstrip("/").partition("://")
    if not separator:
        return f"http://{scheme}"
    if scheme not in ("http", "https") or not rest:
        raise UserError(
            f"--address {address} is not a dashboard's address: give http://HOST:8265"
            " (jobs go over Ray Jobs, not over Ray Client)"
        )
    return f"{scheme}://{rest}"


def _token(token_file: str | None, *, own: Path | None) -> str | None:
    """The token to send: the named file's, this head's own, then where Ray looks for one."""
    if token_file is not None:
        return _read_token(Path(token_file).expanduser(), "--token-file")
    if own is not None:
        return _read_token(own, "the token of `latentlm cluster up`")
    if os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"].strip()
    if os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return _read_token(Path(os.environ["RAY_AUTH_TOKEN_PATH"]), "RAY_AUTH_TOKEN_PATH")
    default = Path("~/.ray/auth_token").expanduser()
    return _read_token(default, str(default)) if default.is_file() else None


def _read_token(path: Path, what: str) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UserError(f"{what}: {path} cannot be read: {reason}") from error
    if not re.fullmatch(r"[!-~]+", token):
        raise UserError(f"{what}: {path} holds no token: it must be one word")
    return token


def submission_id(experiment: Experiment) -> str:
    """Name and key; two experiments share it only if they compute the same."""
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", experiment.name)[:NAME_CHARACTERS].strip("-.")
    return f"{slug or 'experiment'}-{experiment_key(experiment)}"


def base_and_attempt(given: str) -> tuple[str, int]:
    """`ID.2` → (`ID`, 2); the first attempt has no number."""
    found = ID.fullmatch(given)
    if found is None:
        return given, 1
    return found["base"], int(found["attempt"] or 1)


def submit(
    client: JobClient, experiment: Experiment, *, new: bool = False, home: str | None = None
) -> Sent:
    """Send the experiment, unless it runs or has succeeded there; `new` repeats a finished one.

    What failed or was stopped goes on, as `latentlm run` would let it.
    """
    base = submission_id(experiment)
    refuse_paths_of_this_shell(experiment)
    while True:
        newest = newest_attempt(client.jobs(), base)
        if newest is not None:
            _require_same_home(newest, home, new=new)
            if new and newest.alive:
                raise UserError(
                    f"{newest.submission_id} is still {newest.status} at {client.address}: wait for"
                    f" it or `latentlm stop {newest.submission_id}` before --new"
                )
            if not new and (newest.alive or newest.status == "SUCCEEDED"):
                return Sent(newest, sent=False)
        attempt = 1 if newest is None else base_and_attempt(newest.submission_id)[1] + 1
        name = base if attempt == 1 else f"{base}.{attempt}"
        if _send(client, experiment, Submission(name, base, resolved_yaml(experiment), new), home):
            return Sent(client.job(name), sent=True)
        # another shell took the id at this very moment: look again


def resume(client: JobClient, job: Job) -> Sent:
    """Go on with a job that failed or was stopped: its experiment, with this shell's sources."""
    if job.alive:
        raise UserError(
            f"{job.submission_id} is {job.status}: there is nothing to resume; follow it with"
            f" `latentlm logs -f {job.submission_id}`"
        )
    from latentlm_platform.experiment.files import load_experiment

    with tempfile.TemporaryDirectory(prefix="latentlm-") as folder:
        path = Path(folder) / "experiment.yaml"
        path.write_text(_unpacked(job.metadata["latentlm.experiment"]), encoding="utf-8")
        experiment = load_experiment(path)
    base, _ = base_and_attempt(job.submission_id)
    if submission_id(experiment) != base:
        raise UserError(
            f"{job.submission_id} was submitted by another version of latentlm, for which its"
            " experiment was not the same as for this one: submit its file again"
        )
    return submit(client, experiment, home=job.metadata.get("latentlm.home") or None)


def our_jobs(jobs: list[Job]) -> list[Job]:
    """The jobs that this command sent, of all that the cluster has."""
    return [job for job in jobs if "latentlm.key" in job.metadata]


def newest_attempt(jobs: list[Job], base: str) -> Job | None:
    """The last of ID, ID.2, ID.3 …"""
    same = [job for job in our_jobs(jobs) if base_and_attempt(job.submission_id)[0] == base]
    return max(same, key=lambda job: base_and_attempt(job.submission_id)[1], default=None)


def find_job(jobs: list[Job], given: str) -> Job:
    """The job that `given` names: its id, the start of it, the experiment's key or name.

    Of several attempts the newest, unless the attempt is named.
    """
    ours = our_jobs(jobs)
    for job in ours:
        if job.submission_id == given and base_and_attempt(given)[1] > 1:
            return job
    if (exact := newest_attempt(ours, given)) is not None:
        return exact
    bases = list(dict.fromkeys(base_and_attempt(job.submission_id)[0] for job in ours))
    keys = {base_and_attempt(j.submission_id)[0]: j.metadata["latentlm.key"] for j in ours}
    matches = [one for one in bases if one.startswith(given) or keys[one].startswith(given)]
    named = [j for j in ours if j.metadata.get("latentlm.name") == given]  # the newest comes first
    if named:
        matches = [base_and_attempt(named[0].submission_id)[0]]
    if len(matches) > 1:
        raise UserError(f"{given!r} fits several jobs ({', '.join(matches)}); give more of the id")
    if matches:
        found = newest_attempt(ours, matches[0])
        assert found is not None, matches
        return found
    near = difflib.get_close_matches(given, [*bases, *keys.values()], 1, cutoff=0.5)
    known = ", ".join(bases[:5]) or "none yet"
    hint = f"did you mean {near[0]}?" if near else f"known there: {known}"
    raise UserError(f"no job there is called {given!r}; {hint} (see `latentlm list --address`)")


def mlflow_run(log: str) -> dict[str, str]:
    """What the job said of its run: key, MLflow run id and store; empty before it has one."""
    found = RUN_PATTERN.findall(log)
    return dict(zip(("key", "run_id", "tracking_uri"), found[-1], strict=True)) if found else {}


def refuse_paths_of_this_shell(experiment: Experiment) -> None:
    """UserError where a relative path means something here that it cannot mean on the cluster."""
    for path, value in _paths(experiment.model_dump(mode="json"), ""):
        if "://" not in value and not Path(value).is_absolute() and Path(value).exists():
            raise UserError(
                f"{path} = {value} is relative to the folder you are in, which a job does not know:"
                f" write it in full ({Path(value).absolute()}), as the cluster's nodes see it"
            )


def _paths(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every string in a field that holds a path, by the field's name."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _paths(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for inner in value:
            yield from _paths(inner, path)
    elif isinstance(value, str) and path.endswith(("source", "weights")):
        yield path, value


def _send(
    client: JobClient, experiment: Experiment, submission: Submission, home: str | None
) -> bool:
    from latentlm_platform.submission.source_package import source_roots
    from latentlm_platform.tracking.provenance import collect_git

    environment = {"PYTHONPATH": PYTHONPATH, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
    if home is not None:
        environment["LATENTLM_HOME"] = home
    metadata = {
        "latentlm.name": experiment.name,
        "latentlm.key": experiment_key(experiment),
        "latentlm.git_commit": collect_git(source_roots()["latentlm"]).commit or "none",
        "latentlm.home": home or "",
        "latentlm.experiment": _packed(submission.experiment),
    }
    with tempfile.TemporaryDirectory(prefix="latentlm-") as folder:
        package = Path(folder) / "package"
        package.mkdir()
        build_package(package, submission)
        return client.send(
            submission.submission_id,
            entrypoint=ENTRYPOINT,
            package=package,
            environment=environment,
            metadata=metadata,
        )


def _require_same_home(job: Job, home: str | None, *, new: bool) -> None:
    before = job.metadata.get("latentlm.home") or None
    if before != home and not new:
        raise UserError(
            f"{job.submission_id} was submitted with"
            f" {f'--home {before}' if before else 'no --home'}: say the same, or add --new to"
            " repeat it elsewhere"
        )


def _packed(text: str) -> str:
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _unpacked(packed: str) -> str:
    return zlib.decompress(base64.b64decode(packed)).decode()
