"""One module a command: `configure(parser)` names its arguments, `execute(arguments)` does it.

`execute` prints for a person and returns a `Result` for programs. Modules import what is heavy
inside `execute`, so that `--help` and `validate` answer at once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Result:
    """What a command found: the JSON report and the process's exit code.

    `then` goes on after the report is written: a server that runs until Ctrl-C.
    """

    report: dict[str, Any] | list[Any] = field(default_factory=dict)
    exit_code: int = 0
    then: Callable[[], None] | None = None
