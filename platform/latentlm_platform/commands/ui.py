"""Open MLflow on this machine, with the comparison views of `dashboards/views/` in it.

    latentlm ui                           # the runs in $LATENTLM_HOME, at http://127.0.0.1:5000
    latentlm ui --port 5001 --experiment sigma
    latentlm ui --uri http://tracking:5000     # a server that runs already: only adds the views

It prints the links, first the one that answers "which CFG scale is best?", and serves until
Ctrl-C, to this machine only.
"""

import argparse
import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import NoReturn

from latentlm_platform.commands import Result
from latentlm_platform.errors import UserError

FIRST = "cfg_scale"
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 10.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=5000, help="port on 127.0.0.1 (default 5000)")
    parser.add_argument("--uri", help="MLflow store; default: the database in $LATENTLM_HOME")
    parser.add_argument(
        "--experiment", help="MLflow experiment that gets the views (default: all with our runs)"
    )


def execute(arguments: argparse.Namespace) -> Result:
    from latentlm_platform.experiment.sections import Tracking
    from latentlm_platform.tracking.client import open_tracker

    chosen = {"experiment": arguments.experiment} if arguments.experiment else {}
    tracking = Tracking(uri=arguments.uri, **chosen)
    tracker = open_tracker(tracking)
    if tracker.uri.startswith("http"):
        return Result(_report(tracker.uri, tracker.uri, arguments.experiment))
    _require_port(arguments.port)
    url = f"http://127.0.0.1:{arguments.port}"
    report = _report(tracker.uri, url, arguments.experiment)
    print("starting MLflow, which takes up to a minute", file=sys.stderr)
    server = _start(tracker.uri, arguments.port)
    print(f"MLflow answers at {url}; Ctrl-C ends it", flush=True)  # also into a pipe
    return Result(report, then=lambda: _serve(server))


def _report(uri: str, url: str, experiment: str | None) -> dict[str, object]:
    """Apply all views, print the way to them, the first question first."""
    from latentlm_dashboards import tracked_experiments
    from latentlm_platform.experiment.sections import Tracking

    names = [experiment] if experiment else tracked_experiments(uri)
    views = {name: _applied(uri, url, name) for name in names or [Tracking().experiment]}
    print(f"MLflow's pages: {url}")
    for name, links in views.items():
        for view in sorted(links, key=lambda view: (view != FIRST, view)):
            where = f"  (experiment {name})" if len(views) > 1 else ""
            print(f"{view}: {links[view]}{where}")
            if len(views) > 1:
                break  # of several experiments the first question; the page's menu has the rest
    print("a report in one file: latentlm dashboards report RUN   (`latentlm list` names them)")
    first = next(iter(views.values()))
    return {"url": url, "views": first, "experiments": views}


def _applied(uri: str, url: str, experiment: str) -> dict[str, str]:
    """View → link; none, with the reason, where MLflow is too old for views."""
    from latentlm_dashboards import apply_views

    try:
        return {v.name: v.link for v in apply_views(uri, experiment, base_url=url) if v.link}
    except UserError as error:
        print(error, file=sys.stderr)
        return {}


def _require_port(port: int) -> None:
    """UserError before anything is written, where the server could not listen there."""
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            raise UserError(
                f"port {port} is taken or not allowed; choose another with --port"
            ) from None


def _start(uri: str, port: int) -> "subprocess.Popen[bytes]":
    """A server that answers, or a UserError; its log is in $LATENTLM_HOME."""
    from latentlm_platform.home import home

    log = home() / "mlflow-server.log"
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri),
        *("--artifacts-destination", (home() / "mlartifacts").as_uri()),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--allowed-hosts", f"127.0.0.1:{port},localhost:{port}"),
    ]
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # pages only: no background jobs
    }
    signal.signal(signal.SIGTERM, _interrupt)
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    atexit.register(_end, server)  # however this command ends, the server ends with it
    _wait_until_healthy(server, f"http://127.0.0.1:{port}/health", log)
    return server


def _wait_until_healthy(server: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this machine's own
    while server.poll() is None and time.monotonic() < deadline_s:
        try:
            with direct.open(url, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    lines = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
    raise UserError(f"MLflow did not start: {lines[0]}; the whole log is {log}", exit_code=1)


def _serve(server: "subprocess.Popen[bytes]") -> None:
    """Until Ctrl-C or SIGTERM."""
    with contextlib.suppress(KeyboardInterrupt):
        server.wait()


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _end(server: "subprocess.Popen[bytes]") -> None:
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(STOP_TIMEOUT_S)
            return
