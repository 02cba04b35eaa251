"""The trials of a sweep: points that differ in nothing but their CFG scale are sampled together.

A trial does what is missing of its codec, latents and model, then scores all its scales in one
batch. Artifacts are found by what they were computed from, so trials share what they can.
"""

import json
from collections.abc import Callable, Iterable
from itertools import zip_longest
from typing import NamedTuple, TypeVar

from latentlm_platform.experiment.files import experiment_key
from latentlm_platform.experiment.points import Point
from latentlm_platform.experiment.sections import Experiment

CODEC_SECTIONS = frozenset({"corpus", "codec", "seed"})
MODEL_SECTIONS = CODEC_SECTIONS | {"latents", "model", "train"}

Item = TypeVar("Item")


class Trial(NamedTuple):
    """A column of points, and the experiment that scores all their CFG scales."""

    key: str
    experiment: Experiment
    points: tuple[Point, ...]

    def point_keys(self) -> list[str]:
        """The key of each point, in their order."""
        return [experiment_key(point.experiment) for point in self.points]


def trials_of(points: Iterable[Point]) -> list[Trial]:
    """The trials of these points, neighbours sharing as little as possible.

    Two that start together then do not wait for the same codec or model.
    """
    columns: dict[str, list[Point]] = {}
    for point in points:
        columns.setdefault(_without_scale(point.experiment), []).append(point)
    trials = [trial_of(column) for column in columns.values()]
    by_codec = _grouped(trials, lambda trial: work_key(trial.experiment, CODEC_SECTIONS))
    spread = [
        _dealt(_grouped(group, lambda trial: work_key(trial.experiment, MODEL_SECTIONS)))
        for group in by_codec
    ]
    return _dealt(spread)


def trial_of(points: list[Point]) -> Trial:
    """The one trial that covers these points."""
    scales = [point.experiment.sample.cfg_scale for point in points]
    first = points[0].experiment
    evaluate = first.evaluate.model_copy(update={"cfg_scales": tuple(scales[1:])})
    experiment = first.model_copy(update={"evaluate": evaluate})
    return Trial(experiment_key(experiment), experiment, tuple(points))


def work_key(experiment: Experiment, sections: Iterable[str]) -> str:
    """What tells two experiments apart in these sections: equal work is done once."""
    return json.dumps(experiment.model_dump(mode="json", include=set(sections)), sort_keys=True)


def distinct(experiments: Iterable[Experiment], sections: Iterable[str]) -> int:
    """How many of the experiments differ in these sections: the times a stage has to be done."""
    return len({work_key(one, sections) for one in experiments})


def _without_scale(experiment: Experiment) -> str:
    data = experiment.model_dump(mode="json")
    del data["sample"]["cfg_scale"]
    return json.dumps(data, sort_keys=True)


def _grouped(items: Iterable[Item], key: Callable[[Item], str]) -> list[list[Item]]:
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def _dealt(groups: list[list[Item]]) -> list[Item]:
    """One of each group, then the second of each, …"""
    return [item for round_ in zip_longest(*groups) for item in round_ if item is not None]
