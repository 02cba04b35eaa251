"""The keys an experiment may have, read from its types: merging by them, and what a typo meant."""

import dataclasses
import difflib
from collections.abc import Iterator
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from latentlm_platform.experiment.fields import DEFAULT_KINDS, Section, default_kind
from latentlm_platform.experiment.sections import Experiment
from latentlm_platform.located_yaml import KeyPath, dotted

NEAR = 0.7  # similarity from which a key counts as a misspelling of another


def fields(section: type) -> dict[str, Any]:
    """Key → annotation of a section or of a settings dataclass."""
    if issubclass(section, Section):
        return {name: field.annotation for name, field in section.model_fields.items()}
    hints = get_type_hints(section)
    return {name: hints[name] for name in getattr(section, "__dataclass_fields__", ())}


def sections_in(annotation: Any) -> list[type]:
    """The sections that an annotation allows; more than one where a `kind` chooses."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        is_section = issubclass(annotation, Section) or dataclasses.is_dataclass(annotation)
        return [annotation] if is_section else []
    if get_origin(annotation) in (dict, tuple, list):
        return []
    return [section for part in get_args(annotation) for section in sections_in(part)]


def variants_at(path: KeyPath) -> list[type]:
    """The sections that may stand at `path`; more than one where a `kind` chooses."""
    found: list[Any] = [Experiment]
    for part in path:
        found = [inner for one in found for inner in _below(one, part)]
    return [section for one in found for section in sections_in(one)]


def _below(annotation: Any, part: str | int) -> list[Any]:
    """The annotations that a key, or an index, of a value of this annotation may have."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (tuple, list, dict):
        return [arguments[1 if origin is dict else 0]]
    if origin is not None:
        return [inner for one in arguments for inner in _below(one, part)]
    return [fields(section).get(str(part)) for section in sections_in(annotation)]


def kinds_at(path: KeyPath) -> list[str]:
    """The kinds of the section at `path`, the default one first."""
    return [kind for one in variants_at(path) for kind in get_args(fields(one).get("kind"))]


def keys_at(path: KeyPath, *, kind: object = None) -> list[str]:
    """The keys of the section at `path`; of its variant `kind` where there are several."""
    found = variants_at(path)
    chosen = [s for s in found if kind in get_args(fields(s).get("kind"))] or found
    return list(dict.fromkeys(key for section in chosen for key in fields(section)))


@cache
def every_path() -> frozenset[KeyPath]:
    """Every path of the schema, sections and leaves, of all variants."""

    def walk(section: type, prefix: KeyPath) -> Iterator[KeyPath]:
        for name, annotation in fields(section).items():
            yield (*prefix, name)
            for inner in sections_in(annotation):
                yield from walk(inner, (*prefix, name))

    return frozenset(walk(Experiment, ()))


def merged(base: Any, over: Any, *, path: KeyPath = ()) -> Any:
    """`over` merged deeply over `base`; neither is changed."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    kind = over.get("kind")
    if isinstance(kind, str) and base.get("kind", default_kind(path) or kind) != kind:
        known = keys_at(path, kind=kind)
        base = {key: value for key, value in base.items() if key in known}
    joined = dict(base)
    for key, value in over.items():
        joined[key] = merged(base.get(key), value, path=(*path, key))
    return joined


def nearest(word: str, words: list[str]) -> str | None:
    """The word most like `word`, if any is like it at all."""
    begun = [one for one in words if len(word) > 2 and one.startswith(word)]
    return next(iter(difflib.get_close_matches(word, words, n=1, cutoff=NEAR) + begun), None)


def unknown_key(path: KeyPath, *, kind: object = None) -> str:
    """The sentence about a key that its section does not have."""
    section, key = path[:-1], path[-1]
    default = default_kind(section)
    known = keys_at(section, kind=kind or default)
    where = dotted(section) or "an experiment"
    if kind is not None:
        where += f" of kind {kind}"
    sentence = f"{dotted(path)} is not a key of {where}"
    if default and key in keys_at(section):
        kinds = [one for one in kinds_at(section) if key in keys_at(section, kind=one)]
        return f"{sentence}; it belongs to kind {' or '.join(kinds)}"
    if (meant := nearest(str(key), known)) is not None:
        return f"{sentence}; did you mean {meant}?"
    owners = sorted(dotted(p[:-1]) for p in every_path() if p[-1] == key and len(p) > 1)
    owners = [owner for owner in owners if owner != dotted(section)]
    if owners:
        return f"{sentence}; {key} belongs in {' or '.join(owners)}"
    if (key,) in every_path():
        return f"{sentence}; {key} belongs at the top of the file"
    return f"{sentence}; its keys are {', '.join(known)}"


def unknown_path(path: str) -> str | None:
    """The sentence about a dotted path that the schema does not have; None if it has it."""
    parts = tuple(path.split("."))
    if parts in every_path():
        return None
    owners = sorted(dotted(p) for p in every_path() if p[-1] == path)
    meant = nearest(path, sorted(dotted(p) for p in every_path()))
    likely = owners or ([meant] if meant else [])
    hint = f"did you mean {' or '.join(likely)}?" if likely else "`latentlm schema` has them all"
    return f"{path} is not a path of an experiment; {hint}"


def json_schema() -> dict[str, Any]:
    """JSON Schema of an experiment file; sections may come from `extends`, so none is required."""
    schema = Experiment.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["properties"]["extends"] = {
        "description": "Fragments relative to this file; later ones win, this file over all.",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    for section in (schema, *schema.get("$defs", {}).values()):
        section.pop("required", None)
        for name, part in section.get("properties", {}).items():
            if name in DEFAULT_KINDS and "oneOf" in part:  # a part of a section may fit two kinds
                part["anyOf"] = part.pop("oneOf")
    return schema
