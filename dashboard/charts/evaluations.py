"""Figures of evaluations on held-out sequences: excess with its power law, curves by position, probes by layer."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

from dashboard.charts.curves import LINE, Chart
from dashboard.figure import Axis, frame
from dashboard.fits import LEAST, Point, PowerLaw, fit, late
from dashboard.wording import mnat, number, plural
from nanollama.api.schemas import Evaluation
from nanollama.api.schemas.checkpoints import ByPosition

HEIGHT = 230
LABEL_GAP = 15.0  # pixels between two labels at the ends of lines
HUES = 6
DASHES = ("solid", "dash", "dot")
LOG_POSITIONS = 24  # predicted positions from which on they are drawn on a log axis


def evaluation_points(evaluations: Sequence[Evaluation], xs: Sequence[float | None]) -> list[Point]:
    """Excess of evaluations at their places on the horizontal axis; those without an excess or a place are left out."""
    return [
        Point(x, e.excess, e.excess_stderr)
        for e, x in zip(evaluations, xs, strict=True)
        if x is not None and e.excess is not None and math.isfinite(e.excess)
    ]


def excess_law(points: Sequence[Point]) -> PowerLaw | None:
    """The power law of evaluations once the start is behind them. Its floor is zero, because the bound is known."""
    return fit(late(points)) or fit(points)


def law_words(law: PowerLaw | None, points: Sequence[Point], unit: str) -> str:
    """What is fitted, and how well it is known."""
    if law is None:
        missing = LEAST - len(points)
        if not points or missing <= 0:
            return ""
        return f"a power law needs {plural(missing, 'evaluation')} more"
    interval = f"95 %: {number(law.low, 2)} to {number(law.high, 2)}" if math.isfinite(law.low) else "no interval"
    return (
        f"dotted: power law in {unit}, α = {number(law.exponent, 2)} ({interval}; {law.num_points} points, floor zero)"
    )


def draw_evaluations(figure: dict[str, Any], axis: Axis, points: Sequence[Point], law: PowerLaw | None) -> None:
    """Put evaluations and their power law into a figure with log axes."""
    shown = [p for p in points if p.x > 0 and p.y > 0]
    if law is not None:
        end = max(law.end, axis.end or 0)
        figure["data"].append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "power law",
                "x": [law.start, end],
                "y": [_short(law.at(law.start)), _short(law.at(end))],
                "line": {"color": "@c1", "width": 1.6, "dash": "2px,4px"},
                "hoverinfo": "skip",
            }
        )
    if shown:
        texts = [f"evaluation {mnat(p.y)}" + (f" ± {mnat(p.error)}" if p.error else "") + " mnat" for p in shown]
        figure["data"].append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "evaluations",
                "x": [p.x for p in shown],
                "y": [_short(p.y) for p in shown],
                "error_y": {
                    "type": "data",
                    "array": [_short(p.error or 0.0) for p in shown],
                    "color": "@c1",
                    "thickness": 1.2,
                    "width": 3,
                },
                "customdata": texts,
                "marker": {"symbol": "circle", "size": 6.5, "color": "@c1", "line": {"color": "@bg", "width": 1}},
                "cliponaxis": False,
                "hovertemplate": "%{customdata}<extra></extra>",
            }
        )


def excess_by_position(curves: ByPosition) -> Chart:
    """Excess and exact KL divergence at each position of the sequence, with their standard errors."""
    lines = [("excess", curves.excess, curves.excess_stderr), ("KL", curves.kl, curves.kl_stderr)]
    return _by_position(curves, lines, "nats/token", from_zero=True)


def loss_by_position(curves: ByPosition) -> Chart:
    """Loss and bound at each position: what could be known there, and what is."""
    lines = [("loss", curves.loss, curves.loss_stderr), ("bound", curves.bound, curves.bound_stderr)]
    return _by_position(curves, lines, "nats/token", from_zero=False)


def probe_chart(probes: dict[str, float | None]) -> Chart:
    """R² of the belief state of each latent by layer; keys are `layer<k>/<latent>`."""
    latents: dict[str, dict[int, float]] = {}
    for key, value in probes.items():
        layer, _, latent = key.partition("/")
        number_of = layer.removeprefix("layer")
        if value is not None and math.isfinite(value) and number_of.isdecimal() and len(number_of) < 6:
            latents.setdefault(latent, {})[int(number_of)] = value
    figure = _small_frame("layer", "R²")
    layers = sorted({layer for found in latents.values() for layer in found})
    figure["layout"]["xaxis"].update(
        tickvals=layers, ticktext=["embedding" if layer == 0 else str(layer) for layer in layers], tickangle=0
    )
    if len(layers) > 8:
        figure["layout"]["xaxis"].update(tickvals=layers[:: math.ceil(len(layers) / 8)], ticktext=None)
    figure["layout"]["yaxis"]["rangemode"] = "tozero"
    ends = []
    for i, (latent, found) in enumerate(latents.items()):
        xs = sorted(found)
        figure["data"].append(_line(latent, xs, [_short(found[x]) for x in xs], i, markers=True))
        ends.append((xs[-1], found[xs[-1]], html.escape(latent[:24]), i))
    _label(figure, ends)
    alt = "R² of the belief state by layer: " + ", ".join(
        f"{latent[:40]} {number(max(found.values()), 2)} at best" for latent, found in latents.items()
    )
    return Chart(figure, alt)


def _by_position(
    curves: ByPosition,
    lines: Sequence[tuple[str, list[float | None], list[float | None]]],
    y_title: str,
    *,
    from_zero: bool,
) -> Chart:
    figure = _small_frame("position", y_title)
    if len(curves.positions) >= LOG_POSITIONS:
        figure["layout"]["xaxis"].update(type="log", tickformat="~s", tickangle=0, nticks=6)
    if from_zero:
        figure["layout"]["yaxis"]["rangemode"] = "tozero"
    ends, said = [], []
    for i, (name, ys, errors) in enumerate(lines):
        if not any(y is not None for y in ys):
            continue
        xs = curves.positions
        band = _band(xs, ys, errors, i)
        if band:
            figure["data"].append(band)
        figure["data"].append(_line(name, xs, [None if y is None else _short(y) for y in ys], i))
        last = max(j for j, y in enumerate(ys) if y is not None)
        end = ys[last]
        if end is not None:
            ends.append((xs[last], end, name, i))
            said.append(f"{name} {number(end)} at position {xs[last]}")
    _label(figure, ends, log_x=figure["layout"]["xaxis"].get("type") == "log")
    alt = f"{' and '.join(name for name, _, _ in lines)} by position in the sequence: {', '.join(said) or 'no values'}"
    return Chart(figure, alt[:1].upper() + alt[1:])


def _small_frame(x_title: str, y_title: str) -> dict[str, Any]:
    figure = frame(Axis("step", log=False, end=None), height=HEIGHT, y_title=y_title)
    x = figure["layout"]["xaxis"]
    x["title"]["text"] = x_title
    x["unifiedhovertitle"] = {"text": f"{x_title} %{{x}}"}
    figure["layout"]["uirevision"] = x_title
    figure["layout"]["margin"].update(r=64, b=38)
    return figure


def _line(
    name: str, xs: Sequence[float], ys: Sequence[float | None], i: int, *, markers: bool = False
) -> dict[str, Any]:
    line = {"color": f"@c{i % HUES}", "width": LINE, "dash": DASHES[min(i // HUES, len(DASHES) - 1)]}
    return {
        "type": "scatter",
        "mode": "lines+markers" if markers or len(xs) == 1 else "lines",
        "name": name,
        "x": list(xs),
        "y": list(ys),
        "line": line,
        "marker": {"color": f"@c{i % HUES}", "size": 6},
        "hovertemplate": f"{html.escape(name[:40])} %{{y:.4f}}<extra></extra>",
    }


def _band(
    xs: Sequence[float], ys: Sequence[float | None], errors: Sequence[float | None], i: int
) -> dict[str, Any] | None:
    """The area within one standard error, as one closed outline."""
    points = [(x, y, e) for x, y, e in zip(xs, ys, errors, strict=False) if y is not None and e is not None]
    if len(points) < 2:
        return None
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [x for x, _, _ in points] + [x for x, _, _ in reversed(points)],
        "y": [_short(y + e) for _, y, e in points] + [_short(y - e) for _, y, e in reversed(points)],
        "fill": "toself",
        "fillcolor": f"@c{i % HUES}:0.16",
        "line": {"width": 0, "color": f"@c{i % HUES}"},
        "hoverinfo": "skip",
    }


def _label(figure: dict[str, Any], ends: Sequence[tuple[float, float, str, int]], *, log_x: bool = False) -> None:
    """Label lines at their ends; labels that would touch are pushed apart, as long as nobody zooms."""
    values = [y for trace in figure["data"] for y in trace["y"] if y is not None]
    if not values:
        return
    low = min(0.0, *values) if figure["layout"]["yaxis"].get("rangemode") == "tozero" else min(values)
    span = max(values) - low
    scale = 0.9 * (HEIGHT - 48) / span if span > 1e-12 else 0.0
    wanted = sorted(ends, key=lambda end: end[1])
    places: list[float] = []
    for _, y, _, _ in wanted:
        place = (y - low) * scale
        places.append(max(place, places[-1] + LABEL_GAP) if places else place)
    for (x, y, text, i), place in zip(wanted, places, strict=True):
        figure["layout"]["annotations"].append(
            {
                "name": "end-label",
                "text": text,
                "x": math.log10(x) if log_x else x,
                "y": y,
                "xanchor": "left",
                "xshift": 8,
                "yanchor": "middle",
                "yshift": place - (y - low) * scale,
                "showarrow": False,
                "font": {"color": f"@t{i % HUES}", "size": 12},
            }
        )


def _short(value: float) -> float:
    return float(f"{value:.6g}")
