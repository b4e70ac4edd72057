from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dashboard.charts.curves import entropy_label, excess_chart, loss_chart, small_chart
from dashboard.figure import Axis
from nanollama.api.schemas import Metrics, Series
from tests.support.fake_client import ENTROPY, checkpoint, learning, series

STEP = Axis("step", log=False, end=1000)
LOG_STEP = Axis("step", log=True, end=1000)
TOKENS = Axis("tokens", log=False, end=4_032_000)


def metrics(curves: dict[str, Series]) -> Metrics:
    return Metrics(run_id="r", keys=sorted(curves), series=curves)


def traces(figure: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {t["name"]: t for t in figure["data"] if "name" in t}


def labels(figure: dict[str, Any]) -> list[str]:
    return [a["text"] for a in figure["layout"]["annotations"]]


def test_the_noise_free_view_is_the_entropy_plus_the_paired_excess() -> None:
    m = metrics(learning(600))
    summary = m.series["bound"].summary
    assert summary is not None
    curve = traces(loss_chart(m, STEP).figure)["loss"]
    assert curve["y"] == pytest.approx([summary.mean + e for e in m.series["excess"].value], rel=1e-6)
    assert curve["x"] == m.series["loss"].step


def test_the_raw_view_is_the_loss_as_it_was_logged() -> None:
    m = metrics(learning(600))
    curve = traces(loss_chart(m, TOKENS, raw=True).figure)["loss"]
    assert curve["y"] == pytest.approx(m.series["loss"].value, rel=1e-6)
    assert curve["x"] == m.series["loss"].tokens


@pytest.mark.parametrize("raw", [False, True])
def test_the_bound_is_dashed_and_labelled_with_its_value(raw: bool) -> None:
    m = metrics({**learning(600), "bound": series([1, 10], [ENTROPY, ENTROPY])})
    chart = loss_chart(m, STEP, raw=raw)
    (bound,) = chart.figure["layout"]["shapes"]
    assert bound["y0"] == bound["y1"] == ENTROPY
    assert bound["line"]["dash"] == "6px,4px"
    assert (bound["xref"], bound["x0"], bound["x1"]) == ("paper", 0, 1)
    assert "H = 1.9184" in labels(chart.figure)
    assert "1.9184, dashed" in chart.alt


def test_without_a_bound_none_is_drawn() -> None:
    m = metrics(learning(600, bound=False))
    chart = loss_chart(m, STEP)
    assert chart.figure["layout"]["shapes"] == []
    assert not [text for text in labels(chart.figure) if text.startswith("H")]
    assert "fill" not in traces(chart.figure)["loss"]
    assert entropy_label(m) is None
    assert excess_chart(m, STEP).figure["data"] == []


def test_the_entropy_is_told_with_its_standard_error() -> None:
    m = metrics({"bound": series([1, 2, 3], [1.0, 2.0, 3.0])})
    assert entropy_label(m) == "H = 2.0000 ± 0.5774, mean of 3 batches"
    assert entropy_label(metrics({"bound": series([1], [1.0])})) == "H = 1.0000"


@pytest.mark.parametrize("axis", [STEP, LOG_STEP, TOKENS])
@pytest.mark.parametrize("chart", [loss_chart, excess_chart])
def test_checkpoints_lie_on_the_curve(axis: Axis, chart: Any) -> None:
    m = metrics(learning(600))
    figure = chart(m, axis, [checkpoint(100), checkpoint(253)]).figure
    marks, curve = traces(figure)["checkpoints"], traces(figure)["loss" if chart is loss_chart else "excess"]
    scale = 4032 if axis.kind == "tokens" else 1
    assert marks["x"] == [100 * scale, 253 * scale]
    points = dict(zip(curve["x"], curve["y"], strict=True))
    assert marks["y"][0] == points[100 * scale]
    low, high = sorted([points[250 * scale], points[260 * scale]])
    assert low <= marks["y"][1] <= high


def test_checkpoints_tell_step_path_and_size_as_text_and_leave_when_removed() -> None:
    saved = [checkpoint(100, "/runs/<b>bold</b>/0000000100"), checkpoint(200, removed=True)]
    marks = traces(loss_chart(metrics(learning(600)), STEP, saved).figure)["checkpoints"]
    assert marks["customdata"] == ["checkpoint at step 100 · 1.23 MB<br>/runs/&lt;b&gt;bold&lt;/b&gt;/0000000100"]
    assert "checkpoints" not in traces(loss_chart(metrics(learning(600)), STEP, saved[1:]).figure)


def test_a_checkpoint_after_the_last_metric_line_stays_level_with_it() -> None:
    figure = loss_chart(metrics(learning(600)), STEP, [checkpoint(605)]).figure
    marks, curve = traces(figure)["checkpoints"], traces(figure)["loss"]
    assert (marks["x"], marks["y"]) == ([605], [curve["y"][-1]])


def test_a_ring_marks_the_end_of_a_running_run_only() -> None:
    m = metrics(learning(600))
    figure = loss_chart(m, STEP, running=True).figure
    curve = traces(figure)["loss"]
    ring = traces(figure)["now"]
    assert (ring["x"], ring["y"]) == ([600], [curve["y"][-1]])
    assert "now" not in traces(loss_chart(m, STEP).figure)


@pytest.mark.parametrize(("axis", "x"), [(STEP, 600), (LOG_STEP, math.log10(600))])
def test_the_label_at_the_end_is_anchored_to_the_last_point(axis: Axis, x: float) -> None:
    chart = loss_chart(metrics(learning(600)), axis)
    label = next(a for a in chart.figure["layout"]["annotations"] if a["text"].startswith("loss"))
    assert label["x"] == pytest.approx(x)
    assert label["y"] == traces(chart.figure)["loss"]["y"][-1]
    assert "xref" not in label


def test_labels_that_would_touch_give_way() -> None:
    near = metrics(
        {
            "loss": series([1, 9], [4.0, 2.01]),
            "bound": series([1, 9], [2.0, 2.0]),
            "excess": series([1, 9], [2.0, 0.01]),
        }
    )
    far = metrics(
        {"loss": series([1, 9], [4.0, 3.0]), "bound": series([1, 9], [2.0, 2.0]), "excess": series([1, 9], [2.0, 1.0])}
    )

    def distance(m: Metrics) -> float:
        bound, loss = loss_chart(m, STEP).figure["layout"]["annotations"]
        return float(loss["yshift"] - bound["yshift"])

    assert distance(near) > distance(far) + 10


def test_what_a_log_axis_cannot_show_is_counted() -> None:
    chart = excess_chart(metrics({"excess": series([1, 10, 20, 30], [0.5, -0.001, 0.0, 0.1])}), STEP)
    assert traces(chart.figure)["excess"]["y"] == [0.5, None, None, 0.1]
    assert chart.notes == ["2 points not drawn: zero or below has no place on a log axis"]
    assert chart.figure["layout"]["yaxis"]["type"] == chart.figure["layout"]["xaxis"]["type"] == "log"


def test_step_zero_has_no_place_on_a_log_axis() -> None:
    m = metrics({"loss": series([0, 10], [2.0, 1.0])})
    assert traces(loss_chart(m, LOG_STEP).figure)["loss"]["x"] == [10]
    assert traces(loss_chart(m, STEP).figure)["loss"]["x"] == [0, 10]


def test_a_loss_that_is_not_finite_leaves_a_gap_and_a_note() -> None:
    m = metrics({"loss": series([1, 2, 3, 4], [2.0, math.nan, math.inf, 1.0])})
    chart = loss_chart(m, STEP)
    assert traces(chart.figure)["loss"]["y"] == [2.0, None, None, 1.0]
    assert chart.notes == ["2 points not drawn: NaN or infinite"]


def test_axis_ranges_do_not_move_between_ticks() -> None:
    for axis in (STEP, LOG_STEP):
        early = loss_chart(metrics(learning(200)), axis).figure["layout"]
        late = loss_chart(metrics(learning(900)), axis).figure["layout"]
        assert early["xaxis"]["range"] == late["xaxis"]["range"]
        assert "range" not in early["yaxis"]
        assert early["uirevision"] == late["uirevision"]
    assert (
        loss_chart(metrics(learning(200)), STEP).figure["layout"]["uirevision"]
        != (loss_chart(metrics(learning(200)), LOG_STEP).figure["layout"]["uirevision"])
    )


def test_small_charts_show_one_metric() -> None:
    m = metrics(learning(600))
    chart = small_chart(m, STEP, "lr", "Learning rate")
    assert traces(chart.figure)["Learning rate"]["y"] == pytest.approx(m.series["lr"].value)
    assert chart.figure["layout"]["height"] < loss_chart(m, STEP).figure["layout"]["height"]
    assert labels(chart.figure) == ["0.0003"]


@pytest.mark.parametrize("axis", [STEP, LOG_STEP, TOKENS, Axis("tokens", log=True, end=None)])
def test_charts_of_nothing_are_empty(axis: Axis) -> None:
    for curves in ({}, {"loss": series([], []), "bound": series([], []), "excess": series([], [])}):
        m = metrics(curves)
        for chart in (loss_chart(m, axis), excess_chart(m, axis), small_chart(m, axis, "lr", "Learning rate")):
            assert chart.figure["data"] == []
            assert chart.alt


VALUES = st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=20)


@settings(deadline=None)
@given(VALUES, st.booleans(), st.sampled_from(["step", "tokens"]), st.booleans(), st.integers(0, 30))
def test_any_numbers_make_a_figure_that_is_json(values: list[float], log: bool, kind: Any, raw: bool, at: int) -> None:
    steps = list(range(len(values)))
    m = metrics(
        {key: series(steps, values) for key in ("loss", "excess", "lr")} | {"bound": series(steps, [1.0] * len(steps))}
    )
    axis = Axis(kind, log, float(len(values)))
    for chart in (
        loss_chart(m, axis, [checkpoint(at)], raw=raw, running=True),
        excess_chart(m, axis, [checkpoint(at)], running=True),
        small_chart(m, axis, "lr", "Learning rate"),
    ):
        json.dumps(chart.figure, allow_nan=False)
