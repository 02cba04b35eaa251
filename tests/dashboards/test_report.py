"""The report as a file: what it says, keeps apart and escapes, and what it makes of nothing."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from latentlm_dashboards import artifact_files
from latentlm_dashboards.artifact_files import ArtifactFiles
from latentlm_dashboards.markup import script_json
from latentlm_dashboards.report import Report, write_report
from latentlm_dashboards.report_answer import expected_points
from making_tracked_sweeps import (
    HOSTILE,
    LARGE_KEY,
    METRIC,
    tiles_png,
    tracked_examples,
    tracked_large,
)

LARGEST = 15_000_000


class Page(HTMLParser):
    """A page as its elements: (name, attributes, classes of everything around, text)."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, list[str], str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("img", "meta", "link", "br"):
            self.open.append((tag, dict(attrs).get("class") or ""))

    def handle_endtag(self, tag: str) -> None:
        name, _ = self.open.pop()
        assert name == tag, f"<{name}> is ended by </{tag}>"

    def handle_data(self, data: str) -> None:
        around = [name for _, classes in self.open for name in classes.split()]
        self.texts.append((self.open[-1][0] if self.open else "", around, data))

    def text(self, *, inside: str | None = None, tag: str | None = None) -> str:
        skipped = ("script", "style")
        return " ".join(
            data
            for name, around, data in self.texts
            if name not in skipped
            and (inside is None or inside in around)
            and (tag is None or name == tag)
        )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Report, Page, str]]:
    folder = tmp_path_factory.mktemp("reports")
    found = {}
    for key in ("ab12cd34", "3f9a1111", "beef0001", "dead0001", "e0e0e0e0"):
        made = write_report(tracked_examples().uri, key, folder / "deep" / f"{key}.html")
        html = made.path.read_text(encoding="utf-8")
        found[key] = made, Page(html), html
    return found


def test_the_answer_comes_first_with_its_interval(written: dict[str, Any]) -> None:
    _, page, html = written["3f9a1111"]
    assert "CFG 3 is best by generated_accuracy: 0.950" in page.text(inside="answer")
    assert "0.930 to 0.970" in page.text(inside="answer")
    assert html.index('class="answer"') < html.index("<img") < html.index('id="plotly"')
    assert "Which CFG scale is best?" in page.text(tag="h1")


def test_a_sweep_has_every_part_and_its_numbers(written: dict[str, Any]) -> None:
    made, page, html = written["ab12cd34"]
    parts = re.findall(r'<section aria-labelledby="[^"]+" id="([^"]+)"|<section id="([^"]+)"', html)
    ids = {one or other for one, other in parts}
    wanted = {"answer", "claims", "paper", "results", "cost", "training", "matrix", "gallery"}
    wanted |= {"sound", "process", "records", "settings", "lineage", "reproduce"}
    assert ids == wanted
    assert "σ 0.5, CFG 2 is best" in page.text(inside="answer")
    rivals = "Not clearly apart from it: σ 0.5, CFG 1 (60.00) and 1 more."  # two seeds: t = 12.7
    assert rivals in page.text(inside="answer")
    text = page.text()
    for piece in ("not finite", "1 of 2 steps fall", "truncated <PNG> & more", "2 × AMD EPYC"):
        assert piece in text, piece
    assert "git checkout 9c3f5bde29cd2dfb8b2044b1e760029e13dac136" in page.text(tag="pre")
    assert re.search(r"latentlm sweep again/resolved\.yaml", page.text(tag="pre"))
    images = 3 * 2 * 3 + 3 * 3 + 3 + 3 * 2 * 2  # samples, trajectories, codecs, during training
    assert made.images == images
    assert len([a for t, a in page.elements if t == "img" and a.get("id")]) == images
    assert len([1 for tag, _ in page.elements if tag == "audio"]) == 18
    assert made.bytes == made.path.stat().st_size < LARGEST


def test_stages_shared_by_points_are_counted_once(written: dict[str, Any]) -> None:
    _, page, _ = written["ab12cd34"]
    cells = [data for name, _, data in page.texts if name == "td"]
    at = cells.index("codec", cells.index("codec"))
    times = {cells[i]: cells[i + 1 : i + 3] for i in range(at, len(cells) - 2)}
    assert times["codec"] == ["3 min", "3"]
    assert times["latents"] == ["30 s", "3"]
    assert times["model"] == ["24 min", "6"]


def test_the_papers_numbers_and_ours_share_no_column(
    tmp_path: Path,
) -> None:
    store = tracked_examples()
    client = store.client
    run = client.search_runs([store.experiment_id], "tags.`latentlm.key` = 'ab12cd34'")[0]
    client.set_tag(run.info.run_id, "latentlm.reproduces", "Table 2, Table 1")
    try:
        made = write_report(store.uri, "ab12cd34", tmp_path / "r.html")
    finally:
        client.set_tag(run.info.run_id, "latentlm.reproduces", "Figure 6")
    page = Page(made.path.read_text())
    quoted, ours = page.text(inside="quoted"), page.text(inside="ours")
    assert "3.19" in quoted
    assert "253.8" in quoted
    assert METRIC in ours
    assert METRIC not in quoted
    assert "FID" not in ours.replace("not FID", "")
    for number in ("3.19", "2.51", "253.8", "LatentLM-L"):
        assert number not in ours
    assert "not the paper" in ours
    assert "not ours" in quoted


def test_nothing_is_asked_of_a_network(written: dict[str, Any]) -> None:
    for _, page, html in written.values():
        for tag, attributes in page.elements:
            for name in ("src", "href", "srcset", "data", "action", "poster"):
                target = attributes.get(name) or ""
                assert not target or target.startswith(("data:", "#")), (tag, target)
        style = "".join(data for name, _, data in page.texts if name == "style")
        assert "url(" not in style
        assert "@import" not in style
        script = html[html.rindex("<script>") : html.rindex("</script>")]
        for word in ("fetch(", "XMLHttpRequest", "localStorage", "sessionStorage", "import("):
            assert word not in script


def test_with_an_address_every_picture_links_to_its_original(tmp_path: Path) -> None:
    store = tracked_examples()
    base = "http://127.0.0.1:5000/"
    made = write_report(store.uri, "quickstart", tmp_path / "r.html", base_url=base)
    page = Page(made.path.read_text())
    links = [a["href"] for t, a in page.elements if t == "a" and str(a["href"]).startswith("http")]
    assert len(links) > 4
    place = f"http://127.0.0.1:5000/#/experiments/{store.experiment_id}/runs/"
    assert all(str(link).startswith(place) for link in links)


def test_text_of_runs_is_text(written: dict[str, Any]) -> None:
    _, page, html = written["beef0001"]
    assert HOSTILE in page.text(tag="h1")
    assert "<script>alert" not in html
    assert sum(tag == "script" for tag, _ in page.elements) == 3
    charts = re.search(r'id="charts">(.*?)</script>', html, re.DOTALL)
    assert charts is not None
    json.loads(charts[1])


def test_json_in_a_script_cannot_end_it_and_holds_no_nan() -> None:
    given = ["</script><script>alert(1)</script>", "<!--", "名 ‰"]
    packed = script_json(given)
    assert "<" not in packed
    assert json.loads(packed) == given
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json([float("nan")])


def test_a_running_sweep_says_how_far_it_is(written: dict[str, Any]) -> None:
    _, page, _ = written["beef0001"]
    assert "5 of 18 points" in page.text(inside="meta")
    assert "running" in page.text(inside="status")
    assert "The run goes on" in page.text(tag="footer")


@pytest.mark.parametrize(
    ("key", "sentence"), [("dead0001", "because: interrupted"), ("e0e0e0e0", "no children")]
)
def test_a_run_without_children_is_a_report_that_says_so(
    written: dict[str, Any], key: str, sentence: str
) -> None:
    made, page, html = written[key]
    assert sentence in page.text()
    assert "No answer" in page.text(inside="answer")
    assert made.images == 0
    assert len(html) < 100_000  # no charts, so plotly is left out


def test_a_name_that_means_nothing_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match=r"no run or sweep is called 'sigma'.*quickstart"):
        write_report(tracked_examples().uri, "sigma", tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_the_points_to_come_are_counted_as_the_platform_does() -> None:
    grid = {"sweep.grid.a": "[1, 2]", "sweep.grid.train.seed": "[0, 1, 2]"}
    variants = {"sweep.variants.latentlm": "{}", "sweep.variants.dit.model.kind": "dit"}
    listed = {"evaluate.cfg_scales": "[1, 2]", "sample.cfg_scale": "3.0"}
    assert expected_points(grid | variants) == 12
    assert expected_points(grid | listed) == 18
    assert expected_points(grid | listed | {"sweep.grid.sample.cfg_scale": "[1, 2]"}) == 12
    assert expected_points({"sweep.grid.a": "no list"}) is None


def test_artifacts_behind_another_store_are_fetched_by_mlflow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same answers by MLflow's own client as by reading in place."""
    store = tracked_examples()
    run = store.client.search_runs([store.experiment_id], "tags.`latentlm.kind` = 'evaluation'")[0]
    location = run.info.artifact_uri
    here = ArtifactFiles(store.uri)
    asked = here.pictures(location), here.bytes_of(location, "samples.csv")
    monkeypatch.setattr(artifact_files, "local_folder", lambda _: None)
    there = ArtifactFiles(store.uri)
    assert (there.pictures(location), there.bytes_of(location, "samples.csv")) == asked
    assert asked[0]
    assert asked[1]
    assert there.bytes_of(location, "absent.txt") is None
    assert not there.missing  # what was never written is no fault
    assert there.bytes_of("nothing://answers", "samples.csv") is None
    assert list(there.missing) == ["nothing://answers"]


def test_a_store_that_fails_for_three_runs_is_not_asked_for_a_fourth() -> None:
    files = ArtifactFiles("http://127.0.0.1:9")
    locations = [f"nothing://answers/{i}" for i in range(5)]
    for location in locations:
        assert files.pictures(location) == []
        assert files.bytes_of(location, "samples.csv") is None
    assert list(files.missing) == locations
    assert [files.missing[one] for one in locations[3:]] == ["it was not asked any more"] * 2


def test_files_of_another_machine_are_missed_and_absent_ones_are_not(tmp_path: Path) -> None:
    (tmp_path / "1" / "run" / "artifacts").mkdir(parents=True)
    files = ArtifactFiles("sqlite://")
    for run in ("run", "without"):
        assert files.rows_of((tmp_path / "1" / run / "artifacts").as_uri(), "points.json") == []
    assert not files.missing
    assert files.pictures("file:///of/another/machine/1/run/artifacts") == []
    assert list(files.missing.values()) == ["this machine has no such folder"]


def test_pictures_are_found_under_mlflows_own_names() -> None:
    store = tracked_examples()
    run = store.start("a run with a picture")
    picture = Image.open(io.BytesIO(tiles_png(lambda i: i)))
    for step in (3, 3, 7):
        store.client.log_image(run, picture, key="samples", step=step)
    found = ArtifactFiles(store.uri).pictures(store.client.get_run(run).info.artifact_uri)
    assert [(one.key, one.step) for one in found] == [("samples", 3), ("samples", 7)]


def test_an_old_mlflow_is_good_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setattr(mlflow, "__version__", "2.22.0")
    monkeypatch.setattr(mlflow.version, "VERSION", "2.22.0")
    assert write_report(tracked_examples().uri, "quickstart", tmp_path / "r.html").images == 4


def test_a_hundred_runs_with_a_thousand_pictures(tmp_path: Path) -> None:
    """Size is a law; time is only kept from getting out of hand on a busy machine."""
    made = write_report(tracked_large().uri, LARGE_KEY, tmp_path / "r.html")
    assert made.images >= 1000
    assert made.bytes < LARGEST
    assert made.seconds < 90
