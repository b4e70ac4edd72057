"""Where training ended: excess against size, its power law, and who is not beaten."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dashboard.charts.compare import (
    Options,
    base_figure,
    listed,
    plain,
    style,
)
from dashboard.charts.curves import Chart
from dashboard.charts.tracks import short
from dashboard.comparison import Group
from dashboard.figure import minor_ticks
from dashboard.fits import Point, PowerLaw, fit
from dashboard.wording import number, plural, si

Size = Literal["parameters", "tokens", "flops", "sequences"]
SIZES: dict[Size, str] = {
    "parameters": "parameters",
    "tokens": "training tokens",
    "flops": "floating-point operations",
    "sequences": "training sequences",
}
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star", "hexagon", "triangle-down")
HEIGHT = 430
LEAST = 3
"""Groups of different size that are enough for a fit."""


@dataclass(frozen=True)
class Law:
    """The power law of groups that learn from the same data."""

    groups: tuple[Group, ...]
    law: PowerLaw


def scaling_chart(groups: Sequence[Group], size: Size, options: Options, laws: Sequence[Law] = ()) -> Chart:
    """Excess of each group against a size on log-log axes, with error bars, fits dotted, and the Pareto front.

    Points whose excess is not above zero cannot be drawn, and are named below.
    """
    figure = base_figure(Options(x="step", log=True, bits=options.bits), len(groups), f"excess, {options.unit}")
    layout = figure["layout"]
    layout["height"], layout["hovermode"] = HEIGHT, "closest"
    layout["xaxis"]["title"]["text"] = SIZES[size]
    layout["xaxis"]["hoverformat"] = ".4~s"
    layout["yaxis"].update(type="log", minor=minor_ticks(), tickformat="~g", nticks=5)
    layout["uirevision"] = f"scaling {size} {options.bits}"
    sizeless = [g.label for g in groups if g.excess is not None and g.size(size) is None]
    drawn = [g for g in groups if place(g, size) is not None]
    hidden = [g.label for g in groups if g.excess is not None and g.excess.value <= 0]
    if options.fit:
        for each in laws:
            figure["data"].extend(_law_traces(each, options))
    for front in fronts(drawn, size):
        figure["data"].append(_front_trace(front, options))
    for group in drawn:
        figure["data"].append(_mark(group, size, options))
    notes = []
    if hidden:
        notes.append(f"Not above zero, so without a place on this axis: {listed(hidden)}.")
    if sizeless:
        notes.append(f"Not known to have logged {SIZES[size]}: {listed(sizeless)}.")
    waiting = [g.label for g in groups if g.excess is None]
    if waiting:
        notes.append(f"No excess yet: {listed(waiting)}.")
    alt = f"Excess against {SIZES[size]} of {plural(len(drawn), 'group')} of runs on logarithmic axes"
    told = [f"the excess falls as {SIZES[size]} to the power of −{number(each.law.exponent, 3)}" for each in laws]
    return Chart(figure, "; ".join([alt, *told]), notes)


def scaling_laws(groups: Sequence[Group], size: Size) -> list[Law]:
    """The power law through the ends of groups, for each data that at least three of different size learn from."""
    found = []
    for worlds in dict.fromkeys(g.worlds for g in groups):
        same = tuple(g for g in groups if g.worlds == worlds and place(g, size) is not None)
        places = [place(g, size) for g in same]
        law = fit([Point(*at) for at in places if at is not None], least=LEAST)
        if law is not None:
            found.append(Law(same, law))
    return found


def place(group: Group, size: Size) -> tuple[float, float] | None:
    """Size and excess of a group, where both are above zero."""
    x, excess = group.size(size), group.excess
    if x is None or excess is None or not x > 0 or not excess.value > 0:
        return None
    return x, excess.value


def fronts(groups: Sequence[Group], size: Size) -> list[list[tuple[float, float]]]:
    """For each data the points that none of at most their size beats, from small to large."""
    found = []
    for worlds in dict.fromkeys(g.worlds for g in groups):
        points = sorted(at for g in groups if g.worlds == worlds and (at := place(g, size)) is not None)
        front: list[tuple[float, float]] = []
        for x, y in points:
            if not front or y < front[-1][1]:
                front.append((x, y))
        if len(points) > 1:
            found.append(front)
    return found


def law_words(law: PowerLaw) -> str:
    """The exponent with its interval."""
    if not math.isfinite(law.low) or not math.isfinite(law.high):
        return number(law.exponent, 3)
    return f"{number(law.exponent, 3)} [{number(law.low, 3)}, {number(law.high, 3)}]"


def _mark(group: Group, size: Size, options: Options) -> dict[str, Any]:
    at, excess = place(group, size), group.excess
    assert at is not None
    assert excess is not None
    color, text_color, _ = style(group.index)
    error = (excess.error or 0.0) * options.scale
    y = excess.value * options.scale
    spread = f" ± {error:.2g}" if error else ""
    name = plain(group.label, 60)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "legendgroup": group.key,
        "x": [short(at[0], 6)],
        "y": [short(y, 5)],
        # an error that reaches down to zero has no end on this axis
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [error],
            "arrayminus": [min(error, 0.9 * y)],
            "color": color,
            "thickness": 1.4,
            "width": 4,
            "visible": bool(error),
        },
        "marker": {
            "size": 12 if group.baseline else 9,
            "symbol": SYMBOLS[group.index // 6 % len(SYMBOLS)],
            "color": "@bg" if group.running else color,
            "line": {"color": color, "width": 2},
        },
        "meta": {"label": plain(group.label), "color": text_color, "strong": group.baseline},
        "cliponaxis": False,
        "hovertemplate": f"{name}<br>{si(at[0])} {size} · %{{y:.5~g}}{spread}"
        f"<br>{plural(len(group.entries), 'run')}<extra></extra>",
    }


def _law_traces(each: Law, options: Options) -> list[dict[str, Any]]:
    """The fit and, around it, the 95 % interval of the line."""
    law = each.law
    color = "@muted" if len(each.groups) > 1 else style(each.groups[0].index)[0]
    low, high = math.log(law.start), math.log(law.end)
    pad = 0.08 * (high - low)
    xs = [math.exp(low - pad + (high - low + 2 * pad) * i / 24) for i in range(25)]
    line: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines",
        "name": "fit",
        "x": [short(x, 6) for x in xs],
        "y": [short(law.at(x) * options.scale, 5) for x in xs],
        "line": {"color": color, "width": 1.4, "dash": "dot"},
        "meta": {"label": f"α = {number(law.exponent, 3)}", "color": color},
        "hoverinfo": "skip",
    }
    around = [law.interval(x) for x in xs]
    edges = [pair for pair in around if pair is not None and pair[1] / pair[0] < 1e3]
    if len(edges) < len(xs):
        return [line]
    ys = [*(high for _, high in edges), *(low for low, _ in reversed(edges))]
    band = {
        "type": "scatter",
        "mode": "lines",
        "name": "interval",
        "x": [short(x, 6) for x in (*xs, *reversed(xs))],
        "y": [short(y * options.scale, 4) for y in ys],
        "fill": "toself",
        "fillcolor": f"{color}:0.12",
        "line": {"width": 0, "color": color},
        "hoverinfo": "skip",
    }
    return [band, line]


def _front_trace(front: Sequence[tuple[float, float]], options: Options) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "Pareto front",
        "x": [short(x, 6) for x, _ in front],
        "y": [short(y * options.scale, 5) for _, y in front],
        "line": {"color": "@bound", "width": 1.2, "shape": "hv", "dash": "5px,3px"},
        "hoverinfo": "skip",
    }
