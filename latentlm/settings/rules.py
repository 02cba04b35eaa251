"""Rules that several settings share. A problem is `(relative dotted path, sentence)`."""

from collections.abc import Iterator
from typing import Final

Problem = tuple[str, str]

STRICT: Final[dict[str, object]] = {"extra": "forbid", "strict": True}


def positive(settings: object, *names: str) -> Iterator[Problem]:
    """One problem for every named field that is not greater than zero."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value > 0:
            yield name, f"{value} is not positive; give a number greater than 0"


def divides(part_name: str, part: int, whole_name: str, whole: int) -> Iterator[Problem]:
    """A problem unless `part` divides `whole`; it names the nearest values that do."""
    if part > 0 and whole > 0 and whole % part:
        fits = [n for n in range(1, whole + 1) if whole % n == 0]
        lower = max((n for n in fits if n < part), default=1)
        upper = min((n for n in fits if n > part), default=whole)
        choice = f"{lower} or {upper}" if lower != upper else str(lower)
        yield part_name, f"{part} does not divide {whole_name} = {whole}; choose {choice}"
