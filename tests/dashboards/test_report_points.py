"""Points, charts and pictures of a report against laws and other libraries."""

import io
import itertools
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from PIL import Image
from scipy import stats

from latentlm_dashboards.charts import cost_chart, curve_chart, factor_charts, row_chart
from latentlm_dashboards.gallery import Size, thumbnail, tiling_of, within_budget
from latentlm_dashboards.measures import better, main_metric, shown_number
from latentlm_dashboards.points import estimated, pareto, read_points
from latentlm_dashboards.report_answer import answer
from latentlm_dashboards.sound import read_sound, spectrogram
from latentlm_dashboards.studies import Child, Study, read_study
from making_tracked_sweeps import (
    METRIC,
    TILE,
    law,
    sine_wav,
    tile_grey,
    tiles_png,
    tracked_examples,
)


def tracked(name: str, *, kind: str, **more: Any) -> dict[str, Any]:
    """The fields that every run of ours has."""
    empty: dict[str, Any] = {"parameters": {}, "metrics": {}, "tags": {}, "artifacts": ""}
    ended = {"status": "FINISHED", "started_ms": 0, "ended_ms": 1}
    return {"run_id": name, "name": name, "kind": kind, "key": name} | empty | ended | more


def child(kind: str, chosen: dict[str, Any], metrics: dict[str, float], key: str = "") -> Child:
    name = key or json.dumps(chosen)
    own = tracked(name, kind=kind, metrics=metrics)
    return Child(**own, chosen=chosen)


def study(*children: Child, **parameters: str) -> Study:
    swept = {name.replace("__", "."): value for name, value in parameters.items()}
    own = tracked("s", kind="sweep", parameters=swept)
    return Study(**own, experiment_id="1", experiment="e", children=children)


def test_the_answer_does_not_call_apart_what_has_no_interval() -> None:
    def told(*values: tuple[float, float, int]) -> str:
        """The answer over evaluations (CFG, value, seed)."""
        points = [
            child("evaluation", {"sample.cfg_scale": cfg, "train.seed": seed}, {METRIC: value})
            for cfg, value, seed in values
        ]
        swept = {"sweep__grid__sample__cfg_scale": "[1, 2, 3]", "sweep__metric": METRIC}
        made = study(*points, **swept)
        return answer(read_points(made, []), made)

    best = [(1.0, 10.0, 0), (1.0, 11.0, 1), (1.0, 12.0, 2)]
    assert "Not clearly apart from it: CFG 2 (11.00)." in told(*best, (2.0, 11.0001, 0))
    far = told(*best, (2.0, 90.0, 0))
    assert "No other interval overlaps with it, but 1 of the others have no interval." in far
    both = told(*best, (2.0, 90.0, 0), (2.0, 91.0, 1), (3.0, 12.0, 0), (3.0, 12.4, 1))
    assert "Not clearly apart from it: CFG 3 (12.20)." in both


def test_seeds_give_students_interval() -> None:
    values = [3.1, 2.7, 3.9, 3.3]
    found = estimated([{"m": v} for v in values], "m")
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), low, high), 1e-3)
    assert found.source == "seeds"


def test_one_seed_has_the_interval_of_its_measurement_or_none() -> None:
    measured = estimated([{"m": 2.0, "m_low": 1.0, "m_high": 4.0}], "m")
    assert measured == (2.0, 1.0, 4.0, 1, "measurement")
    assert estimated([{"m": 2.0}], "m") == (2.0, None, None, 1, "none")
    assert estimated([], "m") is None


def test_the_written_sweep_is_read_as_its_law() -> None:
    store = tracked_examples()
    points = read_points(read_study(store.client, "sigma_cfg"))
    assert [factor.title for factor in points.factors] == ["sigma", "cfg_scale"]
    assert (points.metric, points.mode, len(points.groups)) == (METRIC, "min", 9)
    for group in points.groups:
        sigma, cfg = (level.number for level in group.levels)
        assert sigma is not None
        assert cfg is not None
        found = points.estimate(group)
        assert found is not None
        if (sigma, cfg) == (1.0, 3.0):
            assert math.isnan(found.mean)
            assert group not in points.ranked()
        else:
            assert found.mean == pytest.approx(law(sigma, cfg))
            assert found.n == 2
    best = points.best()
    assert best is not None
    assert points.named(best) == "σ 0.5, CFG 2"


def test_what_the_grid_lists_as_one_is_one_factor() -> None:
    fixed = [{"codec.kind": "fixed", "codec.sigma": s} for s in (0.1, 0.5)]
    chosen = [*fixed, {"codec.kind": "diagonal", "codec.beta": 1e-6}]
    children = [child("evaluation", c, {"m": float(i)}) for i, c in enumerate(chosen)]
    points = read_points(study(*children, sweep__grid__codec="[]", sweep__metric="m"))
    assert [f.title for f in points.factors] == ["sigma"]
    assert [level.label for level in points.factors[0].levels] == ["0.1", "0.5", "diagonal"]
    apart = read_points(study(*children, sweep__metric="m"))
    assert len(apart.factors) == 3


def test_levels_that_share_a_number_stay_apart() -> None:
    chosen = [{"codec.kind": k, "codec.sigma": s} for k in ("a", "b") for s in (0.1, 0.5)]
    children = [child("evaluation", c, {"m": float(i)}) for i, c in enumerate(chosen)]
    points = read_points(study(*children, sweep__grid__codec="[]", sweep__metric="m"))
    assert len(points.factors[0].levels) == len(points.groups) == 4


def test_a_point_that_was_done_again_counts_once() -> None:
    one = child("evaluation", {"a": 1}, {"m": 1.0}, "k")
    points = read_points(study(one, replace(one, metrics={"m": 2.0}), sweep__metric="m"))
    assert [p.metrics["m"] for g in points.groups for p in g.points] == [2.0]
    failed = replace(one, status="FAILED")
    assert not read_points(study(failed, sweep__metric="m")).groups


def test_the_front_is_what_nothing_beats_in_both() -> None:
    draw = np.random.default_rng(0)
    pairs = [(float(c), float(m)) for c, m in draw.integers(0, 8, (30, 2))]
    children = [
        child("evaluation", {"a": i}, {"m": m, "cost": c}) for i, (c, m) in enumerate(pairs)
    ]
    points = read_points(study(*children, sweep__metric="m", sweep__mode="max", sweep__cost="cost"))
    front = {(g.points[0].metrics["cost"], g.points[0].metrics["m"]) for g in pareto(points)}
    dominated = {
        own
        for own, other in itertools.product(pairs, pairs)
        if other != own and other[0] <= own[0] and other[1] >= own[1]
    }
    assert front == set(pairs) - dominated


def test_charts_are_plotlys_and_carry_the_intervals() -> None:
    points = read_points(read_study(tracked_examples().client, "sigma_cfg"))
    charts = [c for i in range(2) for c in factor_charts(points, i)]
    charts += [c for c in [cost_chart(points)] if c]
    charts.append(curve_chart("loss", {"a": [(s, 1 / s) for s in range(1, 999)]}, metric="loss"))
    rows = {"a": [{"position": 0, "bias": 1.0}, {"position": 1, "bias": math.nan}]}
    charts.append(row_chart("bias", rows, x="position", y=("bias",)))
    for chart in charts:
        go.Figure(data=chart.data, layout=chart.layout)  # raises for what plotly does not know
        json.dumps(chart.data, allow_nan=False)
    by_sigma = charts[0]
    assert [trace["name"] for trace in by_sigma.data] == ["CFG 1", "CFG 2", "CFG 3"]
    marks = sum(len(trace["x"]) for trace in by_sigma.data)
    assert marks == 8
    assert "1 without a finite value" in by_sigma.caption
    first = points.groups[0]
    found = points.estimate(first)
    assert found is not None
    assert found.high is not None
    assert by_sigma.data[0]["error_y"]["array"][0] == pytest.approx(found.high - found.mean)
    assert len(charts[-2].data[0]["x"]) <= 200


def test_a_kind_among_numbers_is_no_step_of_the_line() -> None:
    chosen = [{"c.sigma": 0.1}, {"c.sigma": 0.5}, {"c.kind": "diagonal"}]
    children = [child("evaluation", c, {"m": float(i)}) for i, c in enumerate(chosen)]
    points = read_points(study(*children, sweep__grid__c="[]", sweep__metric="m"))
    line, star = factor_charts(points, 0)[0].data
    assert line["x"] == ["0.1", "0.5"]
    assert (star["x"], star["mode"]) == (["diagonal"], "markers")


def test_text_of_runs_is_no_markup_in_a_chart() -> None:
    hostile = "<a href='https://x'>&amp;"
    children = [child("evaluation", {"variant": v}, {"m": 1.0}) for v in (hostile, "b")]
    points = read_points(study(*children, sweep__metric="m"))
    chart = factor_charts(points, 0)[0]
    assert "<a" not in json.dumps([chart.data[0]["text"], chart.layout["xaxis"]["ticktext"]])


def test_a_tile_of_a_thumbnail_is_the_tile_of_the_picture() -> None:
    raw = tiles_png(lambda i: tile_grey(0.5, 2.0, i))
    small = thumbnail(raw, TILE, Size(rows=2, tile=24, whole=100))
    assert small.tiling == (10, 2)
    assert small.of == (10, 8)
    pixels = np.asarray(Image.open(io.BytesIO(small.data)).convert("L")).astype(int)
    high, wide = pixels.shape[0] / 2, pixels.shape[1] / 10
    assert (round(wide), round(high)) == (24, 24)
    for row, column in itertools.product(range(2), range(10)):
        centre = pixels[int((row + 0.5) * high), int((column + 0.5) * wide)]
        assert abs(centre - tile_grey(0.5, 2.0, 10 * row + column)) <= 4


def test_pictures_that_are_no_tiles_are_kept_whole_and_broken_ones_refused() -> None:
    assert tiling_of((342, 274), 32) == (10, 8)
    assert tiling_of((341, 274), 32) == tiling_of((342, 274), None) == (1, 1)
    packed = io.BytesIO()
    Image.new("RGBA", (900, 300)).save(packed, "PNG")
    small = thumbnail(packed.getvalue(), 32, Size(2, 24, 300))
    assert (small.width, small.height, small.tiling) == (300, 100, (1, 1))
    with pytest.raises(ValueError, match="cannot be read"):
        thumbnail(b"no picture", 32, Size(2, 24, 300))
    with pytest.raises(ValueError, match="cannot be read"):
        thumbnail(tiles_png(lambda i: i).replace(b"IDAT", b"I\xffAT"), 32, Size(2, 24, 300))
    assert within_budget([4, 4, 4], budget=9) == 2


def test_a_spectrogram_is_brightest_at_the_tone() -> None:
    rate, hertz = 24_000, 3000.0
    picture = Image.open(io.BytesIO(spectrogram(read_sound(sine_wav(hertz, rate=rate)))))
    level = np.asarray(picture.convert("L")).mean(axis=1)
    height = len(level)
    from_below = height - 1 - int(level.argmax())
    assert from_below / height == pytest.approx(hertz / (rate / 2), abs=0.03)
    with pytest.raises(ValueError, match="no WAV"):
        read_sound(b"RIFF")
    good = sine_wav(hertz, rate=rate)
    for part, value in ((slice(16, 20), b"\xff\xff\xff\x7f"), (slice(24, 28), bytes(4))):
        harmed = bytearray(good)
        harmed[part] = value  # the size of the format, the rate
        with pytest.raises(ValueError, match="the sound"):
            read_sound(bytes(harmed))


def test_metrics_know_their_direction_and_numbers_their_digits() -> None:
    assert better("frechet_efficientnet_lite0") == better("wer_c") == "min"
    assert better("generated_accuracy") == "max"
    assert better("generated_accuracy", "min") == "min"
    assert main_metric({"frechet_x_floor", "frechet_x", "loss"}) == "frechet_x"
    assert main_metric({"learning_rate"}) is None
    given = (0.95, 0.0123456, 1373.57, 0.0, math.inf, math.nan, None, 123456.7)
    shown = ["0.950", "0.01235", "1,374", "0.000", "not finite", "not finite", "–", "123,457"]
    assert [shown_number(v) for v in given] == shown
