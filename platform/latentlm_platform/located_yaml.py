"""YAML whose every key remembers its place, with the surprises of YAML taken out.

In: a file or a text. Out: plain dicts, lists, strings, numbers and booleans, the place of every
key, and what was refused: duplicate keys, anchors, aliases, tags, keys that are not text, numbers
that are not finite. Scalars are YAML 1.2's: `1e-4` is a number, `on`, `yes` and `12:30` are text.
A file that is no YAML at all raises `UserError` at once; everything else is collected.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml

from latentlm_platform.errors import UserError

MAX_BYTES = 128 * 1024  # experiments and views are a few kilobytes
MAX_DEPTH = 40
MAX_DIGITS = 18  # of a whole number

KeyPath = tuple[str | int, ...]


class Place(NamedTuple):
    """Where something was written; without a line when it came from the command line."""

    file: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}:{self.column}"


class Located(NamedTuple):
    """One mistake: where, at which dotted path, which value, and a sentence about it."""

    place: Place
    path: KeyPath
    value: Any
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


@dataclass(frozen=True)
class Document:
    """What a file says: `data`, the place of every key and list item, and what was refused."""

    file: str
    data: dict[str, Any]
    places: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[Located] = field(default_factory=list)

    def place(self, path: KeyPath) -> Place:
        """The place of `path`, or of the nearest section around it that was written down."""
        return nearest_place(self.places, path, file=self.file)


def nearest_place(places: Mapping[KeyPath, Place], path: KeyPath, *, file: str) -> Place:
    """The place of the longest beginning of `path` that has one; else the top of `file`."""
    for length in range(len(path), 0, -1):
        if path[:length] in places:
            return places[path[:length]]
    return Place(file, 1, 1)


def dotted(path: KeyPath) -> str:
    """A path as it is written for `--set` and in messages."""
    return ".".join(str(part) for part in path)


def shown(value: Any) -> str:
    """A value as YAML would write it, on one line and not too long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def refuse(problems: Iterable[Located], *, file: str) -> None:
    """Raise one `UserError` that names every problem, sorted by location; nothing if none."""
    ordered = sorted(set_of(problems), key=lambda p: (p.place.file != file, *_order(p.place)))
    if not ordered:
        return
    count = "1 problem" if len(ordered) == 1 else f"{len(ordered)} problems"
    lines = [f"{count} in {file}", *(str(problem) for problem in ordered)]
    report = [
        {**p.place._asdict(), "path": dotted(p.path), "value": p.value, "message": p.message}
        for p in ordered
    ]
    raise UserError("\n".join(lines), report={"problems": report})


def set_of(problems: Iterable[Located]) -> list[Located]:
    """The problems without repetitions (values may be unhashable)."""
    return list({(p.place, p.path, p.message): p for p in problems}.values())


def _order(place: Place) -> tuple[str, int, int]:
    return place.file, place.line or 0, place.column or 0


def read_yaml(path: Path | str) -> Document:
    """The checked content of a file. Raises `UserError` where it is no YAML mapping."""
    name = str(path)
    try:
        with Path(path).open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"{name}: there is no such file; check the path") from None
    except IsADirectoryError:
        raise UserError(f"{name}: this is a folder; give a YAML file in it") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{name}: cannot be read ({reason})") from None
    if len(raw) > MAX_BYTES:
        _fail(Place(name, 1, 1), f"the file is larger than {MAX_BYTES // 1024} KiB; is it YAML?")
    if b"\0" in raw:
        _fail(Place(name, 1, 1), "this is a binary file, not YAML text")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = _place_of_offset(name, raw[: error.start].decode("utf-8-sig"))
        _fail(place, f"byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8")
    return parse_yaml(text, file=name)


def parse_yaml(text: str, *, file: str) -> Document:
    """The checked content of a text; `file` is the name that places carry."""
    root, refused = _compose(text, file)
    if root is None or (isinstance(root, yaml.ScalarNode) and root.value == ""):
        _fail(Place(file, 1, 1), "the file is empty; a mapping of keys to values was expected")
    if not isinstance(root, yaml.MappingNode):
        place = _place(file, root.start_mark)
        _fail(place, "a mapping of keys to values was expected here, such as `name: quickstart`")
    document = Document(file, {})
    document.data.update(_Reading(document, refused).value(root, ()))
    return document


def parse_value(text: str, *, file: str) -> tuple[Any, list[Located]]:
    """The value of `--set path=text` and what was refused in it; empty text is no value."""
    root, refused = _compose(text, file)
    document = Document(file, {})
    value = None if root is None else _Reading(document, refused).value(root, ())
    return value, [p._replace(place=Place(file)) for p in document.problems]


def dump_yaml(data: Any) -> str:
    """YAML text that `parse_yaml` reads back unchanged; the order of keys is kept."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """YAML 1.2's plain scalars: which first letters and which pattern make which type."""
    scalars: list[tuple[str, str, list[str]]] = [
        ("bool", r"true|false", list("tf")),
        ("int", r"[-+]?[0-9]+", list("-+0123456789")),
        (
            "float",
            r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
            list("-+.0123456789"),
        ),
        ("null", r"~|null|", ["~", "n", ""]),
    ]
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for name, pattern, first_letters in scalars:
        for letter in first_letters:
            rule = (f"tag:yaml.org,2002:{name}", re.compile(f"^(?:{pattern})$"))
            table.setdefault(letter, []).append(rule)
    return table


_RESOLVERS = _resolvers()


class _Loader(yaml.SafeLoader):
    """Composes nodes only; remembers which carry an anchor, an alias or a tag."""

    yaml_implicit_resolvers = _RESOLVERS

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.refused: dict[yaml.Node, str] = {}
        self.depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            self.get_event()
            mark: Any = event.start_mark
            nothing = yaml.ScalarNode("tag:yaml.org,2002:null", "", mark, mark)
            self.refused[nothing] = f"the alias *{event.anchor} is refused; write the value out"
            return nothing
        anchor, tag = event.anchor, getattr(event, "tag", None)
        event.anchor = event.tag = None
        if tag is not None:
            event.implicit = (True, True) if isinstance(event, yaml.ScalarEvent) else True
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        assert node is not None
        if tag is not None:
            self.refused[node] = f"the tag {tag} is refused; write the plain value"
        elif anchor is not None:
            self.refused[node] = f"the anchor &{anchor} is refused; write the value where needed"
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes exactly what the loader would otherwise not read back as text."""

    yaml_implicit_resolvers = _RESOLVERS

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _Reading:
    """Turns nodes into values; fills the document's places and problems."""

    def __init__(self, document: Document, refused: dict[yaml.Node, str]) -> None:
        self.document, self.refused = document, refused

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        """The plain value of a node."""
        if node in self.refused:
            self._refuse(node, path, self.refused[node])
        if isinstance(node, yaml.MappingNode):
            return {key: self.value(part, (*path, key)) for key, part in self._items(node, path)}
        if isinstance(node, yaml.SequenceNode):
            items = []
            for index, part in enumerate(node.value):
                self.document.places[(*path, index)] = self._place(part)
                items.append(self.value(part, (*path, index)))
            return items
        return self._scalar(node, path)

    def _items(self, node: yaml.MappingNode, path: KeyPath) -> Iterator[tuple[str, yaml.Node]]:
        for key_node, value_node in node.value:
            place, key = self._place(key_node), key_node.value
            if key_node.tag != "tag:yaml.org,2002:str" or key_node in self.refused:
                label = key if isinstance(key, str) else "here"
                self._refuse(
                    key_node, (*path, label), f"the key {label} is not plain text; quote it"
                )
            elif (*path, key) in self.document.places:
                first = self.document.places[(*path, key)].line
                name = dotted((*path, key))
                self._refuse(
                    key_node,
                    (*path, key),
                    f"{name} is given twice, first in line {first}; remove one of them",
                )
            else:
                self.document.places[(*path, key)] = place
                yield key, value_node

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        text, kind = node.value, node.tag.rpartition(":")[2]
        if kind == "null":
            return None
        if kind == "bool":
            return text == "true"
        if kind == "int" and len(text.lstrip("+-0")) <= MAX_DIGITS:
            return int(text)
        if kind == "float" and math.isfinite(number := _float(text)):
            return number
        if kind in ("int", "float"):
            self._refuse(node, path, f"{dotted(path)} = {text[:30]} is not a number of usable size")
            return 0
        return text

    def _place(self, node: yaml.Node) -> Place:
        return _place(self.document.file, node.start_mark)

    def _refuse(self, node: yaml.Node, path: KeyPath, message: str) -> None:
        value = node.value if isinstance(node.value, str) else None
        self.document.problems.append(Located(self._place(node), path, value, message))


def _compose(text: str, file: str) -> tuple[yaml.Node | None, dict[yaml.Node, str]]:
    try:
        loader = _Loader(text)
        return loader.get_single_node(), loader.refused
    except yaml.reader.ReaderError as error:
        place = _place_of_offset(file, text[: error.position])
        _fail(place, f"the character U+{ord(text[error.position]):04X} is not allowed in YAML")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = _place(file, mark) if mark else Place(file, 1, 1)
        _fail(place, _own_words(error, text, mark))


def _own_words(error: yaml.MarkedYAMLError, text: str, mark: yaml.Mark | None) -> str:
    problem = error.problem or "it cannot be read"
    if mark is not None and text[mark.index : mark.index + 1] == "\t":
        return "a tab stands here; YAML is indented with spaces"
    if "another document" in problem:
        return "a second document begins here; one file holds one, remove the `---`"
    if "mapping values are not allowed" in problem:
        return "a colon stands where no key can be; check the indentation, or quote the text"
    if "could not find expected ':'" in problem:
        return "a key without a colon; write `key: value`"
    if "expected <block end>" in problem:
        return "the indentation does not fit the lines above"
    if "nested too deeply" in problem:
        return f"nested more than {MAX_DEPTH} levels deep"
    return f"this is not valid YAML: {problem}"


def _float(text: str) -> float:
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _place(file: str, mark: Any) -> Place:
    return Place(file, mark.line + 1, mark.column + 1)


def _place_of_offset(file: str, before: str) -> Place:
    return Place(file, before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)


def _fail(place: Place, message: str) -> NoReturn:
    refuse([Located(place, (), None, message)], file=place.file)
    raise AssertionError("refuse() raises for a problem")
