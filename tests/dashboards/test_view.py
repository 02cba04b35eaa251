"""Views: the shipped ones are read, and every mistake is named with its place."""

from pathlib import Path

import pytest

from latentlm_dashboards.view import Chart, Field, read_view, shipped_view, view_names
from latentlm_platform.errors import UserError


def test_the_shipped_views_are_read() -> None:
    assert {"cfg_scale", "training_health"} <= set(view_names())
    for name in view_names():
        assert shipped_view(name).charts, name
    view = shipped_view("cfg_scale")
    assert view.title == "Which CFG scale is best?"
    assert view.charts[0] == Chart(
        "scatter", (Field("params", "cfg_scale"), Field("metrics", "generated_accuracy"))
    )
    with pytest.raises(LookupError, match="cfg_scale"):
        shipped_view("nope")


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
    )
    with pytest.raises(UserError) as caught:
        read_view(path)
    problems = caught.value.report["problems"]
    assert {problem["line"] for problem in problems} >= {1, 2, 3, 4, 6, 7, 8, 9, 10}
    assert "did you mean title?" in str(caught.value)
    assert f"{path}:6:" in str(caught.value)


@pytest.mark.parametrize("charts", ["", "charts: []\n", "charts: {}\n", "charts: [3]\n"])
def test_a_view_without_charts_is_refused(tmp_path: Path, charts: str) -> None:
    path = tmp_path / "v.yaml"
    path.write_text(f"title: t\norder_by: metrics.loss\n{charts}")
    with pytest.raises(UserError, match="chart"):
        read_view(path)
