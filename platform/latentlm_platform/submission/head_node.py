"""A Ray cluster of one node on this machine, kept up between commands: `latentlm cluster up|down`.

It listens on 127.0.0.1 alone, takes only who has its token (a file of mode 600), and keeps its
temporary files to itself. All of its processes descend from one that we start, and they alone are
ended: other clusters on the machine are never touched.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from latentlm_platform.cluster import OBJECT_STORE_BYTES, local_cpus
from latentlm_platform.errors import UserError
from latentlm_platform.home import home
from latentlm_platform.submission.job_client import JobClient

LOOPBACK = "127.0.0.1"
DASHBOARD_PORT = 8265
START_TIMEOUT_S = 180.0
TERM_TIMEOUT_S = 8.0
MARK = "LATENTLM_HEAD"  # in the environment of all its processes


@dataclass(frozen=True)
class Head:
    """A head node that is up: its address, its first process, its folder of temporary files."""

    address: str
    cpus: int
    pid: int
    started_s: float
    mark: str
    temporary: str

    @property
    def token_file(self) -> Path:
        return _folder() / "token"

    @property
    def alive(self) -> bool:
        """Whether its first process still runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started_s) < 1.0
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def client(self) -> JobClient:
        """Its Jobs API."""
        file = self.token_file
        token = file.read_text(encoding="utf-8").strip() if file.is_file() else None
        return JobClient(self.address, token=token)


def read_head() -> Head | None:
    """The head node that is up, if one is."""
    found = _recorded()
    return found if found is not None and found.alive else None


def start_head(*, cpus: int | None = None, port: int | None = None) -> tuple[Head, bool]:
    """A head node that answers, and whether it was started now."""
    with _alone():
        if (found := read_head()) is not None:
            return found, False
        if (left := _recorded()) is not None:
            _end_processes(left)
            _forget(left)
        head = _launch(cpus or local_cpus(), _free_port(port))
        try:
            _wait_until_it_answers(head)
        except BaseException:
            _end_processes(head)
            _forget(head)
            raise
        return head, True


def end_head() -> Head | None:
    """End every process of the head node; what was ended, None if nothing was up."""
    with _alone():
        head = _recorded()
        if head is None:
            return None
        was_up = head.alive
        _end_processes(head)
        _forget(head)
        return head if was_up else None


def _launch(cpus: int, port: int) -> Head:
    _write_token(_folder() / "token")
    temporary = tempfile.mkdtemp(prefix="llm-")  # short: a socket's path has at most 107 bytes
    mark = secrets.token_hex(8)
    ray_start = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--node-ip-address", LOOPBACK, "--port", "0"),
        *("--dashboard-host", LOOPBACK, "--dashboard-port", str(port)),
        *("--dashboard-agent-listen-port", str(_free_port(0))),
        *("--ray-client-server-port", str(_free_port(0))),
        *("--num-cpus", str(cpus), "--object-store-memory", str(OBJECT_STORE_BYTES)),
        *("--temp-dir", temporary, "--disable-usage-stats"),
    ]
    with (_folder() / "head.log").open("wb") as log:
        process = subprocess.Popen(
            ray_start,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_environment(mark),
            cwd=_folder(),
            start_new_session=True,
        )
    started_s = psutil.Process(process.pid).create_time()
    head = Head(f"http://{LOOPBACK}:{port}", cpus, process.pid, started_s, mark, temporary)
    (_folder() / "head.json").write_text(json.dumps(asdict(head), indent=1), encoding="utf-8")
    return head


def _environment(mark: str) -> dict[str, str]:
    """Token mode with our own token, for these processes alone; nothing of another cluster's."""
    others = {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_JOB_CONFIG_JSON"}
    return {
        **{name: value for name, value in os.environ.items() if name not in others},
        "PATH": sysconfig.get_path("scripts") + os.pathsep + os.environ.get("PATH", ""),
        "LATENTLM_HOME": str(home()),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # what makes Ray keep to the loopback address
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(_folder() / "token"),
        MARK: mark,
    }


def _wait_until_it_answers(head: Head) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    client = head.client()
    while head.alive and time.monotonic() < deadline:
        with contextlib.suppress(UserError):
            if client.has_nodes():
                return
        time.sleep(0.5)
    log = _folder() / "head.log"
    lines = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
    raise UserError(f"Ray did not start: {lines[0].strip()}; the whole log is {log}", exit_code=1)


def _end_processes(head: Head) -> None:
    """SIGTERM to the first process, which ends the others; SIGKILL to what is left."""
    ours = {process.pid: process for process in _processes(head)}
    if head.alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(head.pid).send_signal(signal.SIGTERM)
    psutil.wait_procs(list(ours.values()), timeout=TERM_TIMEOUT_S)
    ours |= {process.pid: process for process in _processes(head)}
    for process in ours.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()  # psutil knows a reused process number
    psutil.wait_procs(list(ours.values()), timeout=TERM_TIMEOUT_S)


def _processes(head: Head) -> list[psutil.Process]:
    """All of them: descendants of the first, and orphans that bear its mark or live in its folder.

    Ray's workers overwrite their title and with it the environment that others can read.
    """
    found = []
    if head.alive:
        first = psutil.Process(head.pid)
        found = [first, *first.children(recursive=True)]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            marked = process.environ().get(MARK) == head.mark
            if marked or process.cwd().startswith(head.temporary + os.sep):
                found.append(process)
    return [process for process in found if process.pid != os.getpid()]


def _write_token(path: Path) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))


def _forget(head: Head) -> None:
    head.token_file.unlink(missing_ok=True)
    (_folder() / "head.json").unlink(missing_ok=True)
    shutil.rmtree(head.temporary, ignore_errors=True)


def _recorded() -> Head | None:
    path = home() / "cluster" / "head.json"
    return Head(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _free_port(wanted: int | None) -> int:
    """The wanted port, or UserError if it is taken; without a wish Ray's usual one or any."""
    for port in (DASHBOARD_PORT, 0) if wanted is None else (wanted,):
        with contextlib.closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError, OverflowError):
                probe.bind((LOOPBACK, port))
                return int(probe.getsockname()[1])
    raise UserError(f"port {wanted} is taken or not allowed; choose another with --port")


def _folder() -> Path:
    folder = home() / "cluster"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One `cluster` command at a time."""
    with (_folder() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
