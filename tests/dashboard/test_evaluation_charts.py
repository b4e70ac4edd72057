from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dashboard.charts.curves import excess_chart, locate, refine
from dashboard.charts.evaluations import (
    draw_evaluations,
    evaluation_points,
    excess_by_position,
    excess_law,
    law_words,
    loss_by_position,
    probe_chart,
)
from dashboard.figure import Axis
from dashboard.fits import Point
from nanollama.api.schemas import ByPosition, Metrics, Series
from tests.support.fake_client import evaluation, learning, series

STEP = Axis("step", log=True, end=1000)
TOKENS = Axis("tokens", log=True, end=4_032_000)


def named(figure: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {t["name"]: t for t in figure["data"] if "name" in t}


def points(alpha: float = 0.5, error: float = 0.01) -> list[Point]:
    return [Point(float(x), 2 * x**-alpha, error * 2 * x**-alpha) for x in (10, 20, 50, 100, 200, 500, 1000)]


def test_the_law_of_exact_points_is_theirs_and_its_floor_is_zero() -> None:
    law = excess_law(points())
    assert law is not None
    assert law.exponent == pytest.approx(0.5)
    assert law.low <= 0.5 <= law.high
    assert law.at(1e12) == pytest.approx(2e-6)
    words = law_words(law, points(), "tokens")
    assert words.startswith("dotted: power law in tokens, α = 0.50 (95 %: ")
    assert words.endswith("points, floor zero)")


def test_too_few_evaluations_say_how_many_more_a_law_needs() -> None:
    few = points()[:3]
    assert excess_law(few) is None
    assert law_words(None, few, "step") == "a power law needs 1 evaluation more"
    assert law_words(None, [], "step") == ""


def test_evaluations_lie_at_their_steps_with_errors_and_the_law_to_the_planned_end() -> None:
    m = Metrics(run_id="r", keys=["excess"], series=learning(600))
    found = [evaluation(step) for step in (50, 100, 200, 300, 400, 600)]
    for axis, scale in ((STEP, 1), (TOKENS, 4032)):
        chart = excess_chart(m, axis)
        places = [locate(axis, m.series["excess"], e.step) for e in found]
        marks = evaluation_points(found, places)
        draw_evaluations(chart.figure, axis, marks, excess_law(marks))
        drawn = named(chart.figure)
        assert drawn["evaluations"]["x"] == [e.step * scale for e in found]
        assert drawn["evaluations"]["y"] == pytest.approx([e.excess for e in found], rel=1e-5)
        assert drawn["evaluations"]["error_y"]["array"] == pytest.approx([e.excess_stderr for e in found], rel=1e-5)
        assert drawn["evaluations"]["customdata"][0].startswith("evaluation ")
        assert drawn["power law"]["x"][1] == axis.end
        json.dumps(chart.figure, allow_nan=False)


def test_an_evaluation_without_excess_or_at_the_bound_has_no_mark_on_a_log_axis() -> None:
    none, zero = evaluation(10).model_copy(update={"excess": None}), evaluation(20).model_copy(update={"excess": -0.01})
    marks = evaluation_points([none, zero, evaluation(30)], [10.0, 20.0, 30.0])
    assert [p.x for p in marks] == [20.0, 30.0]
    figure = excess_chart(Metrics(run_id="r", keys=[], series={}), STEP).figure
    draw_evaluations(figure, STEP, marks, None)
    assert named(figure)["evaluations"]["x"] == [30.0]


def test_curves_by_position_have_bands_and_labels_that_do_not_touch() -> None:
    found = evaluation(100).by_position
    assert found is not None
    figure = excess_by_position(found).figure
    assert set(named(figure)) == {"excess", "KL"}
    bands = [t for t in figure["data"] if t.get("fill") == "toself"]
    assert len(bands) == 1, "the KL came without errors"
    assert max(bands[0]["y"]) == pytest.approx(1.1 * found.excess[0], rel=1e-5)
    assert figure["layout"]["xaxis"]["type"] == "log"
    low, high = sorted(figure["layout"]["annotations"], key=lambda note: note["y"])
    assert [low["text"], high["text"]] == ["KL", "excess"]
    assert high["yshift"] - low["yshift"] > 5
    assert low["x"] == pytest.approx(math.log10(40))
    assert "excess 0." in excess_by_position(found).alt


def test_few_positions_are_drawn_on_a_plain_axis() -> None:
    found = ByPosition(positions=[1, 2, 3], loss=[2.0, None, 1.5], bound=[])
    chart = loss_by_position(found)
    assert chart.figure["layout"]["xaxis"].get("type") != "log"
    assert named(chart.figure)["loss"]["y"] == [2.0, None, 1.5]
    assert "bound" not in named(chart.figure)
    assert chart.alt == "Loss and bound by position in the sequence: loss 1.5000 at position 3"


def test_probes_are_drawn_by_layer_and_their_names_are_text() -> None:
    chart = probe_chart({"layer0/<b>Z</b>": 0.2, "layer2/<b>Z</b>": 0.9, "layer1/<b>Z</b>": 0.5, "layer1/C": None})
    (line,) = chart.figure["data"]
    assert (line["x"], line["y"]) == ([0, 1, 2], [0.2, 0.5, 0.9])
    assert chart.figure["layout"]["annotations"][0]["text"] == "&lt;b&gt;Z&lt;/b&gt;"
    assert "&lt;b&gt;" in line["hovertemplate"]
    assert chart.figure["layout"]["xaxis"]["ticktext"] == ["embedding", "1", "2"]


def test_more_latents_than_hues_are_told_apart_by_dashes() -> None:
    lines = probe_chart({f"layer{i}/Z{k}": 0.1 * k for i in (0, 1) for k in range(8)}).figure["data"]
    looks = {(line["line"]["color"], line["line"]["dash"]) for line in lines}
    assert len(looks) == len(lines) == 8


@pytest.mark.parametrize("probes", [{}, {"odd": 1.0}, {"layerx/Z": 1.0}, {"layer1/Z": math.nan}])
def test_probes_that_are_none_draw_nothing(probes: dict[str, float | None]) -> None:
    assert probe_chart(probes).figure["data"] == []


def test_a_window_is_refined_and_the_rest_stays() -> None:
    coarse, fine = series([1, 10, 20, 30], [4.0, 3.0, 2.0, 1.0]), series([10, 12, 14, 20], [3.0, 2.8, 2.6, 2.0])
    merged = refine(coarse, fine)
    assert merged.step == [1, 10, 12, 14, 20, 30]
    assert merged.value == [4.0, 3.0, 2.8, 2.6, 2.0, 1.0]
    assert merged.tokens == [s * 4032 for s in merged.step]
    assert merged.summary == coarse.summary
    assert refine(coarse, series([], [])) == coarse


STEPS = st.lists(st.integers(1, 1000), max_size=30, unique=True).map(sorted)


@given(STEPS, STEPS)
def test_a_refined_series_is_in_order_and_has_every_finer_point(coarse: list[int], fine: list[int]) -> None:
    merged: Series = refine(series(coarse, [0.0] * len(coarse)), series(fine, [1.0] * len(fine)))
    assert merged.step == sorted(set(merged.step))
    assert set(fine) <= set(merged.step) <= set(fine) | set(coarse)


NUMBERS = st.lists(st.one_of(st.none(), st.floats(-10, 10)), min_size=1, max_size=30)


@settings(deadline=None)
@given(NUMBERS)
def test_any_curve_by_position_makes_a_figure_that_is_json(values: list[float | None]) -> None:
    found = ByPosition(positions=list(range(1, len(values) + 1)), excess=values, excess_stderr=values, loss=values)
    for chart in (excess_by_position(found), loss_by_position(found)):
        json.dumps(chart.figure, allow_nan=False)
        assert chart.alt
