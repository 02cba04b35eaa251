"""YAML → Experiment: `extends`, `--set`, and every mistake at its place.

`extends: [shared/…]` names fragments relative to the file. They are merged deeply, later ones
over earlier ones and the file over all; lists replace. Where a file gives a section another
`kind`, inherited keys that the new kind does not have are left behind. `--set path=value` goes
over everything. There is no interpolation and nothing is evaluated.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentlm_platform.experiment.checking import PATHS_AS_KEYS, check
from latentlm_platform.experiment.json_schema import merged
from latentlm_platform.experiment.points import sweep_mistakes
from latentlm_platform.experiment.sections import Experiment
from latentlm_platform.located_yaml import (
    Document,
    KeyPath,
    Located,
    Place,
    dump_yaml,
    nearest_place,
    parse_value,
    read_yaml,
    refuse,
)

MAX_FRAGMENTS = 32
KEYLESS: dict[str, Any] = {
    **dict.fromkeys(("cluster", "tracking", "question", "reproduces"), True),
    "sweep": {"max_concurrent", "max_failed", "restarts", "time_budget_s", "cost", "claims"},
}


def load_experiment(path: Path | str, *, overrides: Sequence[str] = ()) -> Experiment:
    """The checked experiment of a file; `overrides` are `--set` arguments, `path=value`.

    Raises `UserError` naming every mistake with file, line and column; exit code 2.
    """
    merged = _Merged(str(path))
    merged.add_file(str(path), chain=())
    for override in overrides:
        merged.add_override(override)
    experiment, mistakes = check(merged.data)
    mistakes += sweep_mistakes(merged.data, experiment)
    told = {problem.path for problem in merged.problems}
    for mistake in mistakes:
        if mistake.path not in told:
            place = nearest_place(merged.places, mistake.path, file=merged.file)
            merged.problems.append(Located(place, *mistake))
    refuse(merged.problems, file=merged.file)
    assert experiment is not None, "no experiment, yet no mistake"
    return experiment


def resolved_yaml(experiment: Experiment) -> str:
    """The whole experiment with every default written out, in the schema's order."""
    return dump_yaml(experiment.model_dump(mode="json"))


def experiment_key(experiment: Experiment) -> str:
    """12 hexadecimal digits that tell two experiments apart by what they compute.

    Left out are `cluster` and `tracking`, which say where it runs and where results go, what only
    describes or asks, and how many trials a sweep runs at once or gives up after: changing them
    must not repeat a run.
    """
    content = experiment.model_dump(mode="json", exclude=KEYLESS)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def source_text(path: Path | str) -> str:
    """The file and its fragments as they were written, in the order they are merged."""
    merged = _Merged(str(path))
    merged.add_file(str(path), chain=())
    texts = [f"# --- {name}\n{Path(name).read_text('utf-8-sig').rstrip()}" for name in merged.files]
    return "\n\n".join(texts) + "\n"


@dataclass
class _Merged:
    """What the files and overrides say together, the places of it, and what was refused."""

    file: str
    data: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[Located] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def add_file(self, file: str, *, chain: tuple[str, ...]) -> None:
        """Merge a file over what is there, its fragments first."""
        document = read_yaml(file)
        self.problems += document.problems
        if len(self.files) >= MAX_FRAGMENTS:
            place = document.place(())
            self._refuse(place, ("extends",), file, f"more than {MAX_FRAGMENTS} files are extended")
            return
        fragments = document.data.pop("extends", [])
        identity = str(Path(file).resolve())
        for index, fragment in enumerate(self._listed(fragments, document)):
            place = document.place(("extends", index))
            target = os.path.normpath(Path(file).parent / fragment)
            if str(Path(target).resolve()) in (*chain, identity):
                self._refuse(
                    place, ("extends", index), fragment, f"extends goes in a circle to {target}"
                )
            elif not Path(target).is_file():
                self._refuse(
                    place,
                    ("extends", index),
                    fragment,
                    f"extends {fragment}, but there is no file {target};"
                    " the path is relative to the file that says it",
                )
            else:
                self.add_file(target, chain=(*chain, identity))
        self.files.append(file)
        self._merge(document.data, document.places)

    def add_override(self, override: str) -> None:
        """Merge one `path=value` over what is there."""
        path_text, equals, text = override.partition("=")
        place = Place(f"--set {path_text}")
        parts = path_text.strip().split(".")
        if not equals or not all(parts):
            message = f"{override!r} is not path=value, such as --set train.steps=20"
            self._refuse(place, (), override, message)
            return
        if parts[0] == "extends":
            self._refuse(place, ("extends",), text, "extends cannot be set; write it in the file")
            return
        for prefix in PATHS_AS_KEYS:
            if tuple(parts[: len(prefix)]) == prefix and len(parts) > len(prefix):
                parts[len(prefix) :] = [".".join(parts[len(prefix) :])]
        value, refused = parse_value(text, file=place.file)
        path: KeyPath = tuple(parts)
        self.problems += [problem._replace(path=(*path, *problem.path)) for problem in refused]
        places = dict.fromkeys(_paths(value, path), place)
        for part in reversed(parts):
            value = {part: value}
        self._merge(value, places)

    def _merge(self, data: dict[str, Any], places: dict[KeyPath, Place]) -> None:
        self.data = merged(self.data, data)
        kept = {path for path in _paths(self.data, ()) if path not in places}
        self.places = {path: at for path, at in self.places.items() if path in kept} | places

    def _listed(self, fragments: Any, document: Document) -> list[str]:
        listed = [fragments] if isinstance(fragments, str) else fragments
        if isinstance(listed, list) and all(isinstance(one, str) for one in listed):
            bad = [one for one in listed if Path(one).is_absolute() or Path(one).suffix != ".yaml"]
            if not bad:
                return listed
        message = "extends expects a list of .yaml files relative to this one: [shared/small.yaml]"
        self._refuse(document.place(("extends",)), ("extends",), fragments, message)
        return []

    def _refuse(self, place: Place, path: KeyPath, value: Any, message: str) -> None:
        self.problems.append(Located(place, path, value, message))


def _paths(data: Any, path: KeyPath) -> Iterator[KeyPath]:
    """The path of every value in `data`, itself included."""
    yield path
    inner = data.items() if isinstance(data, dict) else enumerate(data) if _is_list(data) else ()
    for key, value in inner:
        yield from _paths(value, (*path, key))


def _is_list(data: Any) -> bool:
    return isinstance(data, list)
