"""A report: one HTML file that answers a run's or a sweep's question, without any request.

    write_report("sqlite:///mlflow.db", "sigma_cfg", Path("report.html"))

It opens from disk and inside MLflow's artifact viewer, whose sandbox allows scripts and nothing
else. Plotly is inside, deflated; charts are drawn when they come near the screen. Pictures are
thumbnails, their originals stay in MLflow.
"""

import base64
import datetime
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentlm_dashboards.artifact_files import ArtifactFiles
from latentlm_dashboards.markup import ChartShelf, Markup, element, joined, text
from latentlm_dashboards.measures import shown_seconds
from latentlm_dashboards.report_answer import (
    claims_section,
    expected_points,
    first_section,
    paper_section,
)
from latentlm_dashboards.report_data import ReportData, read_report_data
from latentlm_dashboards.report_pictures import (
    Pictures,
    gallery_section,
    matrix_section,
    process_section,
    sound_section,
)
from latentlm_dashboards.report_sections import (
    bad_records_section,
    cost_section,
    left_out_note,
    lineage_section,
    reproduce_section,
    results_section,
    settings_section,
    training_section,
)
from latentlm_dashboards.runs import connect
from latentlm_dashboards.studies import Study, read_study

CONTENTS = {
    "answer": "Answer",
    "claims": "Claims",
    "paper": "The paper",
    "results": "Results",
    "cost": "Cost",
    "training": "Training",
    "matrix": "Matrix",
    "gallery": "Samples",
    "sound": "Sound",
    "process": "Process",
    "records": "Bad records",
    "settings": "Setting",
    "lineage": "Lineage",
    "reproduce": "Do it again",
}


@dataclass(frozen=True)
class Report:
    """The file that was written, its size, how many pictures it embeds, how long it took."""

    path: Path
    bytes: int
    images: int
    seconds: float


def write_report(uri: str, reference: str, path: Path, *, base_url: str | None = None) -> Report:
    """Write the report of the run or sweep that `reference` names: key, its beginning, name or id.

    `uri` is the MLflow store, `base_url` where its pages answer, for links to the originals. Raises
    LookupError for a reference that means nothing or several things, OSError for a path that cannot
    be written.
    """
    started = time.monotonic()
    client = connect(uri)
    study = read_study(client, reference)
    data = read_report_data(client, study, ArtifactFiles(uri))
    page = render_report(data, base_url=base_url)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    size = path.stat().st_size
    return Report(path, size, len(data.shots), time.monotonic() - started)


def render_report(data: ReportData, *, base_url: str | None = None) -> str:
    """The page; the same data and minute give the same page."""
    shelf, pictures = ChartShelf(), Pictures(data, base_url)
    parts = [
        first_section(data, shelf, pictures),
        claims_section(data),
        paper_section(data, shelf),
        results_section(data, shelf),
        cost_section(data, shelf),
        training_section(data, shelf),
        matrix_section(data, pictures),
        gallery_section(data, pictures),
        sound_section(data),
        process_section(data, pictures),
        bad_records_section(data),
        settings_section(data),
        lineage_section(data, base_url),
        reproduce_section(data),
        left_out_note(data),
    ]
    first, *rest = parts
    there = {name: title for name, title in CONTENTS.items() if f'id="{name}"' in "".join(parts)}
    body = joined(
        (
            element("a", "Skip to the answer", href="#answer", class_="skip"),
            _masthead(data.study, data),
            _contents(there),
            Markup("<main>"),
            first,
            _scripts(shelf),  # before the rest, so that the first chart need not wait for pictures
            *rest,
            Markup("</main>"),
            _dialog(),
            _footer(data.study),
        )
    )
    title = text(f"{data.study.name}: report")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{title}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>\n{_asset('report.css')}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _masthead(study: Study, data: ReportData) -> Markup:
    question = study.tags.get("latentlm.question") or study.name
    status = study.status.lower()
    finished = sum(len(group.points) for group in data.points.groups)
    expected = expected_points(study.parameters)
    count = f"{finished} of {expected}" if expected and expected > finished else f"{finished}"
    failed = sum(c.kind == "evaluation" and c.status == "FAILED" for c in study.children)
    failed = max(failed, int(study.metrics.get("points_failed", 0)))
    facts: list[Any] = [
        element("span", status, class_=f"status {status}"),
        element("span", f"{study.kind} {study.name}, key {study.key or study.run_id[:12]}"),
        element("span", f"{count} points" + (f", {failed} failed" if failed else "")),
        element("span", f"started {_when(study.started_ms)}"),
    ]
    if study.ended_ms and (seconds := study.metrics.get("run_seconds")):
        facts.append(element("span", f"took {shown_seconds(seconds)}"))
    if study.status in ("FAILED", "KILLED") and (error := study.tags.get("latentlm.error")):
        facts.append(element("span", f"because: {error}"))
    return element(
        "header",
        element("p", *facts, class_="meta"),
        element("h1", question),
        class_="masthead",
    )


def _contents(titles: dict[str, str]) -> Markup:
    items = (element("li", element("a", title, href=f"#{name}")) for name, title in titles.items())
    theme = element("button", "Dark", class_="theme", type="button", hidden=True)
    inside = element("div", element("ul", *items), theme)
    return element("nav", inside, class_="contents", aria_label="Contents")


def _scripts(shelf: ChartShelf) -> Markup:
    from plotly.offline import get_plotlyjs

    library = ""
    if shelf.charts:
        library = base64.b64encode(zlib.compress(get_plotlyjs().encode(), 9)).decode()
    return Markup(
        f'<script type="text/plain" id="plotly">{library}</script>\n'
        f'<script type="application/json" id="charts">{shelf.data()}</script>\n'
        f"<script>\n{_asset('report.js')}</script>\n"
    )


def _dialog() -> Markup:
    def button(name: str, **attributes: Any) -> Markup:
        return element("button", name, type="button", class_="theme", **attributes)

    steps = element(
        "span",
        button("← previous", data_by="-1"),
        " ",
        button("next →", data_by="1"),
        " ",
        button("close", data_close=True),
    )
    row = element("div", Markup("<p style='margin:0'></p>"), steps, class_="row")
    return element("dialog", Markup('<img src="data:," alt="">'), row, aria_label="Picture")


def _footer(study: Study) -> Markup:
    now = datetime.datetime.now(datetime.UTC)
    note = f"Generated {now:%Y-%m-%d %H:%M} UTC from MLflow run {study.run_id}."
    if study.status == "RUNNING":
        note += " The run goes on; write the report again for what has come since."
    return element("footer", note)


def _when(time_ms: int) -> str:
    return f"{datetime.datetime.fromtimestamp(time_ms / 1000, datetime.UTC):%Y-%m-%d %H:%M} UTC"


def _asset(name: str) -> str:
    return (Path(__file__).parent / "page" / name).read_text(encoding="utf-8")
