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


class Stopped(Exception):
    """A stop was asked for and a checkpoint is saved."""


def own_error(error: BaseException) -> UserError | None:
    """The UserError that a Ray task's or a Ray Data task's error wraps or amounts to, if any."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError) and not hasattr(seen, "cause"):
            return seen
        if type(seen).__name__ == "OutOfMemoryError":  # Ray's; it is not imported for its name
            return UserError(
                "a machine ran out of memory and Ray ended workers on it: stop what else runs"
                " there, or lower train.workers, latents.actors, evaluate.actors or batch sizes",
                exit_code=1,
            )
        seen = getattr(seen, "cause", None) or seen.__cause__
    return None
