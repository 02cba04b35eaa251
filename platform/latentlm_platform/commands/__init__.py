"""One module a command: `configure(parser)` names its arguments, `execute(arguments)` does it.

`execute` prints for a person and returns a `Result` for programs. Modules import what is heavy
inside `execute`, so that `--help` and `validate` answer at once.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Result:
    """What a command found: the JSON report and the process's exit code."""

    report: dict[str, Any] | list[Any] = field(default_factory=dict)
    exit_code: int = 0
