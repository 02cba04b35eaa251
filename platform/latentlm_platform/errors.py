"""Errors that are the user's to mend: one sentence, an exit code, nothing half-done."""

from typing import Any


class UserError(Exception):
    """What was given, what was expected, what to change, where. Ends a command without a traceback.

    `report` is what `--json` writes; `exit_code` is 2 for wrong input, 3 for what does not fit,
    1 for work that failed.
    """

    def __init__(
        self, sentence: str, *, exit_code: int = 2, report: dict[str, Any] | None = None
    ) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code
        self.report = report or {}
