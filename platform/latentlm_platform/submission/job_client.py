"""Ray's Jobs API over HTTP: a token sent, a refusal explained, a log that outlives its connection.

Questions are plain requests with a timeout of their own; Ray's client is imported only to send
a package and to stream a log.
"""

import asyncio
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from latentlm_platform.errors import UserError

ANSWER_TIMEOUT_S = 60.0  # a head that starts workers on few cores is slow to answer
PATIENCE_S = 90.0  # how long a followed cluster may be away
QUIET_S = 30.0  # a stream silent for so long is held against the cluster's own word
RECONNECT_S = 1.0
ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}
INTERRUPTED = 130
Answer = TypeVar("Answer")


class Unreachable(UserError):
    """Nobody answers at the address just now."""


@dataclass(frozen=True)
class Job:
    """What the cluster knows of a job of ours; times in seconds since 1970, 0 if not yet."""

    submission_id: str
    status: str
    metadata: dict[str, str]
    started_s: float = 0.0
    ended_s: float = 0.0
    message: str = ""
    driver_exit_code: int | None = None

    @property
    def alive(self) -> bool:
        return self.status not in ENDED

    @property
    def exit_code(self) -> int:
        """The exit code of its driver; 130 if it was stopped, as for a local run."""
        if self.status == "SUCCEEDED":
            return 0
        if self.status == "STOPPED":
            return INTERRUPTED
        code = self.driver_exit_code
        if not code:
            return 1
        return code if code > 0 else 128 - code


class JobClient:
    """The Jobs API of one cluster."""

    def __init__(self, address: str, *, token: str | None) -> None:
        self.address = address
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    def jobs(self) -> list[Job]:
        """Every job that was submitted to the cluster, the newest first."""
        found = self._ask("GET", "/api/jobs/")
        if not isinstance(found, list):
            raise UserError(_not_a_dashboard(self.address))
        jobs = [_job(fields) for fields in found if fields.get("submission_id")]
        return sorted(jobs, key=lambda job: job.started_s, reverse=True)

    def has_nodes(self) -> bool:
        """Whether a node has reported to the cluster, so that a job can start at once."""
        return bool(self._ask("GET", "/nodes?view=hostnamelist")["data"]["hostNameList"])

    def job(self, submission_id: str) -> Job:
        """One job as it stands now."""
        return _job(self._ask("GET", f"/api/jobs/{submission_id}"))

    def log(self, submission_id: str) -> str:
        """Everything that the job's driver has written."""
        return str(self._ask("GET", f"/api/jobs/{submission_id}/logs")["logs"])

    def stop(self, submission_id: str) -> None:
        """Ask the job to end; it takes its time to save."""
        self._ask("POST", f"/api/jobs/{submission_id}/stop")

    def send(
        self,
        submission_id: str,
        *,
        entrypoint: str,
        package: Path,
        environment: dict[str, str],
        metadata: dict[str, str],
    ) -> bool:
        """Upload the package and start the job; False if the cluster has a job of that id."""
        try:
            self._ray_client().submit_job(
                entrypoint=entrypoint,
                submission_id=submission_id,
                runtime_env={"working_dir": str(package), "env_vars": environment},
                metadata=metadata,
            )
        except RuntimeError as error:
            if f"{submission_id} already exists" in str(error):
                return False
            first = str(error).strip().splitlines()[0]
            raise UserError(f"{self.address} refused the job: {first}", exit_code=1) from error
        except OSError as error:
            raise Unreachable(
                f"{self.address} went away while the sources were sent: submit again", exit_code=1
            ) from error
        return True

    def follow(self, submission_id: str, write: Callable[[str], None]) -> Job:
        """Write the log as it grows until the job has ended; the ended job.

        A stream of Ray's ends without a word when its connection drops: after each end the job's
        status is read again, and a new stream goes on where the last one ended.
        """
        seen = 0
        while True:
            seen = asyncio.run(self._stream(submission_id, seen=seen, write=write))
            job = self._patiently(lambda: self.job(submission_id))
            if not job.alive:
                write(self._patiently(lambda: self.log(submission_id))[seen:])
                return job
            time.sleep(RECONNECT_S)

    async def _stream(self, submission_id: str, *, seen: int, write: Callable[[str], None]) -> int:
        """Write what one connection brings beyond `seen` characters; how many have been seen.

        Every stream begins with the log's first character.
        """
        position = 0
        stream = self._tail(submission_id)
        while (text := await self._next(stream, submission_id)) is not None:
            write(text[max(0, seen - position) :])
            position += len(text)
            seen = max(seen, position)
        return seen

    async def _next(self, stream: AsyncIterator[str], submission_id: str) -> str | None:
        """The next piece of a stream; None when it has ended, however it did."""
        part = asyncio.ensure_future(anext(stream))
        try:
            while not (await asyncio.wait({part}, timeout=QUIET_S))[0]:
                if not (await asyncio.to_thread(self.job, submission_id)).alive:
                    return None  # ended, and still nothing comes: the connection is dead
            return part.result()
        except Exception:  # the status, asked next, says what it was
            return None
        finally:
            part.cancel()

    async def _tail(self, submission_id: str) -> AsyncIterator[str]:
        """Ray's own stream of a log, from its beginning; it connects when it is first read."""
        async for text in self._ray_client().tail_job_logs(submission_id):
            yield text

    def _patiently(self, ask: Callable[[], Answer]) -> Answer:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return ask()
            except Unreachable as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{self.address} has not answered for {PATIENCE_S:.0f} s; if the cluster"
                        " lives, the job goes on: follow it again with `latentlm logs -f`",
                        exit_code=1,
                    ) from error
                time.sleep(RECONNECT_S)

    def _ask(self, method: str, path: str) -> Any:
        request = urllib.request.Request(self.address + path, method=method, headers=self.headers)
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise self._explained(error.code, error.read(500).decode(errors="replace")) from error
        except (OSError, ValueError) as error:
            if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
                raise UserError(_not_a_dashboard(self.address)) from error
            reason = getattr(error, "reason", None) or error
            raise Unreachable(
                f"{self.address} does not answer ({reason}): check --address, which is the"
                " dashboard's http://HOST:8265, and whether the cluster is up",
                exit_code=1,
            ) from error

    def _explained(self, status: int, body: str) -> UserError:
        if status == 401 or (status == 403 and not self.headers):
            return UserError(
                f"{self.address} wants a token and none was sent: give --token-file, or put the"
                " token's file in RAY_AUTH_TOKEN_PATH (on the head node `ray get-auth-token`"
                " prints the token)",
                report={"http_status": status},
            )
        if status == 403:
            return UserError(
                f"{self.address} does not take the token that was sent: it is another cluster's"
                " or an older one; give the file of this cluster's with --token-file",
                report={"http_status": status},
            )
        if status == 404:
            return UserError(_not_a_dashboard(self.address))
        if status in (502, 503, 504):
            return Unreachable(f"{self.address} answers {status} just now", exit_code=1)
        last = (body.strip().splitlines() or [""])[-1]
        return UserError(f"{self.address} answered {status}: {last}", exit_code=1)

    def _ray_client(self) -> Any:
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # it goes over RAY_ADDRESS
        from ray.job_submission import JobSubmissionClient

        for name in ("modules.dashboard_sdk", "modules.job.sdk"):  # they tell every upload
            logging.getLogger(f"ray.dashboard.{name}").setLevel(logging.WARNING)
        logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.WARNING)
        return JobSubmissionClient(self.address, headers=dict(self.headers))


def _not_a_dashboard(address: str) -> str:
    return (
        f"{address} answers, but not as a Ray dashboard: give --address the http://HOST:8265 of"
        " the cluster's head node"
    )


def _job(fields: dict[str, Any]) -> Job:
    return Job(
        submission_id=fields["submission_id"],
        status=fields["status"],
        metadata=fields.get("metadata") or {},
        started_s=(fields.get("start_time") or 0) / 1000,
        ended_s=(fields.get("end_time") or 0) / 1000,
        message=fields.get("message") or "",
        driver_exit_code=fields.get("driver_exit_code"),
    )
