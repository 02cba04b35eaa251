"""What a report shows, read once: points, curves, tables, pictures and sounds of a study.

MLflow is asked a few times: one search for the children, one call for each curve. Files are read
in parallel and only those that the page has room for.
"""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from latentlm_dashboards.artifact_files import ArtifactFiles, PictureFile, in_parallel
from latentlm_dashboards.gallery import Thumbnail, size_for, thumbnail, within_budget
from latentlm_dashboards.points import REPLICATES, Points, read_points
from latentlm_dashboards.sound import BUDGET_BYTES, FOLDER, TEXTS, Sound, read_sound
from latentlm_dashboards.studies import Child, Study, read_number

MOST_CURVES = 12
MOST_TRAJECTORIES = 16
MOST_TABLES = 8
MOST_MISSING = 3
CURVES = ("loss", "validation_loss")
SHOWN_FIRST = ("samples", "trajectory", "reconstructions")


class Shot(NamedTuple):
    """A picture of a child."""

    child: Child
    key: str
    step: int
    thumbnail: Thumbnail


class Spoken(NamedTuple):
    """A sound of an evaluation: NAME.wav, and the text if it was logged."""

    child: Child
    name: str
    text: str
    sound: Sound


@dataclass(frozen=True)
class ReportData:
    """A study with everything that its report needs; `left_out` says what it does not show."""

    study: Study
    points: Points
    findings: dict[str, Any]
    findings_text: str
    resolved: str
    has_diff: bool
    tracking_uri: str
    bad_records: list[dict[str, Any]]
    curves: dict[str, dict[str, list[tuple[int, float]]]]
    exposure: dict[str, list[dict[str, Any]]]
    variance: dict[str, list[dict[str, Any]]]
    shots: list[Shot]
    spoken: list[Spoken]
    tiles: list[str]
    left_out: list[str] = field(default_factory=list)

    def shot(self, child: Child, key: str) -> Shot | None:
        """The child's picture of that key."""
        return next((s for s in self.shots if s.child is child and s.key == key), None)

    def named(self, child: Child) -> str:
        """What was varied for a child, in short; its kind where nothing was."""
        points = self.points
        seeds = {p.values.get(path) for g in points.groups for p in g.points for path in REPLICATES}
        for group in points.groups:
            for point in group.points:
                if all(point.values.get(path) == own for path, own in child.chosen.items()):
                    told = [
                        factor.told(level)
                        for factor, level in zip(points.factors, group.levels, strict=True)
                        if any(path in child.chosen for path in factor.paths)
                    ]
                    if len(seeds - {None}) > 1:
                        told += [f"seed {child.chosen[p]}" for p in REPLICATES if p in child.chosen]
                    return ", ".join(told) or child.kind
        chosen = {path.rpartition(".")[2]: value for path, value in child.chosen.items()}
        return ", ".join(f"{name} {value}" for name, value in chosen.items()) or child.kind


def read_report_data(client: Any, study: Study, files: ArtifactFiles) -> ReportData:
    """Everything of a study; what is missing is empty."""
    top = study.artifacts
    points = read_points(study, files.rows_of(top, "points.json"))
    ranked = _ranked_children(points)
    left_out: list[str] = []
    shots = _shots(study, ranked, files, left_out)
    spoken = _spoken(ranked, files, left_out)
    findings = files.json_of(top, "findings.json")
    diff = study.tags.get("latentlm.git_dirty") == "true"
    data = ReportData(
        study=study,
        points=points,
        findings=findings if isinstance(findings, dict) else {},
        findings_text=_decoded(files.bytes_of(top, "findings.txt")),
        resolved=_decoded(files.bytes_of(top, "experiment/resolved.yaml")),
        has_diff=diff,
        tracking_uri=files.tracking_uri,
        bad_records=files.rows_of(top, "bad_records.json"),
        curves={},
        exposure={},
        variance={},
        shots=shots,
        spoken=spoken,
        tiles=_tiles(ranked, files),
        left_out=left_out,
    )
    data.curves.update(_curves(client, data, left_out))
    data.exposure.update(_tables(data, ranked, "exposure_bias.json", files))
    data.variance.update(_tables(data, study.of_kind("codec"), "variance.json", files))
    for location, reason in list(files.missing.items())[:MOST_MISSING]:
        left_out.append(f"artifacts at {location} could not be read ({reason})")
    if len(files.missing) > MOST_MISSING:
        left_out.append(f"nor could those of {len(files.missing) - MOST_MISSING} more runs")
    return data


def _ranked_children(points: Points) -> list[Child]:
    """The evaluations, best first, those without a finite value last."""
    ranked = points.ranked()
    rest = [group for group in points.groups if group not in ranked]
    return [point.child for group in (*ranked, *rest) for point in group.points]


def _shots(
    study: Study, ranked: list[Child], files: ArtifactFiles, left_out: list[str]
) -> list[Shot]:
    """Thumbnails in the order in which they matter, as many as the page has room for."""
    children = [*ranked, *study.of_kind("codec"), *study.of_kind("model")]
    listed = in_parallel(lambda child: files.pictures(child.artifacts), children)
    wanted: list[tuple[Child, PictureFile]] = [
        (child, picture) for child, own in zip(children, listed, strict=True) for picture in own
    ]
    traced = [one for one in wanted if one[1].key == "trajectory"][:MOST_TRAJECTORIES]
    wanted = [one for one in wanted if one[1].key != "trajectory" or one in traced]
    wanted.sort(key=lambda one: _urgency(*one))
    size = size_for(len(wanted))

    def read(one: tuple[Child, PictureFile]) -> Shot | None:
        child, picture = one
        raw = files.bytes_of(child.artifacts, picture.path)
        tile = read_number(study.parameters.get("corpus.image_size", ""))
        try:
            small = thumbnail(raw or b"", int(tile) if isinstance(tile, float) else None, size)
        except ValueError:
            return None
        return Shot(child, picture.key, picture.step, small)

    shots = [shot for shot in in_parallel(read, wanted) if shot is not None]
    if len(shots) < len(wanted):
        left_out.append(f"{len(wanted) - len(shots)} pictures could not be read")
    kept = within_budget([len(shot.thumbnail.data) for shot in shots])
    if kept < len(shots):
        left_out.append(f"{len(shots) - kept} pictures have no room here; they are in MLflow")
    return shots[:kept]


def _urgency(child: Child, picture: PictureFile) -> tuple[int, int]:
    known = picture.key in SHOWN_FIRST
    order = SHOWN_FIRST.index(picture.key) if known else len(SHOWN_FIRST)
    return (order + 10 * (child.kind == "model"), 0 if child.kind != "model" else -picture.step)


def _spoken(ranked: list[Child], files: ArtifactFiles, left_out: list[str]) -> list[Spoken]:
    found: list[Spoken] = []
    total = dropped = unread = 0
    listed = in_parallel(lambda child: files.names(child.artifacts, FOLDER), ranked)
    for child, names in zip(ranked, listed, strict=True):
        waves = [name for name in names if name.endswith(".wav")]
        texts = (files.json_of(child.artifacts, TEXTS) or {}) if waves else {}
        for path in waves:
            name = path.rpartition("/")[2].removesuffix(".wav")
            raw = files.bytes_of(child.artifacts, path) if total < BUDGET_BYTES else b""
            total += len(raw or b"")
            if not raw or total > BUDGET_BYTES:
                unread, dropped = unread + (raw is None), dropped + (raw is not None)
                continue
            try:
                found.append(Spoken(child, name, str(texts.get(name, "")), read_sound(raw)))
            except ValueError as error:
                left_out.append(f"{path} of {child.name}: {error}")
    if unread:
        left_out.append(f"{unread} sounds could not be read")
    if dropped:
        left_out.append(f"{dropped} sounds have no room here; they are in MLflow")
    return found


def _curves(
    client: Any, data: ReportData, left_out: list[str]
) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Values by step of the models, of those behind the best points where there are many."""
    models = data.study.of_kind("model")
    models = [one for one in models if one.status in ("FINISHED", "RUNNING")] or models
    order = [
        child.tags.get("latentlm.lineage.model", "") for child in _ranked_children(data.points)
    ]
    first = {key: place for place, key in reversed(list(enumerate(order)))}
    models.sort(key=lambda model: first.get(model.key, len(order)))
    if len(models) > MOST_CURVES:
        left_out.append(
            f"the curves of {len(models) - MOST_CURVES} of {len(models)} models, which are not"
            " behind the best points"
        )
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {name: {} for name in CURVES}
    for model in models[:MOST_CURVES]:
        for name in CURVES:
            if name in model.metrics:
                history = client.get_metric_history(model.run_id, name)
                steps = sorted((entry.step, entry.value) for entry in history)
                curves[name][_distinct(data.named(model), curves[name])] = steps
    return {name: dict(sorted(own.items())) for name, own in curves.items() if own}


def _tables(
    data: ReportData, children: Iterable[Child], path: str, files: ArtifactFiles
) -> dict[str, list[dict[str, Any]]]:
    """Tables of the first children that have one, by what was varied for them."""
    children = list(children)[: 4 * MOST_TABLES]
    found: dict[str, list[dict[str, Any]]] = {}
    read = in_parallel(lambda child: files.rows_of(child.artifacts, path), children)
    for child, rows in zip(children, read, strict=True):
        if rows and len(found) < MOST_TABLES:
            found[_distinct(data.named(child), found)] = rows
    return found


def _distinct(name: str, taken: Iterable[str]) -> str:
    count = sum(one == name or one.startswith(f"{name} (") for one in taken)
    return f"{name} ({count + 1})" if count else name


def _tiles(ranked: list[Child], files: ArtifactFiles) -> list[str]:
    """What the first tiles of every samples picture are: class and seed, from one samples.csv."""
    for child in ranked[:1]:
        text = _decoded(files.bytes_of(child.artifacts, "samples.csv"))
        rows = list(csv.DictReader(io.StringIO(text)))[:20]
        return [f"class {row.get('class', '?')}, seed {row.get('seed', '?')}" for row in rows]
    return []


def _decoded(raw: bytes | None) -> str:
    return (raw or b"").decode("utf-8", errors="replace")
