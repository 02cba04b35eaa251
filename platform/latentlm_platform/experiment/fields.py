"""What every section of an experiment is made of: strict fields, and unions that a `kind` chooses.

A section that has several kinds takes the one of DEFAULT_KINDS where its YAML names none, so that
`kind` is written only where an experiment is not about class-conditional images.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Discriminator, Field

from latentlm.settings.rules import Problem

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]

DEFAULT_KINDS: Final = {"corpus": "class_images", "codec": "image_vit", "model": "latent_lm"}


class Section(BaseModel):
    """A part of an experiment: unknown keys and wrong types are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def problems(self) -> Iterator[Problem]:
        """Rules between fields of this section that are broken."""
        return iter(())


def by_kind(section: str) -> Discriminator:
    """What chooses among the tagged kinds of a section: its `kind`, or the default one."""

    def kind_of(value: Any) -> str:
        given = value if isinstance(value, dict) else getattr(value, "__dict__", {})
        return str(given.get("kind", DEFAULT_KINDS[section]))

    return Discriminator(kind_of)


def default_kind(path: tuple[str | int, ...]) -> str | None:
    """The kind that the section at `path` has where none is written; None where one must be."""
    return DEFAULT_KINDS.get(str(path[0])) if len(path) == 1 else None
