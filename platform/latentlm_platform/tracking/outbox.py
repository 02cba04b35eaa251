"""Calls to MLflow that must never stop a run: in order, tried again, counted when they are lost."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

WAITING_CALLS = 10_000
RETRY_EVERY_S = 15.0
REFUSALS = {  # the store answered and will answer the same again
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "BAD_REQUEST",
    "INVALID_STATE",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "ENDPOINT_NOT_FOUND",
}


class Outbox:
    """Calls to the store, in order. What does not get through waits; what is refused is counted."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, Callable[[], Any]]] = deque()
        self._lock = threading.RLock()
        self._retry_at_s = 0.0
        self.reason = ""
        self.refused: list[str] = []

    def send(self, what: str, call: Callable[[], Any]) -> None:
        """Do `call` now, or after those that already wait. Never raises."""
        with self._lock:
            if self._waiting and time.monotonic() >= self._retry_at_s:
                self._drain()
            if self._waiting or not self._attempt(what, call):
                self._waiting.append((what, call))
            if len(self._waiting) > WAITING_CALLS:
                self.refused.append(self._waiting.popleft()[0])

    def flush(self, timeout_s: float) -> int:
        """Try what waits until it is through or the time is over; how many calls still wait."""
        deadline_s = time.monotonic() + timeout_s
        with self._lock:
            while not self._drain() and time.monotonic() < deadline_s:
                time.sleep(1.0)
            return len(self._waiting)

    def _drain(self) -> bool:
        while self._waiting and self._attempt(*self._waiting[0]):
            self._waiting.popleft()
        return not self._waiting

    def _attempt(self, what: str, call: Callable[[], Any]) -> bool:
        try:
            call()
        except Exception as error:  # whatever a store throws: the run goes on
            self.reason = f"{what}: {first_line(error)}"
            if _is_outage(error):
                self._retry_at_s = time.monotonic() + RETRY_EVERY_S
                return False
            self.refused.append(self.reason)
        return True


def _is_outage(error: Exception) -> bool:
    """Whether trying again later can help: the store is away, not against it."""
    if isinstance(error, FileNotFoundError):
        return False
    code = getattr(error, "error_code", None)
    return isinstance(error, OSError) if code is None else code not in REFUSALS


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
