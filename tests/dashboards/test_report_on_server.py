"""The report and MLflow's real server: written from what it serves, and shown in its pages."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from latentlm_dashboards.artifact_files import ArtifactFiles
from latentlm_dashboards.report import write_report
from latentlm_dashboards.report_data import ReportData, read_report_data
from latentlm_dashboards.runs import connect
from latentlm_dashboards.studies import read_study
from making_companions import patiently
from making_pages import Pages, served
from making_tracked_sweeps import SweepShape, TrackedStore, write_sweep

pytestmark = pytest.mark.browser
KEY = "ab12cd34"
MARKS = """
return [...document.querySelectorAll('figure[data-drawn]')].map((figure) =>
  figure.querySelectorAll('.scatterlayer .point, .scatterlayer path.js-line').length)
"""


class Served(NamedTuple):
    store: TrackedStore
    parent: str
    pages: Pages


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A sweep whose artifacts are behind a server."""
    home = tmp_path_factory.mktemp("served")
    store = TrackedStore(home, served=True)
    parent = write_sweep(store, SweepShape(sound=True))
    with served(store.uri, home) as pages:
        yield Served(store, parent, pages)


def read(uri: str) -> ReportData:
    client = connect(uri)
    return read_report_data(client, read_study(client, KEY), ArtifactFiles(uri))


def test_a_report_of_what_a_server_has_is_that_of_the_files(sweep: Served, tmp_path: Path) -> None:
    beside = TrackedStore(tmp_path)
    write_sweep(beside, SweepShape(sound=True))
    fetched, here = read(sweep.pages.url), read(beside.uri)
    for name in (
        *("findings", "findings_text", "resolved", "has_diff", "bad_records", "curves"),
        *("exposure", "variance", "tiles", "left_out"),
    ):
        assert getattr(fetched, name) == getattr(here, name), name
        assert getattr(here, name) or name in ("has_diff", "left_out"), name
    for shots in ("shots", "spoken"):
        told = [[one._replace(child=None) for one in getattr(d, shots)] for d in (fetched, here)]
        assert repr(told[0]) == repr(told[1])
        assert told[0]
    assert measured(fetched) == measured(here)


def measured(data: ReportData) -> list[Any]:
    """Every group with the metrics of its points."""
    return [(g.levels, [point.metrics for point in g.points]) for g in data.points.groups]


def test_mlflows_own_page_of_the_artifact_shows_it_alive(
    sweep: Served, browser: Any, screenshots: Path, tmp_path: Path
) -> None:
    """MLflow puts an HTML artifact into a frame without an origin; charts and keys work there."""
    made = write_report(sweep.pages.url, KEY, tmp_path / "report.html")
    sweep.store.write(sweep.parent, "report.html", made.path.read_bytes())
    run = f"#/experiments/{sweep.store.experiment_id}/runs/{sweep.parent}"
    browser.get(f"{sweep.pages.url}/{run}/artifacts/report.html")
    patiently(
        lambda: browser.switch_to.frame(browser.find_elements("css selector", "iframe")[0]), "frame"
    )
    drawn = "return performance.getEntriesByName('first-chart')[0].startTime"
    patiently(lambda: browser.execute_script(drawn), "a chart")
    assert browser.execute_script("return window.origin") == "null"
    marks = browser.execute_script(MARKS)
    assert marks
    assert min(marks) > 0
    browser.execute_script("document.querySelector('.shot button').click()")
    assert browser.execute_script("return document.querySelector('dialog').open")
    browser.switch_to.default_content()
    browser.save_screenshot(str(screenshots / "report_in_mlflow.png"))
