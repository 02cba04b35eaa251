"""Views: the shipped ones are read, and every mistake is named with its place."""

from pathlib import Path

import pytest

from latentlm_dashboards.view import Chart, Field, view_names
from latentlm_dashboards.view_file import read_view, shipped_view, shipped_views, views_about
from latentlm_platform.errors import UserError

FIGURES = {f"Figure {number}" for number in (3, 4, 5, 6, 7, 9, 11)}
PARTS = {"Figure 8a", "Figure 8b", "Figure 10a", "Figure 10b"}
TABLES = {f"Table {number}" for number in range(1, 10)}


def test_the_shipped_views_are_read() -> None:
    assert {"cfg_scale", "training_health", "codec_health", "sampler_explorer"} <= set(view_names())
    for view in shipped_views():
        assert view.charts, view.name
        assert view.title.endswith("?"), f"{view.name}: a title is a question"
    view = shipped_view("cfg_scale")
    assert view.title == "Which CFG scale is best?"
    assert view.charts[0] == Chart(
        "scatter", (Field("params", "cfg_scale"), Field("metrics", "generated_accuracy"))
    )
    line = view.lines[Field("metrics", "generated_accuracy")]
    assert "metrics.generated_accuracy" in Path(view.file).read_text().splitlines()[line - 1]
    with pytest.raises(UserError, match="did you mean cfg_scale"):
        shipped_view("cfg_scales")
    with pytest.raises(UserError, match="there are cfg_scale"):
        shipped_view("nope")


def test_every_figure_and_table_with_results_has_a_view() -> None:
    """Figures 1 and 2 draw the method."""
    covered = {one for view in shipped_views() for one in view.reproduces}
    assert covered == FIGURES | PARTS | TABLES
    titles = [view.title for view in shipped_views()]
    assert len(set(titles)) == len(titles)  # MLflow's menu shows nothing else
    kinds = {chart.kind for view in shipped_views() for chart in view.charts}
    assert kinds == {"line", "bar", "scatter", "parallel", "contour", "difference", "images"}


@pytest.mark.parametrize(
    ("reproduces", "first"),
    [
        ("Figure 6", "tokenizer_variance"),
        ("Figure 10a, on images", "cfg_scale"),
        ("Figure 10", "cfg_scale"),
        ("Figure 7b, group-query attention", "sampling_throughput"),
        ("Table 1", "class_images"),
        ("Table 4, Table 9, Figure 10", "cfg_scale"),
        (None, None),
        ("Figure 1", None),
    ],
)
def test_views_about_what_an_experiment_reproduces(
    reproduces: str | None, first: str | None
) -> None:
    names = views_about(reproduces)
    assert (names[0] if names else None) == first
    assert ("sampler_steps" in names) == (
        reproduces is not None and "Figure 10" in reproduces and "10a" not in reproduces
    )


def test_every_mistake_is_named_at_once_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "titel: x\n"
        "order_by: loss\n"
        "descending: 3\n"
        "columns: [speed.x]\n"
        "charts:\n"
        "  - {kind: pie, y: metrics.loss}\n"
        "  - {kind: bar, y: params.width}\n"
        "  - {kind: scatter, x: params.width}\n"
        "  - {kind: line, y: metrics.loss}\n"
        "  - {kind: bar, y: metrics.loss, colour: red}\n"
        "  - {kind: difference, compare: [colours]}\n"
        "  - {kind: images}\n"
        "  - {kind: bar, y: metrics.loss}\n"
        "awaits: video\n"
        "reproduces: [6]\n"
    )
    with pytest.raises(UserError) as caught:
        read_view(path)
    problems = caught.value.report["problems"]
    assert {problem["line"] for problem in problems} >= {1, 2, 3, 4, *range(6, 16)}
    assert "did you mean title?" in str(caught.value)
    assert f"{path}:6:" in str(caught.value)


@pytest.mark.parametrize("charts", ["", "charts: []\n", "charts: {}\n", "charts: [3]\n"])
def test_a_view_without_charts_is_refused(tmp_path: Path, charts: str) -> None:
    path = tmp_path / "v.yaml"
    path.write_text(f"title: t\norder_by: metrics.loss\n{charts}")
    with pytest.raises(UserError, match="chart"):
        read_view(path)


def test_a_name_that_breaks_out_of_mlflows_search_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.yaml"
    path.write_text("title: t\norder_by: 'metrics.a` = 1'\ncharts: [{kind: bar, y: metrics.b}]\n")
    with pytest.raises(UserError, match=r"v\.yaml:2:"):
        read_view(path)
