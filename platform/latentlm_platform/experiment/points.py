"""The points of a sweep, and every mistake in it before anything is trained.

A point is one experiment without a sweep: a variant, a combination of the grid, a draw of the
search and one CFG scale. Only Optuna's points are not known beforehand.
"""

import itertools
import json
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

from latentlm_platform.errors import UserError
from latentlm_platform.experiment.checking import Mistake, check
from latentlm_platform.experiment.claims import VARIANT, lower_is_better
from latentlm_platform.experiment.json_schema import merged, nearest, unknown_path
from latentlm_platform.experiment.search import Between, Search, Space, Sweep
from latentlm_platform.experiment.sections import Experiment
from latentlm_platform.located_yaml import KeyPath, shown

MAX_POINTS = 1000
NOT_SWEPT = {"name", "question", "reproduces", "tracking", "cluster", "sweep"}
CFG_SCALE = "sample.cfg_scale"
STAGES = {
    "corpus": "codec",
    "codec": "codec",
    "seed": "codec",
    "latents": "model",
    "model": "model",
    "train": "model",
    VARIANT: "model",
    "sample": "evaluation",
    "evaluate": "evaluation",
}
REPORTED_BY_TASK = {
    "generation": (
        "generated_accuracy",
        "frechet_{features}",
        "frechet_{features}_above_reconstruction",
        "inception_style_{features}",
        "sampling_cpu_seconds_per_image",
    ),
    "reconstruction": ("frechet_{features}_reconstruction",),
    "exposure": ("exposure_bias", "exposure_bias_last", "teacher_forced_error"),
}
REPORTED = (
    "reconstruction_psnr",
    "reconstruction_ssim",
    "validation_loss",
    "loss",
    "items_per_s_median",
    "collapsed_channels",
    "variance_collapsed_channels",
    "latent_std",
    "noise_share",
    "codec_seconds",
    "latents_seconds",
    "model_seconds",
    "evaluation_seconds",
)


class Point(NamedTuple):
    """What was chosen, dotted path → value, and the experiment that it makes, without a sweep."""

    values: dict[str, Any]
    experiment: Experiment


class _Candidate(NamedTuple):
    """A point that is not checked yet."""

    values: dict[str, Any]
    data: dict[str, Any]


def stage_of(path: str) -> str:
    """The first stage to do again when this path changes: codec, model or evaluation."""
    return STAGES[path.split(".")[0]]


def sweep_points(experiment: Experiment) -> list[Point]:
    """Every point once, the last path of the grid fastest; none of Optuna's, which come later."""
    if experiment.sweep is None:
        return [Point({}, experiment)]
    if is_optuna(experiment):
        return []
    points: list[Point] = []
    for candidate in _candidates(experiment):
        checked, mistakes = check(candidate.data)
        assert checked is not None, mistakes  # load_experiment has checked every point
        points += _by_cfg_scale(Point(candidate.values, checked))
    distinct = {point.experiment.model_dump_json(): point for point in reversed(points)}
    return list(distinct.values())[::-1]


def is_optuna(experiment: Experiment) -> bool:
    """Whether the points are not known before others were measured."""
    search = experiment.sweep.search if experiment.sweep else None
    return search is not None and search.algorithm == "optuna"


def drawn_points(experiment: Experiment, draw: dict[str, Any]) -> list[Point]:
    """The points of a draw that a search algorithm made; UserError where it breaks a rule."""
    assert experiment.sweep is not None
    assert experiment.sweep.search is not None
    base = _without_sweep(experiment)
    kept = _that_apply(draw, experiment.sweep.search.space, base)
    checked, mistakes = check(_with_values(base, kept))
    if checked is None:
        raise UserError(f"at {_shown(kept)}: {'; '.join(one.message for one in mistakes)}")
    return list(_by_cfg_scale(Point(_leaves(kept), checked)))


def reported_metrics(experiment: Experiment) -> list[str]:
    """The metrics that a point of this experiment has, as far as they have fixed names."""
    evaluate = experiment.evaluate
    tasks = [t for t in evaluate.tasks if t != "exposure" or evaluate.exposure_bias_images]
    names = [*REPORTED, *(name for task in tasks for name in REPORTED_BY_TASK[task])]
    return [name.format(features=experiment.evaluate.feature_extractor) for name in names]


def sweep_mistakes(data: dict[str, Any], experiment: Experiment | None) -> list[Mistake]:
    """Paths that do not exist, values they cannot have, combinations that break a rule, metrics
    that nothing reports.

    Values are tried on the experiment; without one, only the paths are looked at.
    """
    sweep = data.get("sweep")
    if not isinstance(sweep, dict):
        return []
    mistakes = list(_path_mistakes(sweep))
    if mistakes or experiment is None or experiment.sweep is None:
        return mistakes
    count = _count(experiment.sweep)
    if count > MAX_POINTS:
        message = f"sweep.grid has {count} points, more than {MAX_POINTS}; list fewer values"
        return [Mistake(("sweep", "grid"), None, message)]
    mistakes = [*_value_mistakes(experiment), *_question_mistakes(experiment)]
    return mistakes or list(_point_mistakes(experiment))


def _path_mistakes(sweep: dict[str, Any]) -> Iterator[Mistake]:
    if not any(sweep.get(part) for part in ("variants", "grid", "search")):
        message = "the sweep is empty; list values under sweep.grid, variants or search.space"
        yield Mistake(("sweep",), None, message)
    for place in (("grid",), ("search", "space")):
        found: Any = sweep
        for part in place:
            found = found.get(part) if isinstance(found, dict) else None
        for path in found if isinstance(found, dict) else ():
            yield from _swept_path_mistakes(("sweep", *place), path)
    variants = sweep.get("variants")
    for name, piece in variants.items() if isinstance(variants, dict) else ():
        for section in piece if isinstance(piece, dict) else ():
            yield from _swept_path_mistakes(("sweep", "variants", name), section)


def _swept_path_mistakes(place: KeyPath, path: str) -> Iterator[Mistake]:
    where = ".".join(str(part) for part in place)
    section = path.split(".")[0]
    if section in NOT_SWEPT:
        message = f"{where}: {section} is the same for every point; remove it"
        yield Mistake((*place, path), path, message)
    elif (sentence := unknown_path(path)) is not None:
        yield Mistake((*place, path), path, f"{where}: {sentence}")


def _value_mistakes(experiment: Experiment) -> Iterator[Mistake]:
    """Values that their own field refuses, whatever the other paths say."""
    assert experiment.sweep is not None
    listed: list[tuple[KeyPath, str, tuple[Any, ...]]] = [
        (("sweep", "grid", path), path, values) for path, values in experiment.sweep.grid.items()
    ]
    search = experiment.sweep.search
    for path, space in search.space.items() if search else ():
        ends = space.values if not isinstance(space, Between) else _ends(space)
        listed.append((("sweep", "search", "space", path), path, ends))
    base = _without_sweep(experiment)
    for place, path, values in listed:
        where = ".".join(str(part) for part in place[:-1])
        parts: KeyPath = tuple(path.split("."))
        for index, value in enumerate(values):
            _, mistakes = check(_with_values(base, {path: value}), with_rules=False)
            for one in mistakes:
                if one.path[: len(parts)] == parts:
                    yield Mistake((*place, index), value, f"{where}: {one.message}")


def _question_mistakes(experiment: Experiment) -> Iterator[Mistake]:
    """Metrics that no point reports; claims about paths and variants that are not there."""
    sweep, known = experiment.sweep, reported_metrics(experiment)
    assert sweep is not None
    asked: list[tuple[KeyPath, str]] = [(("metric",), sweep.metric), (("cost",), sweep.cost)]
    asked += [(("claims", i, "metric"), one.metric) for i, one in enumerate(sweep.claims)]
    for place, metric in asked:
        if metric not in known:
            meant = nearest(metric, known)
            hint = f"did you mean {meant}?" if meant else f"choose {', '.join(known)}"
            where = ".".join(map(str, ("sweep", *place)))
            message = f"{where} = {metric} is reported by no point; {hint}"
            yield Mistake(("sweep", *place), metric, message)
    if sweep.metric in known and sweep.mode is None:
        try:
            lower_is_better(sweep.metric)
        except UserError as error:
            yield Mistake(("sweep", "metric"), sweep.metric, f"sweep.metric: {error}")
    for index, claim in enumerate(sweep.claims):
        for path in claim.paths():
            if (sentence := unknown_path(path)) is not None:
                place = ("sweep", "claims", index)
                yield Mistake(place, path, f"sweep.claims.{index}: {sentence}")


def _point_mistakes(experiment: Experiment) -> Iterator[Mistake]:
    named: dict[str, Any] = {}
    for candidate in _candidates(experiment):
        name = candidate.values.get(VARIANT)
        first = named.setdefault(json.dumps(candidate.data, sort_keys=True), name)
        if first != name:
            message = f"sweep.variants: {first} and {name} make the same experiment; leave one out"
            yield Mistake(("sweep", "variants"), None, message)
            return
        for one in check(candidate.data)[1]:
            message = f"at the sweep's point {_shown(candidate.values)}: {one.message}"
            yield Mistake(("sweep", "grid"), one.value, message)


def _candidates(experiment: Experiment) -> Iterator[_Candidate]:
    sweep = experiment.sweep
    assert sweep is not None
    base = _without_sweep(experiment)
    for name, piece in (sweep.variants or {"": {}}).items():
        named = {VARIANT: name} if name else {}
        varied = merged(base, piece)
        for values in _combinations(sweep.grid):
            point = _with_values(varied, values)
            for draw in _draws(sweep.search, point):
                yield _Candidate(named | _leaves(values) | _leaves(draw), _with_values(point, draw))


def _count(sweep: Sweep) -> int:
    count = max(1, len(sweep.variants))
    for values in sweep.grid.values():
        count *= len(values)
    return count * (sweep.search.samples if sweep.search else 1)


def _combinations(grid: dict[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _draws(search: Search | None, point: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each sample is drawn from its own number, so that more of them leave the first as they are.

    Optuna's are not known: it stands for them one draw at random, which the rules are tried on.
    """
    if search is None:
        yield {}
        return
    for index in range(search.samples if search.algorithm == "random" else 1):
        source = random.Random(f"{search.seed} {index}")
        drawn = {path: _drawn(space, source) for path, space in search.space.items()}
        yield _that_apply(drawn, search.space, point)


def _drawn(space: Space, source: random.Random) -> Any:
    if not isinstance(space, Between):
        return source.choice(space.values)
    if space.kind == "integer":
        return source.randint(int(space.low), int(space.high))
    if space.kind == "log_uniform":
        return float(space.low * (space.high / space.low) ** source.random())
    return source.uniform(space.low, space.high)


def _that_apply(
    draw: dict[str, Any], spaces: dict[str, Space], point: dict[str, Any]
) -> dict[str, Any]:
    """The values whose `when` holds at the point, with the values drawn before them."""
    kept: dict[str, Any] = {}
    for path, value in draw.items():
        if all(_value_at(point, at) == wanted for at, wanted in spaces[path].when.items()):
            kept[path] = value
            point = _with_values(point, {path: value})
    return kept


def _ends(space: Between) -> tuple[Any, ...]:
    whole = space.kind == "integer"
    return (int(space.low), int(space.high)) if whole else (space.low, space.high)


def _by_cfg_scale(point: Point) -> Iterator[Point]:
    """Every scale that is scored, as a point of its own: those that are swept, or else those that
    the evaluation lists."""
    evaluate, sample = point.experiment.evaluate, point.experiment.sample
    if not evaluate.cfg_scales:
        yield point
        return
    swept = CFG_SCALE in point.values
    scales = [sample.cfg_scale] if swept else sorted({sample.cfg_scale, *evaluate.cfg_scales})
    for scale in scales:
        values = {CFG_SCALE: scale}
        data = _with_values(_without_sweep(point.experiment), values | {"evaluate.cfg_scales": []})
        checked, mistakes = check(data)
        assert checked is not None, mistakes  # the scale was checked where it was listed
        yield Point(point.values | values, checked)


def _without_sweep(experiment: Experiment) -> dict[str, Any]:
    data: dict[str, Any] = experiment.model_dump(mode="json", exclude={"sweep"})
    return data


def _with_values(data: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The data with these values at these dotted paths."""
    for path, value in values.items():
        for part in reversed(path.split(".")):
            value = {part: value}
        data = merged(data, value)
    return data


def _value_at(data: Any, path: str) -> Any:
    for part in path.split("."):
        data = data.get(part) if isinstance(data, dict) else None
    return data


def _leaves(values: dict[str, Any]) -> dict[str, Any]:
    """A section as a value, leaf by leaf."""
    found: dict[str, Any] = {}
    for path, value in values.items():
        if isinstance(value, dict) and value:
            found |= _leaves({f"{path}.{key}": part for key, part in value.items()})
        else:
            found[path] = value
    return found


def _shown(values: dict[str, Any]) -> str:
    return ", ".join(f"{path}={shown(value)}" for path, value in values.items())
