"""The points of a sweep: every combination of the values listed under `sweep.grid`."""

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from latentlm_platform.experiment import Experiment
from latentlm_platform.experiment_check import Mistake, check
from latentlm_platform.experiment_schema import merged, unknown_path
from latentlm_platform.located_yaml import KeyPath, shown

MAX_POINTS = 1000
NOT_SWEPT = {"name", "question", "reproduces", "tracking", "cluster", "sweep"}


class Point(NamedTuple):
    """One combination: dotted path → value, and the experiment without its sweep."""

    values: dict[str, Any]
    experiment: Experiment


def sweep_points(experiment: Experiment) -> list[Point]:
    """Every point in the order of the grid, the last path fastest; one point without a sweep."""
    grid = experiment.sweep.grid if experiment.sweep else {}
    points = []
    for values in _combinations(grid):
        checked, mistakes = check(_with_values(experiment, values))
        assert checked is not None, mistakes  # load_experiment has checked every point
        points.append(Point(values, checked))
    return points


def sweep_mistakes(data: dict[str, Any], experiment: Experiment | None) -> list[Mistake]:
    """Grid paths that do not exist, values they cannot have, combinations that break a rule.

    Values are tried on the experiment; without one, only the paths are looked at.
    """
    sweep = data.get("sweep")
    grid = sweep.get("grid") if isinstance(sweep, dict) else None
    mistakes = (
        [one for path in grid for one in _path_mistakes(path)] if isinstance(grid, dict) else []
    )
    if mistakes or experiment is None or experiment.sweep is None:
        return mistakes
    checked_grid = experiment.sweep.grid
    count = math.prod(len(values) for values in checked_grid.values())
    if count > MAX_POINTS:
        message = f"sweep.grid has {count} points, more than {MAX_POINTS}; list fewer values"
        return [Mistake(("sweep", "grid"), None, message)]
    mistakes = [one for path in checked_grid for one in _value_mistakes(experiment, path)]
    return mistakes or list(_point_mistakes(experiment))


def _path_mistakes(path: str) -> Iterator[Mistake]:
    place: KeyPath = ("sweep", "grid", path)
    section = path.split(".")[0]
    if section in NOT_SWEPT:
        yield Mistake(place, path, f"sweep.grid: {section} is the same for every point; remove it")
    elif (sentence := unknown_path(path)) is not None:
        yield Mistake(place, path, f"sweep.grid: {sentence}")


def _value_mistakes(experiment: Experiment, path: str) -> Iterator[Mistake]:
    """Values that their own field refuses, whatever the other paths of the grid say."""
    assert experiment.sweep is not None
    parts: KeyPath = tuple(path.split("."))
    for index, value in enumerate(experiment.sweep.grid[path]):
        _, mistakes = check(_with_values(experiment, {path: value}), with_rules=False)
        for one in mistakes:
            if one.path[: len(parts)] == parts:
                yield Mistake(("sweep", "grid", path, index), value, f"sweep.grid: {one.message}")


def _point_mistakes(experiment: Experiment) -> Iterator[Mistake]:
    assert experiment.sweep is not None
    for values in _combinations(experiment.sweep.grid):
        point = ", ".join(f"{path}={shown(value)}" for path, value in values.items())
        for one in check(_with_values(experiment, values))[1]:
            message = f"at the sweep's point {point}: {one.message}"
            yield Mistake(("sweep", "grid"), one.value, message)


def _combinations(grid: dict[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _with_values(experiment: Experiment, values: dict[str, Any]) -> dict[str, Any]:
    """The data of the experiment without its sweep, with these values at these dotted paths."""
    data: dict[str, Any] = experiment.model_dump(mode="json", exclude={"sweep"})
    for path, value in values.items():
        for part in reversed(path.split(".")):
            value = {part: value}
        data = merged(data, value)
    return data
