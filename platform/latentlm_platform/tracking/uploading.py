"""From the journal of a training to its MLflow run, in a thread of the driver."""

import math
import threading
import time

from latentlm_platform.tracking.client import TrackedRun
from latentlm_platform.tracking.journal import Journal
from latentlm_platform.tracking.outbox import first_line
from latentlm_platform.tracking.protocol import METRICS_A_CALL, chunks, metric_rows


class JournalUploader(threading.Thread):
    """Follows a training's journal into its MLflow run; MLflow itself remembers how far it came.

    A value is written once for each metric and step, also when the driver or the worker is
    started again: steps that the run already has are passed over.
    """

    def __init__(self, journal: Journal, run: TrackedRun, *, every_s: float = 5.0) -> None:
        super().__init__(name=f"uploading {journal.path.name}", daemon=True)
        self._journal, self._run, self._every_s = journal, run, every_s
        self._offset = 0
        self._last_step: dict[str, int] | None = None
        self._closing = threading.Event()
        self._deadline_s = math.inf
        self.complete = False

    def run(self) -> None:
        """Upload until closed, then until everything is through or the time is over."""
        while not self._closing.wait(self._every_s):
            self._upload()
        while not self._upload() and time.monotonic() < self._deadline_s:
            time.sleep(min(1.0, self._every_s))

    def close(self, timeout_s: float = 60.0) -> bool:
        """Upload what is left; False where MLflow lacks some of it (the journal has it all)."""
        self._deadline_s = time.monotonic() + timeout_s
        self._closing.set()
        self.join(timeout_s)
        if not self.complete:
            self._run.tracker.outbox.refused.append(f"the rest of {self._journal.path}")
        return self.complete

    def _upload(self) -> bool:
        try:
            if self._last_step is None:
                self._last_step = self._run.uploaded_steps()
            entries, offset = self._journal.read_from(self._offset)
            seen = dict(self._last_step)
            rows = []
            for entry in entries:
                new = {k: v for k, v in entry.metrics.items() if entry.step > seen.get(k, -1)}
                rows += metric_rows(new, step=entry.step, time_ms=entry.time_ms)
                seen.update(dict.fromkeys(new, entry.step))
            for some in chunks(rows, METRICS_A_CALL):
                self._run.log_batch(metrics=some)
                self._last_step.update((row.key, row.step) for row in some)
        except Exception as error:  # an outage: the same entries are read again
            self._run.tracker.outbox.reason = first_line(error)
            self.complete = False
            return False
        self._offset, self.complete = offset, True
        return True
