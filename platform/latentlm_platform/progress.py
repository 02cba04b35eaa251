"""Progress for a person: a bar with rate and ETA in a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

LINE_EVERY_S = 15.0


class Bar:
    """`with Bar("training", total=1200, unit="step") as bar: bar.reach(20, note="loss 0.41")`."""

    def __init__(self, title: str, *, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.started = self.spoken = time.monotonic()
        self.start: int | None = None
        self.done = 0
        self.bar: tqdm | None = None

    def __enter__(self) -> "Bar":
        return self

    def reach(self, done: int, *, note: str = "") -> None:
        """`done` of `total` are behind us; `note` stands at the end of the bar."""
        if self.start is None:
            self.start, self.started = done, time.monotonic()
            if sys.stderr.isatty():
                self.bar = tqdm(
                    total=self.total, initial=done, desc=self.title, unit=self.unit, leave=True
                )
        if self.bar is not None:
            self.bar.update(done - self.bar.n)
            self.bar.set_postfix_str(note)
        elif time.monotonic() - self.spoken > LINE_EVERY_S and done != self.done:
            self.spoken = time.monotonic()
            print(self._line(done, note), file=sys.stderr, flush=True)
        self.done = done

    def _line(self, done: int, note: str) -> str:
        rate = (done - (self.start or 0)) / max(1e-9, time.monotonic() - self.started)
        left = f", {duration((self.total - done) / rate)} left" if rate > 0 else ""
        speed = f" ({rate:.3g} {self.unit}/s{left})"
        return f"  {self.title}: {done}/{self.total}{speed} {note}".rstrip()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.close()


def duration(seconds: float) -> str:
    """75 → "1 min 15 s"; 7500 → "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def say(sentence: str) -> None:
    """Tell the user, beside the progress bar."""
    print(sentence, file=sys.stderr, flush=True)
