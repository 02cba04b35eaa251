"""Data → Experiment, or every mistake in it at once, each in one sentence of our own words.

Two passes. First pydantic: unknown keys, missing keys, types, ranges of single fields. Then the
rules between fields. So that no mistake of the first pass hides one of the second, the rules are
also asked about mended copies: a field that failed gets a stand-in, twice with different values,
and what is told alike about both copies does not depend on the stand-in.
"""

import copy
import json
import re
from typing import Any, NamedTuple

from pydantic import ValidationError

from latentlm_platform.experiment.fields import default_kind
from latentlm_platform.experiment.json_schema import nearest, unknown_key
from latentlm_platform.experiment.rules import rules
from latentlm_platform.experiment.sections import Experiment
from latentlm_platform.located_yaml import KeyPath, dotted, shown

STAND_INS = (1, 720_720)  # the second is divisible by every number up to 16
PATHS_AS_KEYS: tuple[KeyPath, ...] = (("sweep", "grid"), ("sweep", "search", "space"))
MENDING_ROUNDS = 8  # a missing section takes one round for each of its levels


class Mistake(NamedTuple):
    """One mistake: the path it is at, the value found there, and the sentence about it."""

    path: KeyPath
    value: Any
    message: str


def check(
    data: dict[str, Any], *, with_rules: bool = True
) -> tuple[Experiment | None, list[Mistake]]:
    """The experiment that `data` says, or None and every mistake found.

    Without rules, every field is looked at by itself only.
    """
    experiment, errors = _validate(data)
    mistakes = [_in_our_words(error, data) for error in errors]
    if not with_rules:
        return experiment, mistakes
    if experiment is not None:
        told = set(rules(experiment))
    else:
        copies = [_mended(data, number) for number in STAND_INS]
        told = set.intersection(*(set(rules(one)) if one else set() for one in copies))
        failed = {_path(error["loc"], data) for error in errors}
        told = {rule for rule in told if not _touches(tuple(rule[0].split(".")), failed)}
    mistakes += [_broken_rule(data, path, sentence) for path, sentence in sorted(told)]
    return (experiment if not mistakes else None), mistakes


def _validate(data: dict[str, Any]) -> tuple[Experiment | None, list[Any]]:
    """Strict, and through JSON: only there do lists count as tuples in strict mode."""
    try:
        return Experiment.model_validate_json(json.dumps(data)), []
    except ValidationError as error:
        return None, error.errors(include_url=False)


def _path(loc: tuple[str | int, ...], data: Any) -> KeyPath:
    """Where in the data an error is: pydantic puts the `kind` of a union into its locations."""
    path: list[str | int] = []
    for part in loc:
        if _is_kind(part, data, path=tuple(path)):
            continue
        path.append(part)
        data = _child(data, part)
    return tuple(path)


def _is_kind(part: str | int, data: Any, *, path: KeyPath) -> bool:
    """Whether a part of pydantic's location is the kind, written or default, of this section."""
    default = default_kind(path)
    if isinstance(data, dict):
        return part not in data and data.get("kind", default) == part
    return part == default


def _child(data: Any, part: str | int) -> Any:
    if isinstance(data, dict):
        return data.get(part)
    if isinstance(data, list) and isinstance(part, int) and part < len(data):
        return data[part]
    return None


def _value(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = _child(data, part)
    return data


def _touches(path: tuple[str, ...], failed: set[KeyPath]) -> bool:
    """Whether a rule speaks of a field that failed by itself, or of one inside it."""
    return any(path[: len(one)] == tuple(str(part) for part in one) for one in failed)


def _broken_rule(data: dict[str, Any], path: str, sentence: str) -> Mistake:
    parts: KeyPath = tuple(int(p) if p.isdecimal() else p for p in path.split("."))
    for place in PATHS_AS_KEYS:
        if path.startswith(f"{dotted(place)}."):
            parts = (*place, path.removeprefix(f"{dotted(place)}."))
    value = _value(data, parts)
    starts_with_value = re.match(r"-?[\d.]", sentence) is not None
    return Mistake(parts, value, f"{path}{' = ' if starts_with_value else ': '}{sentence}")


EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "model_type": "a section with keys of its own",
    "dataclass_type": "a section with keys of its own",
    "dict_type": "a section with keys of its own",
    "model_attributes_type": "a section with keys of its own",
}
LIMITS = {
    "greater_than": ("too small", "greater than", "gt"),
    "greater_than_equal": ("too small", "of at least", "ge"),
    "less_than": ("too large", "less than", "lt"),
    "less_than_equal": ("too large", "of at most", "le"),
}
BAD_TAG = {"union_tag_invalid", "union_tag_not_found"}
UNKNOWN = {"extra_forbidden", "unexpected_keyword_argument"}


def _in_our_words(error: Any, data: dict[str, Any]) -> Mistake:
    path, kind, context = _path(error["loc"], data), error["type"], error.get("ctx", {})
    if kind in BAD_TAG:
        path = (*path, "kind")
    value = _value(data, path)
    return Mistake(path, value, _sentence(path, value, kind=kind, context=context, data=data))


def _sentence(path: KeyPath, value: Any, *, kind: str, context: Any, data: Any) -> str:
    name = dotted(path)
    if kind in UNKNOWN:
        section = _value(data, path[:-1])
        return unknown_key(path, kind=section.get("kind") if len(path) > 1 else None)
    if kind == "missing" and isinstance(path[-1], int):
        return f"{dotted(path[:-1])} has too few values; give {path[-1] + 1} or more"
    if kind == "missing":
        where = dotted(path[:-1]) or "the experiment"
        return f"{name} is missing; {where} needs it"
    if kind == "too_long":
        return f"{name} = {shown(value)} has too many values; give {context['max_length']}"
    if kind == "too_short":
        return f"{name} is empty; give at least {context['min_length']}"
    if kind in LIMITS:
        verdict, comparison, key = LIMITS[kind]
        limit = context[key]
        limit = int(limit) if float(limit).is_integer() else limit
        return f"{name} = {shown(value)} is {verdict}; give a number {comparison} {limit}"
    if kind == "string_pattern_mismatch":
        return (
            f"{name} = {shown(value)} does not fit; give 1 to 100 letters, digits, spaces,"
            " dots, dashes or underscores"
        )
    if kind in {"literal_error", *BAD_TAG}:
        return _choice(name, value, context)
    if kind in EXPECTED:
        if value is None:
            return f"{name} has no value; give {EXPECTED[kind]}"
        return f"{name} = {shown(value)} is not {EXPECTED[kind]}{_advice(value, EXPECTED[kind])}"
    return f"{name} = {shown(value)} is not accepted"


def _choice(name: str, value: Any, context: Any) -> str:
    choices = re.findall(r"[\w.\-]+", context.get("expected") or context.get("expected_tags", ""))
    choices = [choice for choice in choices if choice != "or"]
    if value is None:
        return f"{name} is missing; it chooses among the variants of this section"
    meant = nearest(value, choices) if isinstance(value, str) else None
    hint = f"did you mean {meant}? " if meant else ""
    return f"{name} = {shown(value)} is no choice; {hint}choose {', '.join(choices)}"


def _advice(value: Any, expected: str) -> str:
    if expected.endswith("number"):
        if isinstance(value, float) and value.is_integer():
            return f"; write {int(value)}"
        if isinstance(value, str) and re.fullmatch(r"[-+]?[\d_]*\.?\d+([eE][-+]?\d+)?", value):
            return f"; write {value.replace('_', '')} without quotes or underscores"
    if expected == "true or false" and isinstance(value, str):
        return "; write true or false without quotes"
    if expected == "text" and isinstance(value, int | float):
        return "; put it in quotes"
    return ""


def _mended(data: dict[str, Any], number: int) -> Experiment | None:
    """The experiment with a stand-in for every field that failed; None if it cannot be mended."""
    data = copy.deepcopy(data)
    for _ in range(MENDING_ROUNDS):
        experiment, errors = _validate(data)
        if experiment is not None:
            return experiment
        for error in errors:
            path = _path(error["loc"], data)
            if path:
                _mend(data, path, kind=error["type"], context=error.get("ctx", {}), number=number)
    return None


def _mend(data: Any, path: KeyPath, *, kind: str, context: Any, number: int) -> None:
    parent = _value(data, path[:-1])
    if isinstance(parent, list):  # of a bad list, the whole key is mended
        path, parent = path[:-1], _value(data, path[:-2])
    if not isinstance(parent, dict):
        return
    choices = re.findall(r"[\w.\-]+", str(context.get("expected") or context.get("expected_tags")))
    stand_ins: dict[str, Any] = {
        "missing": number,
        "int_type": number,
        "float_type": number,
        "less_than": 0.5,
        "less_than_equal": 0.5,
        "string_type": "x",
        "string_pattern_mismatch": "x",
        "bool_type": True,
        "model_type": {},
        "dataclass_type": {},
        "dict_type": {},
        "model_attributes_type": {},
        "union_tag_invalid": {"kind": choices[0]},
        "union_tag_not_found": {"kind": "half_normal"},
        "literal_error": int(choices[0]) if choices[0].isdecimal() else choices[0],
    }
    if kind in stand_ins and not (kind == "missing" and path[-1] in parent):
        parent[path[-1]] = stand_ins[kind]
    else:
        parent.pop(path[-1], None)
