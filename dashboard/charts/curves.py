"""Figures for Plotly as plain dicts: pure functions from series to figures, without Streamlit.

Colours are tokens such as "@series" or "@bound:0.07" (with an opacity); the browser resolves them for its theme.
Axis ranges depend only on the run's plan, never on its progress: a live tick leaves a zoomed view where it is.
"""

from __future__ import annotations

import html
import json
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dashboard.figure import Axis, draw_bound, frame, label_end, minor_ticks
from dashboard.wording import mnat, number, plural, si, size
from nanollama.api.schemas import Checkpoint, Metrics, Series

LINE = 1.8
LABEL_GAP = 16.0  # pixels between two labels
BIG, SMALL = 330, 150  # heights in pixels


@dataclass(frozen=True)
class Chart:
    """A figure, what it shows in a sentence, and what could not be drawn, in words."""

    figure: dict[str, Any]
    alt: str
    notes: list[str] = field(default_factory=list)

    @cached_property
    def text(self) -> str:
        """The figure as JSON, made once however many viewers it is sent to; complete by the time it is first read."""
        return json.dumps(self.figure, separators=(",", ":"))


@dataclass(frozen=True)
class _Curve:
    x: list[float]
    y: list[float | None]
    not_finite: int = 0
    not_positive: int = 0

    @property
    def end(self) -> tuple[float, float] | None:
        """The last point that can be drawn."""
        return next(((x, y) for x, y in zip(reversed(self.x), reversed(self.y), strict=True) if y is not None), None)

    def notes(self) -> list[str]:
        """What was left out."""
        notes = []
        if self.not_finite:
            notes.append(f"{plural(self.not_finite, 'point')} not drawn: NaN or infinite")
        if self.not_positive:
            notes.append(f"{plural(self.not_positive, 'point')} not drawn: zero or below has no place on a log axis")
        return notes


def loss_chart(
    metrics: Metrics,
    axis: Axis,
    checkpoints: Sequence[Checkpoint] = (),
    *,
    raw: bool = False,
    running: bool = False,
    chosen: int | None = None,
) -> Chart:
    """Loss against the bound, in nats per token.

    Args:
        metrics: with `loss` and, when the data has an exact bound, `bound` and `excess`.
        axis: the horizontal axis.
        checkpoints: marked on the curve.
        raw: draw the loss of each batch, rather than the entropy plus the paired excess, which is free of the noise
            that loss and bound of a batch share.
        running: put a ring on the end of the curve.
        chosen: step of the checkpoint whose mark is filled.
    """
    entropy = _entropy(metrics)
    paired = metrics.series.get("excess")
    if entropy is None or paired is None or raw:
        source, offset = metrics.series.get("loss"), 0.0
    else:
        source, offset = paired, entropy
    figure = frame(axis, height=BIG, y_title="loss, nats/token")
    if source is None or not source.value:
        return Chart(figure, "no loss yet")
    curve = _curve(axis, source, offset=offset)
    end = curve.end
    if entropy is not None and curve.x:
        figure["data"].append(_floor(curve.x[0], curve.x[-1], entropy))
    _span(figure, axis, curve)
    line = _line(curve, "loss", fill=entropy is not None)
    figure["data"].append(line)
    _mark(figure, curve, axis, source, checkpoints, log_y=False, chosen=chosen)
    push = 0.0 if entropy is None else _push(curve, entropy)
    if entropy is not None:
        draw_bound(figure, entropy, push)
    alt = f"Loss against {axis.kind}"
    if end is not None:
        label_end(figure, end, f"loss {number(end[1])}", log_x=axis.log, log_y=False, ring=running, push=push)
        alt += f": {number(end[1])} nats per token at {axis.kind} {end[0]:,.0f}"
    if entropy is not None:
        alt += f"; the bound is {number(entropy)}, dashed"
    return Chart(figure, alt, curve.notes())


def excess_chart(
    metrics: Metrics,
    axis: Axis,
    checkpoints: Sequence[Checkpoint] = (),
    *,
    running: bool = False,
    chosen: int | None = None,
) -> Chart:
    """Excess of the loss over the bound, paired on the same tokens, on log-log axes whatever `axis.log` says."""
    axis = Axis(axis.kind, log=True, end=axis.end)
    figure = frame(axis, height=BIG, y_title="excess, nats/token")
    series = metrics.series.get("excess")
    if series is None or not series.value:
        return Chart(figure, "no excess yet")
    curve = _curve(axis, series, log_y=True)
    figure["layout"]["yaxis"].update(type="log", minor=minor_ticks(), tickformat="~g", nticks=3)
    _span(figure, axis, curve)
    figure["data"].append(_line(curve, "excess", digits=5))
    _mark(figure, curve, axis, series, checkpoints, log_y=True, chosen=chosen)
    alt = f"Excess against {axis.kind} on logarithmic axes"
    if curve.end is not None:
        label_end(figure, curve.end, f"{mnat(curve.end[1])} mnat", log_x=True, log_y=True, ring=running)
        alt += f": {mnat(curve.end[1])} thousandths of a nat per token at {axis.kind} {curve.end[0]:,.0f}"
    return Chart(figure, alt, curve.notes())


def small_chart(metrics: Metrics, axis: Axis, key: str, title: str, *, from_zero: bool = False) -> Chart:
    """A small chart of one metric."""
    figure = frame(axis, height=SMALL, y_title="")
    figure["layout"]["margin"].update(l=46, r=64, t=8, b=24)
    figure["layout"]["xaxis"]["title"] = {"text": ""}
    figure["layout"]["xaxis"]["nticks"] = 5
    figure["layout"]["yaxis"].update(nticks=4, exponentformat="power" if key == "lr" else "SI")
    if from_zero:
        figure["layout"]["yaxis"]["rangemode"] = "tozero"
    series = metrics.series.get(key)
    if series is None or not series.value:
        return Chart(figure, f"{title}: no values")
    curve = _curve(axis, series)
    _span(figure, axis, curve)
    line = _line(curve, title)
    line["line"]["width"] = 1.4
    line["hovertemplate"] = "%{y:.4~g}<extra></extra>"
    figure["data"].append(line)
    alt = f"{title} against {axis.kind}"
    if curve.end is not None:
        text = si(curve.end[1]) if abs(curve.end[1]) >= 1 else f"{curve.end[1]:.2g}"
        label_end(figure, curve.end, text, log_x=axis.log, log_y=False, ring=False)
        alt += f": {text} at the end"
    return Chart(figure, alt, curve.notes())


def entropy_label(metrics: Metrics) -> str | None:
    """The bound in words, with its standard error; None when the run has none."""
    entropy = _entropy(metrics)
    if entropy is None:
        return None
    summary = metrics.series["bound"].summary
    if summary is None or summary.stderr is None or not math.isfinite(summary.stderr):
        return f"H = {number(entropy)}"
    return f"H = {number(entropy)} ± {number(summary.stderr)}, mean of {summary.count:,} batches"


def _entropy(metrics: Metrics) -> float | None:
    """Mean of every bound that was logged: the entropy of the data per token, as far as it has been measured."""
    series = metrics.series.get("bound")
    if series is None or series.summary is None or not math.isfinite(series.summary.mean):
        return None
    return series.summary.mean


def _curve(axis: Axis, series: Series, *, offset: float = 0.0, log_y: bool = False) -> _Curve:
    """The points that can be drawn; what is not finite leaves a gap, and so does what a log axis cannot show."""
    xs: list[float] = []
    ys: list[float | None] = []
    not_finite = not_positive = 0
    for x, value in zip(axis.of(series), series.value, strict=True):
        if axis.log and x <= 0:
            not_positive += 1
            continue
        y: float | None = value + offset
        if not math.isfinite(value):
            y, not_finite = None, not_finite + 1
        elif log_y and value <= 0:
            y, not_positive = None, not_positive + 1
        xs.append(x)
        ys.append(None if y is None else float(f"{y:.7g}"))
    return _Curve(xs, ys, not_finite, not_positive)


def _line(curve: _Curve, name: str, *, fill: bool = False, digits: int = 4) -> dict[str, Any]:
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines" if sum(y is not None for y in curve.y) > 1 else "lines+markers",
        "name": name,
        "x": curve.x,
        "y": curve.y,
        "line": {"color": "@series", "width": LINE},
        "marker": {"color": "@series", "size": 5},
        "hovertemplate": f"{name} %{{y:.{digits}f}}<extra></extra>",
    }
    if fill:
        trace.update(fill="tonexty", fillcolor="@bound:0.07")
    return trace


def _floor(start: float, end: float, entropy: float) -> dict[str, Any]:
    """The invisible lower edge of the area between curve and bound."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [start, end],
        "y": [entropy, entropy],
        "line": {"width": 0, "color": "@bound"},
        "hoverinfo": "skip",
    }


def _mark(
    figure: dict[str, Any],
    curve: _Curve,
    axis: Axis,
    series: Series,
    checkpoints: Sequence[Checkpoint],
    *,
    log_y: bool,
    chosen: int | None,
) -> None:
    """Put the checkpoints that still exist on the curve."""
    xs: list[float] = []
    ys: list[float] = []
    texts: list[str] = []
    ids: list[str] = []
    for checkpoint in checkpoints:
        x = locate(axis, series, checkpoint.step)
        if checkpoint.removed or x is None or (axis.log and x <= 0):
            continue
        y = _between(curve.x, curve.y, x, log_x=axis.log, log_y=log_y)
        if y is None:
            continue
        xs.append(x)
        ys.append(y)
        ids.append(str(checkpoint.step))
        texts.append(_about(checkpoint))
    if xs:
        figure["data"].append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "checkpoints",
                "x": xs,
                "y": ys,
                "customdata": texts,
                "ids": ids,
                "marker": {
                    "symbol": "diamond",
                    "size": 10,
                    "color": ["@series" if each == str(chosen) else "@bg" for each in ids],
                    "line": {"color": "@series", "width": 1.8},
                },
                "cliponaxis": False,
                "hovertemplate": "%{customdata}<extra></extra>",
            }
        )


def _about(checkpoint: Checkpoint) -> str:
    """What the mark of a checkpoint says."""
    lines = [f"checkpoint at step {checkpoint.step:,} · {size(checkpoint.size_bytes)}"]
    if checkpoint.evaluation_loss is not None:
        excess = checkpoint.evaluation_excess
        over = f", excess {mnat(excess)} mnat" if excess is not None else ""
        lines.append(f"evaluation: loss {number(checkpoint.evaluation_loss)}{over}")
    path = checkpoint.path if len(checkpoint.path) <= 90 else "…" + checkpoint.path[-89:]
    return "<br>".join([*lines, html.escape(path)])


def locate(axis: Axis, series: Series, step: int) -> float | None:
    """Where a step is on the horizontal axis, as far as the points of a series tell; None without any."""
    if axis.kind == "step":
        return float(step)
    return _between([float(s) for s in series.step], axis.of(series), float(step))


def refine(coarse: Series, fine: Series) -> Series:
    """A series with the points of a finer one in place of its own where that one reaches; the summary stays."""
    if not fine.step:
        return coarse
    first, last = fine.step[0], fine.step[-1]
    before = bisect_left(coarse.step, first)
    after = bisect_left(coarse.step, last + 1)
    columns = {
        name: [*getattr(coarse, name)[:before], *getattr(fine, name), *getattr(coarse, name)[after:]]
        for name in ("step", "tokens", "time", "value")
    }
    return coarse.model_copy(update=columns)


def _between(
    xs: Sequence[float], ys: Sequence[float | None], x: float, *, log_x: bool = False, log_y: bool = False
) -> float | None:
    """Where the drawn polyline through the points is at x; beyond its ends, the value of the nearest end."""
    points = [(a, b) for a, b in zip(xs, ys, strict=True) if b is not None]
    if not points:
        return None
    i = bisect_left([a for a, _ in points], x)
    if i == 0:
        return points[0][1]
    if i == len(points):
        return points[-1][1]
    (x0, y0), (x1, y1) = points[i - 1], points[i]
    if x1 == x0:
        return y1
    share = math.log(x / x0) / math.log(x1 / x0) if log_x else (x - x0) / (x1 - x0)
    return float(y0 * (y1 / y0) ** share) if log_y else y0 + (y1 - y0) * share


def _span(figure: dict[str, Any], axis: Axis, curve: _Curve) -> None:
    """Let the horizontal axis run from the start to the planned end of the run, however far the run is."""
    if not axis.end:
        return
    if not axis.log:
        figure["layout"]["xaxis"]["range"] = [0, axis.end]
    elif curve.x and curve.x[0] < axis.end:
        figure["layout"]["xaxis"]["range"] = [math.log10(curve.x[0]), math.log10(axis.end)]


def _push(curve: _Curve, entropy: float) -> float:
    """Pixels by which the labels of curve and bound must each give way to stay apart, unless somebody zooms."""
    drawn = [y for y in curve.y if y is not None]
    if not drawn or curve.end is None:
        return 0.0
    span = max(*drawn, entropy) - min(*drawn, entropy)
    pixels = abs(curve.end[1] - entropy) / span * 0.85 * (BIG - 52) if span else 0.0
    return max(0.0, (LABEL_GAP - pixels) / 2)
