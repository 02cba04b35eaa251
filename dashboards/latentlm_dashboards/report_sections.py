"""The later parts of a report: charts, health, bad records, lineage, cost, how to do it again."""

import math
import re
import shlex
from collections.abc import Iterable
from typing import Any

from latentlm_dashboards.charts import cost_chart, curve_chart, factor_charts, row_chart
from latentlm_dashboards.markup import (
    ChartShelf,
    Markup,
    element,
    folded,
    paragraph,
    section,
    table,
)
from latentlm_dashboards.measures import shown_seconds
from latentlm_dashboards.points import VARIANT, Points
from latentlm_dashboards.report_answer import charted_above, ours_table
from latentlm_dashboards.report_data import ReportData
from latentlm_dashboards.studies import Child, Study

STAGES = ("codec", "latents", "model", "evaluation")
MOST_BAD_RECORDS = 200
MOST_LINEAGES = 200
KEY_SHOWN = 12


def results_section(data: ReportData, shelf: ChartShelf) -> Markup:
    """The metric along everything that was varied, then every point as numbers."""
    points = data.points
    if not points.groups:
        return Markup()
    above = charted_above(data)
    order = sorted(range(len(points.factors)), key=lambda i: points.factors[i].paths == (VARIANT,))
    grids = [shelf.grid(factor_charts(points, i)) for i in order if i not in above]
    hint = "Drag to zoom, double-click to go back, tap or hover for values." if any(grids) else ""
    title = "What was varied" if not above else "What else was varied" if grids else "Every point"
    every = folded(
        f"All {len(points.groups)} points as numbers",
        ours_table(points, most=len(points.groups)),
    )
    return section(
        "results",
        title,
        paragraph(hint, "note") if hint else "",
        *grids,
        every,
    )


def cost_section(data: ReportData, shelf: ChartShelf) -> Markup:
    """Quality against cost, and where the time went."""
    spent = stage_seconds(data)
    rows = [[stage, shown_seconds(seconds), count] for stage, (seconds, count) in spent.items()]
    if (whole := data.study.metrics.get("run_seconds")) is not None:
        rows.append(["the whole, as the clock went", shown_seconds(whole), ""])
    parts: list[Any] = [shelf.grid([cost_chart(data.points)])]
    if rows:
        parts.append(
            table(["stage", "time", "times done"], rows, label="Time by stage", numbers=(1, 2))
        )
        note = "Stages run side by side in a sweep, so they may add up to more than the whole."
        parts.append(paragraph(note, "note"))
    span = _span(data.points, "sampling_cpu_seconds_per_image")
    if span:
        parts.append(paragraph(f"CPU time to generate an image: {span}."))
    return section("cost", "Quality and cost", *parts) if any(parts) else Markup()


def _span(points: Points, metric: str) -> str:
    values = [e.mean for g in points.groups if (e := g.estimate(metric)) and math.isfinite(e.mean)]
    if not values:
        return ""
    low, high = shown_seconds(min(values)), shown_seconds(max(values))
    return low if low == high else f"{low} to {high}"


def stage_seconds(data: ReportData) -> dict[str, tuple[float, int]]:
    """Seconds and how often, by stage: each artifact once, however many points share it."""
    once: dict[tuple[str, str], float] = {}
    for point in (point for group in data.points.groups for point in group.points):
        tags = point.child.tags
        for stage in STAGES:
            key = tags.get(f"latentlm.lineage.{stage}") or tags.get("latentlm.trial", "")
            seconds = point.metrics.get(f"{stage}_seconds")
            if seconds is not None and math.isfinite(seconds):
                once[stage, key] = seconds
    for child in data.study.children:
        if child.kind in ("codec", "model") and child.ended_ms:
            once.setdefault((child.kind, child.key), (child.ended_ms - child.started_ms) / 1000)
    spent: dict[str, tuple[float, int]] = {}
    for stage in STAGES:
        own = [seconds for (one, _), seconds in once.items() if one == stage]
        if own:
            spent[stage] = math.fsum(own), len(own)
    return spent


def training_section(data: ReportData, shelf: ChartShelf) -> Markup:
    """How the models trained, and what the codec and the model do to latents."""
    charts = []
    for name, curves in data.curves.items():
        note = "Each mark is the mean of neighbouring steps." if name == "loss" else ""
        charts.append(curve_chart(f"{name} by step", curves, metric=name, caption=note))
    if data.exposure:
        caption = (
            "How far what is generated drifts from what teacher forcing gives, by position of the"
            " latent; in units of the latents' variance. Zero is no drift."
        )
        charts.append(
            row_chart(
                "Exposure bias by position",
                data.exposure,
                x="position",
                y=("exposure_bias",),
                caption=caption,
            )
        )
    if data.variance:
        caption = (
            "Standard deviation of the latent means, by channel; a channel near zero has collapsed."
        )
        charts.append(
            row_chart(
                "Variance by channel", data.variance, x="channel", y=("mu_std",), caption=caption
            )
        )
    grid = shelf.grid(charts)
    return section("training", "Training and latents", grid) if grid else Markup()


def bad_records_section(data: ReportData) -> Markup:
    """Records that could not be used."""
    rows = data.bad_records
    if not rows:
        return Markup()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    kinds: dict[str, int] = {}
    for row in rows:
        kinds[str(row.get("kind"))] = kinds.get(str(row.get("kind")), 0) + 1
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    shown = [[row.get(name, "") for name in columns] for row in rows[:MOST_BAD_RECORDS]]
    more = len(rows) - len(shown)
    note = f"{len(rows)} records were skipped: {told}."
    note += f" The first {len(shown)} are listed; all are in bad_records.json." if more else ""
    return section(
        "records",
        "Records that could not be used",
        paragraph(note),
        table(columns, shown, label="Bad records", tall=True),
    )


def lineage_section(data: ReportData, base_url: str | None) -> Markup:
    """Where it came from: commit, machine, corpus, and which artifact was made from which."""
    study = data.study
    tags = study.tags
    dirty = (
        ", with changes that are in git.diff" if tags.get("latentlm.git_dirty") == "true" else ""
    )
    facts = [
        ("MLflow run", _run_link(study, study.run_id, base_url)),
        ("key", study.key),
        ("git commit", tags.get("latentlm.git_commit", "not recorded") + dirty),
        ("hardware", tags.get("latentlm.hardware", "not recorded")),
        ("MLflow experiment", study.experiment),
    ]
    reused = [
        (f"reused {k.rpartition('.')[2]}", v) for k, v in sorted(tags.items()) if "reused" in k
    ]
    chains = _chains(study.of_kind("evaluation"), data)
    parts: list[Any] = [
        table(["what", "which"], [*map(list, facts), *map(list, reused)], label="Provenance")
    ]
    if chains:
        columns = ["point", "corpus", "latents", "codec", "model"]
        inside = table(columns, chains, label="Lineage", tall=True)
        parts.append(folded(f"What each of {len(chains)} points was made from", inside))
    return section("lineage", "Lineage", *parts)


def _chains(children: Iterable[Child], data: ReportData) -> list[list[Any]]:
    rows = []
    for child in list(children)[:MOST_LINEAGES]:
        keys = [
            child.tags.get(f"latentlm.lineage.{stage}", "–")[:KEY_SHOWN]
            for stage in ("corpus", "latents", "codec", "model")
        ]
        rows.append([data.named(child), *(element("code", key) for key in keys)])
    return rows


def _run_link(study: Study, run_id: str, base_url: str | None) -> Markup:
    if not base_url:
        return element("code", run_id)
    url = f"{base_url.rstrip('/')}/#/experiments/{study.experiment_id}/runs/{run_id}"
    return element("a", run_id, href=url, target="_blank", rel="noopener")


def reproduce_section(data: ReportData) -> Markup:
    """The commands that do it again from the same commit and settings."""
    study = data.study
    commit = study.tags.get("latentlm.git_commit", "none")
    lines = [f"export MLFLOW_TRACKING_URI={shlex.quote(_without_password(data.tracking_uri))}"]
    if commit != "none":
        lines.append(f"git checkout {commit}")
    fetch = f"mlflow artifacts download --run-id {study.run_id} --dst-path again --artifact-path"
    if data.has_diff:
        lines += [f"{fetch} git.diff", "git apply again/git.diff"]
    command = "sweep" if study.kind == "sweep" else "run"
    lines.append(f"{fetch} experiment/resolved.yaml")
    trained = study.tags.get("latentlm.trained")
    model = f" --model {trained}" if trained and study.kind == "sweep" else ""
    lines.append(f"latentlm {command} again/resolved.yaml{model}")
    parts: list[Any] = [
        paragraph(
            "The resolved file holds every setting, also those given with --set. Where the run is"
            " known already the command answers at once; --new repeats it.",
        ),
        element("pre", "\n".join(lines), tabindex="0"),
    ]
    if data.resolved:
        inside = element("pre", data.resolved, tabindex="0")
        parts.append(folded("The resolved experiment", inside))
    return section("reproduce", "Do it again", *parts)


def _without_password(uri: str) -> str:
    """The store's address as it may stand in a file that is passed on."""
    return re.sub(r"://[^/@]*@", "://USER:PASSWORD@", uri)


def settings_section(data: ReportData) -> Markup:
    """What was swept, then every other parameter."""
    p = data.study.parameters
    swept = [[name.removeprefix("sweep."), p[name]] for name in sorted(p) if _is_swept(name)]
    rest = [[name, p[name]] for name in sorted(p) if not _is_swept(name)]
    parts: list[Any] = []
    if swept:
        parts.append(table(["swept", "values"], swept, label="What was swept"))
    if rest:
        inside = table(["parameter", "value"], rest, label="Every parameter", tall=True)
        parts.append(folded(f"The other {len(rest)} parameters", inside))
    return section("settings", "Setting", *parts) if parts else Markup()


def _is_swept(name: str) -> bool:
    return name.startswith(("sweep.grid.", "sweep.variants.", "sweep.search.space."))


def left_out_note(data: ReportData) -> Markup:
    """What the report does not show, and why."""
    if not data.left_out:
        return Markup()
    items = (element("li", sentence) for sentence in data.left_out)
    return folded("What this report leaves out", element("ul", *items))
