"""Curves of several groups of runs against their bounds: mean and band over seeds, fits, one label a group.

Six hues, then dashes: no run is ever left out for want of a colour.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dashboard.charts.curves import LINE, Chart
from dashboard.charts.tracks import Track, merge, positive, rescaled, short
from dashboard.comparison import Entry, Group, entropies
from dashboard.figure import DASHED, Axis, XKind, frame, minor_ticks
from dashboard.fits import LEAST, Point, PowerLaw, binned, fit, joint, late
from dashboard.wording import number, plural
from nanollama.api.schemas import Series

HUES = 6
DASHES = (
    "solid", "6px,3px", "2px,3px", "10px,3px,2px,3px", "14px,4px", "6px,2px,2px,2px,2px,2px", "4px,7px",
    "16px,3px,4px,3px", "1px,5px",
)  # fmt: skip
BASELINE_LINE, THIN = 2.4, 1.2
BAND, FAINT_BAND = 0.16, 0.08
HEIGHT, LABEL_ROOM, LABEL_CHARS = 330, 168, 26
UNIFIED = 8  # groups up to which one box tells the values of all
MARKED = 12  # groups up to which evaluations are marked on their curves
LN2 = math.log(2)


@dataclass(frozen=True)
class Options:
    """How curves are drawn: the axis, logarithmic or not, in bits or nats, with band, with fits, of the raw loss."""

    x: XKind = "step"
    log: bool = True
    bits: bool = False
    band: bool = True
    fit: bool = True
    raw: bool = False

    @property
    def unit(self) -> str:
        """Of loss and excess."""
        return "bits/token" if self.bits else "nats/token"

    @property
    def scale(self) -> float:
        """What a value in nats is multiplied by."""
        return 1 / LN2 if self.bits else 1.0


@dataclass(frozen=True)
class Fitted:
    """The power law of a group, and what it went through."""

    group: Group
    law: PowerLaw
    on: str


def style(index: int) -> tuple[str, str, str]:
    """Colour of the line, colour of its label, and dash of the group with this index."""
    hue = index % HUES
    return f"@c{hue}", f"@t{hue}", DASHES[index // HUES % len(DASHES)]


def plain(text: str, limit: int = LABEL_CHARS) -> str:
    """A name as Plotly shows it, cut, with nothing in it that Plotly would take for markup."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return html.escape(" ".join(cut.split()), quote=False).replace("%{", "%&#123;")


def loss_chart(groups: Sequence[Group], options: Options) -> Chart:
    """Loss against the bounds: the entropy of a group's data plus its paired excess, or the loss of each batch."""
    bounds = entropies(e for g in groups for e in g.entries)
    figure = base_figure(options, len(groups), f"loss, {options.unit}")
    silent: list[str] = []
    for group in groups:
        floor = mean_of(bounds[w] for w in group.worlds if w in bounds)
        curves = [loss_points(e, options, floor) for e in group.entries]
        silent += [e.run.name for e, (x, _) in zip(group.entries, curves, strict=True) if not x]
        draw_group(figure, group, merge(curves, log_x=options.log), options, log_y=False)
    _draw_bounds(figure, groups, bounds, options)
    alt = f"Loss against {options.x} of {plural(len(groups), 'group')} of runs"
    if bounds:
        alt += "; their bounds are dashed: " + ", ".join(
            number(h * options.scale) for h in sorted(set(bounds.values()))
        )
    return Chart(figure, alt, _missing("No points yet", silent))


def excess_chart(groups: Sequence[Group], options: Options, fits: Sequence[Fitted] = ()) -> Chart:
    """Excess over the bound, paired on the same tokens, with evaluations as marks and fits dotted."""
    figure = base_figure(options, len(groups), f"excess, {options.unit}")
    if options.log:
        figure["layout"]["yaxis"].update(type="log", minor=minor_ticks(), tickformat="~g", nticks=4)
    laws = {f.group.key: f.law for f in fits}
    bounded = [g for g in groups if any(e.curve is not None for e in g.entries)]
    below = 0
    silent: list[str] = []
    for group in bounded:
        track = merge([axis_points(e.curve, options) for e in group.entries if e.curve], log_x=options.log)
        track = rescaled(track, options.scale)
        if options.log:
            below += sum(y is not None and y <= 0 for y in track.mean)
            track = positive(track)
        law = laws.get(group.key)
        label = group.label
        if law is not None:  # a name that leaves no room for its exponent is better whole; the table has both
            with_exponent = f"{label} α={number(law.exponent, 2)}"
            label = with_exponent if len(with_exponent) <= LABEL_CHARS else label
        if not draw_group(figure, group, track, options, log_y=options.log, label=label):
            silent.append(group.label)
        if len(groups) <= MARKED:
            _draw_evaluations(figure, group, options)
    if options.fit:
        _draw_fits(figure, fits, options)
    notes = _missing("No points yet", silent)
    notes += _missing("No exact bound, so no excess", [g.label for g in groups if g not in bounded])
    if below:
        notes.append(f"{plural(below, 'point')} at or below zero cannot be drawn on a logarithmic axis.")
    alt = f"Excess over the bound against {options.x} of {plural(len(bounded) - len(silent), 'group')} of runs"
    ends = [f"{f.group.label} falls as {options.x}^-{number(f.law.exponent, 2)}" for f in fits[:HUES]]
    return Chart(figure, "; ".join([alt, *ends]), notes)


def fits_of(groups: Iterable[Group], options: Options) -> list[Fitted]:
    """The power law of each group with enough points: through its evaluations, else through means of its batches."""
    found = []
    for group in groups:
        for on, points_of in (("evaluations", _evaluation_points), ("batches", _batch_points)):
            laws = [fit(late(points_of(e, options))) for e in group.entries]
            law = joint([each for each in laws if each is not None])
            if law is not None:
                found.append(Fitted(group, law, on))
                break
    return found


def base_figure(options: Options, num_groups: int, y_title: str) -> dict[str, Any]:
    """An empty figure for groups, with room for their labels."""
    figure = frame(Axis(options.x, options.log, None), height=HEIGHT, y_title=y_title)
    layout = figure["layout"]
    layout["margin"]["r"] = LABEL_ROOM
    layout["uirevision"] = f"{options.x} {options.log} {options.bits}"
    layout["hovermode"] = "x unified" if num_groups <= UNIFIED else "closest"
    layout["meta"] = {"ends": True, "bounds": []}
    if options.x in ("flops", "time"):
        layout["xaxis"]["hoverformat"] = ".4~s"
        layout["xaxis"]["unifiedhovertitle"] = {"text": f"{options.x} %{{x:.4~s}}"}
    return figure


def draw_group(
    figure: dict[str, Any], group: Group, track: Track, options: Options, *, log_y: bool, label: str = ""
) -> bool:
    """Draw a track: its band, its line, and a ring at its end while it runs. False when there is nothing to draw."""
    if track.end is None:
        return False
    color, text_color, dash = style(group.index)
    if options.band and len(group.entries) > 1:
        figure["data"].extend(_band(group, track, color, faint=len(figure["data"]) > 2 * MARKED, log_y=log_y))
    name = plain(label or group.label)
    several = len(group.entries) > 1
    line: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines" if sum(y is not None for y in track.mean) > 1 else "lines+markers",
        "name": plain(group.label, 60),
        "legendgroup": group.key,
        "x": [short(x, 6) for x in track.x],
        "y": [None if y is None else short(y, 5) for y in track.mean],
        "line": {"color": color, "width": BASELINE_LINE if group.baseline else LINE, "dash": dash},
        "marker": {"color": color, "size": 5},
        "meta": {"label": name, "color": text_color, "strong": group.baseline},
        "hovertemplate": f"{plain(group.label, 60)} %{{y:.5~g}}<extra></extra>",
    }
    if several:
        spread = _spreads(track)
        line["customdata"] = spread
        line["hovertemplate"] = f"{plain(group.label, 60)} %{{y:.5~g}}%{{customdata}}<extra></extra>"
    figure["data"].append(line)
    if group.running:
        figure["data"].append(_ring(group, track.end, color))
    return True


def axis_points(series: Series | None, options: Options) -> tuple[list[float], list[float]]:
    """Points of a series on the axis."""
    if series is None:
        return [], []
    return Axis(options.x, options.log, None).of(series), list(series.value)


def listed(labels: Sequence[str]) -> str:
    """Names of groups in a sentence."""
    shown = ", ".join(label[:LABEL_CHARS] for label in labels[:HUES])
    return f"{shown} and {len(labels) - HUES} more" if len(labels) > HUES else shown


def mean_of(values: Iterable[float]) -> float | None:
    """Their mean; None without any."""
    known = list(values)
    return sum(known) / len(known) if known else None


def loss_points(entry: Entry, options: Options, floor: float | None) -> tuple[list[float], list[float]]:
    """The loss of a run on the axis: `floor`, its bound in nats, plus the paired excess, or what each batch lost."""
    if entry.curve is None or floor is None or options.raw:
        x, y = axis_points(entry.loss, options)
        return x, [v * options.scale for v in y]
    x, y = axis_points(entry.curve, options)
    return x, [(v + floor) * options.scale for v in y]


def _spreads(track: Track) -> list[str]:
    """What is said of each mean on hover: its spread, and over how many runs."""
    texts = []
    for mean, high, count in zip(track.mean, track.high, track.count, strict=True):
        spread = f" ± {high - mean:.2g}" if mean is not None and high is not None else ""
        texts.append(f"{spread} (n={count})")
    return texts


def _band(group: Group, track: Track, color: str, *, faint: bool, log_y: bool) -> list[dict[str, Any]]:
    """One standard deviation around the mean, in pieces where there is one."""
    traces, piece = [], []
    rows = [*zip(track.x, track.low, track.high, strict=True), (math.nan, None, None)]
    for x, low, high in rows:
        if low is not None and high is not None and not (log_y and low <= 0):
            piece.append((x, low, high))
            continue
        if len(piece) > 1:
            xs, lows, highs = zip(*piece, strict=True)
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "legendgroup": group.key,
                    "x": [short(v, 6) for v in (*xs, *reversed(xs))],
                    "y": [short(v, 4) for v in (*highs, *reversed(lows))],
                    "fill": "toself",
                    "fillcolor": f"{color}:{FAINT_BAND if faint else BAND}",
                    "line": {"width": 0, "color": color},
                    "hoverinfo": "skip",
                }
            )
        piece = []
    return traces


def _ring(group: Group, end: tuple[float, float], color: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "now",
        "legendgroup": group.key,
        "x": [end[0]],
        "y": [end[1]],
        "marker": {"size": 9, "color": "@bg", "line": {"color": color, "width": 2.2}},
        "cliponaxis": False,
        "hoverinfo": "skip",
    }


def _draw_bounds(figure: dict[str, Any], groups: Sequence[Group], bounds: dict[str, float], options: Options) -> None:
    """A dashed line for each distinct entropy; groups over several graphs have the mean of theirs."""
    lines: dict[str, float] = {}
    for group in groups:
        known = [bounds[w] for w in group.worlds if w in bounds]
        floor = mean_of(known)
        if floor is not None:
            of = "" if len(known) == 1 else f" (mean of {len(known)})"
            lines.setdefault(f"H = {number(floor * options.scale)}{of}", floor * options.scale)
    for label, y in lines.items():
        figure["layout"]["shapes"].append(
            {
                "type": "line",
                "name": "bound",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": y,
                "y1": y,
                "line": {"color": "@bound", "width": 1.5, "dash": DASHED},
            }
        )
        figure["layout"]["meta"]["bounds"].append({"y": y, "label": label, "color": "@bound"})
    if lines:  # a shape does not make the axis reach down to it
        figure["data"].append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "bounds",
                "x": [_some_x(figure)] * len(lines),
                "y": list(lines.values()),
                "line": {"width": 0, "color": "@bound"},
                "hoverinfo": "skip",
            }
        )


def _some_x(figure: dict[str, Any]) -> float:
    return next((trace["x"][-1] for trace in figure["data"] if trace.get("x")), 1.0)


def _draw_evaluations(figure: dict[str, Any], group: Group, options: Options) -> None:
    points = [p for e in group.entries for p in e.evaluations if p.y > 0 or not options.log]
    points = [p for p in points if p.x > 0 or not options.log]
    if not points:
        return
    color, _, _ = style(group.index)
    figure["data"].append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": f"{plain(group.label, 60)} evaluations",
            "legendgroup": group.key,
            "x": [short(p.x, 6) for p in points],
            "y": [short(p.y * options.scale, 5) for p in points],
            "customdata": [f"± {p.error * options.scale:.2g}" if p.error else "" for p in points],
            "marker": {"size": 6, "color": "@bg", "line": {"color": color, "width": 1.5}},
            "hovertemplate": "held out %{y:.5~g} %{customdata}<extra></extra>",
        }
    )


def _draw_fits(figure: dict[str, Any], fits: Sequence[Fitted], options: Options) -> None:
    """Dotted, from where each fit begins to a little beyond its end."""
    for fitted in fits:
        law = fitted.law
        low, high = math.log(law.start), math.log(law.end) + 0.25 * (math.log(law.end) - math.log(law.start))
        xs = [math.exp(low + (high - low) * i / 24) for i in range(25)]
        figure["data"].append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"{plain(fitted.group.label, 60)} fit",
                "legendgroup": fitted.group.key,
                "x": [short(x, 6) for x in xs],
                "y": [short(law.at(x) * options.scale, 5) for x in xs],
                "line": {"color": style(fitted.group.index)[0], "width": THIN, "dash": "dot"},
                "hoverinfo": "skip",
            }
        )


def _evaluation_points(entry: Entry, _options: Options) -> list[Point]:
    return list(entry.evaluations) if len(late(entry.evaluations)) >= LEAST else []


def _batch_points(entry: Entry, options: Options) -> list[Point]:
    x, y = axis_points(entry.curve, options)
    return binned([Point(a, b) for a, b in zip(x, y, strict=False)])


def _missing(why: str, labels: Sequence[str]) -> list[str]:
    return [f"{why}: {listed(labels)}."] if labels else []
