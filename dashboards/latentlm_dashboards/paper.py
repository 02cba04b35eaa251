"""The paper's tables and figures, one YAML of `dashboards/paper/` each; only what it prints.

A value that the paper shows in a picture alone is not here: `only_in_figure` says so. Cells are
texts as printed. `setting` has the keys of `SETTINGS`, so that what differs can be told.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentlm_platform.located_yaml import Document, KeyPath, Located, read_yaml, refuse, shown

SETTINGS = {
    "corpus": "corpus",
    "image_size": "image size",
    "codec": "codec",
    "model": "model",
    "training": "training of the model",
    "sampling": "sampling",
    "scored": "scored on",
    "metric": "metric",
    "hardware": "hardware",
}
TEXTS = ("item", "title", "place", "only_in_figure")
LISTS = ("columns", "says")
KEYS = (*TEXTS, *LISTS, "rows", "setting")
ITEM = re.compile(r"\b(Table|Figure) (\d+)")


@dataclass(frozen=True)
class PaperItem:
    """A table or figure: what it prints, what the text says of it, and its setting."""

    item: str
    title: str
    place: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    says: tuple[str, ...]
    only_in_figure: str
    setting: dict[str, str]


def paper_folder() -> Path:
    """Where the paper's numbers are."""
    return Path(__file__).parents[1] / "paper"


def paper_items(reproduces: str) -> list[PaperItem]:
    """What an experiment reproduces, as in "Table 3, Figure 8"; none for another text."""
    names = dict.fromkeys(f"{kind.lower()}_{n}" for kind, n in ITEM.findall(reproduces))
    paths = [paper_folder() / f"{name}.yaml" for name in names]
    return [read_paper_item(path) for path in paths if path.exists()]


def read_paper_item(path: Path) -> PaperItem:
    """The checked content of a file; `UserError` with every problem and its place."""
    document = read_yaml(path)
    data = document.data
    problems = [*document.problems, *_problems(document)]
    refuse(problems, file=document.file)
    return PaperItem(
        **{name: data.get(name, "") for name in TEXTS},
        columns=tuple(data.get("columns", ())),
        rows=tuple(tuple(map(str, row)) for row in data.get("rows", ())),
        says=tuple(data.get("says", ())),
        setting=dict(data.get("setting", {})),
    )


def _problems(document: Document) -> list[Located]:
    data, found = document.data, []

    def problem(path: KeyPath, message: str) -> None:
        found.append(Located(document.place(path), path, None, message))

    for key, value in data.items():
        if key not in KEYS:
            problem((key,), f"unknown key {key}; known are {', '.join(KEYS)}")
        elif key in TEXTS and not _is_text(value):
            problem((key,), f"{key} = {shown(value)}; expected a text")
        elif key in LISTS and not (isinstance(value, list) and all(map(_is_text, value))):
            problem((key,), f"{key} takes a list of texts; put numbers in quotes, as printed")
    for key in ("item", "title", "place"):
        if key not in data:
            problem((), f"{key} is missing; say which table or figure, what it shows and where")
    for key, value in _section(data.get("setting")).items():
        if key not in SETTINGS or not _is_text(value):
            known = ", ".join(SETTINGS)
            problem(("setting", key), f"setting.{key} = {shown(value)}; expected a text at {known}")
    columns = data.get("columns", [])
    for index, row in enumerate(data.get("rows", [])):
        if not (isinstance(row, list) and len(row) == len(columns) and all(map(_is_text, row))):
            wanted = f"{len(columns)} texts, one a column; put numbers in quotes, as printed"
            problem(("rows", index), f"rows.{index} = {shown(row)}; expected {wanted}")
    return found


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _section(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
