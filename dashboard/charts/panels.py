"""Small multiples: a group of runs in each panel, beside the baseline, all on the same axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dashboard.charts.compare import LABEL_CHARS, Options, axis_points, base_figure, draw_group, listed, plain, style
from dashboard.charts.curves import Chart
from dashboard.charts.tracks import Track, merge, positive, rescaled, short
from dashboard.comparison import Group
from dashboard.wording import number, plural

HEIGHT, COLUMNS = 172, 3


def panels_chart(groups: Sequence[Group], options: Options) -> Chart:
    """A panel for each group, the baseline in grey, all on the same axes: excess, or loss where none has a bound."""
    bounded = any(e.curve is not None for g in groups for e in g.entries)
    figure = base_figure(options, len(groups), "")
    layout = figure["layout"]
    layout["meta"] = {"panels": {"count": len(groups), "columns": COLUMNS, "height": HEIGHT}}
    layout["margin"] = {"l": 50, "r": 12, "t": 24, "b": 40}
    layout["hovermode"] = "closest"
    layout["uirevision"] = f"panels {layout['uirevision']}"
    log_y = bounded and options.log
    if log_y:
        layout["yaxis"].update(type="log", tickformat="~g", nticks=3)
    layout["yaxis"]["nticks"], layout["xaxis"]["nticks"] = 4, 4
    tracks = {g.key: _panel_track(g, options, bounded=bounded) for g in groups}
    base = next((g for g in groups if g.baseline), None)
    silent = []
    for i, group in enumerate(groups):
        suffix = str(i + 1) if i else ""
        if i:
            layout[f"xaxis{suffix}"] = {**layout["xaxis"], "matches": "x", "title": {"text": ""}}
            layout[f"yaxis{suffix}"] = {**layout["yaxis"], "matches": "y"}
        start = len(figure["data"])
        if base is not None and base is not group:
            figure["data"].extend(_ghost(tracks[base.key], base))
        if not draw_group(figure, group, tracks[group.key], options, log_y=log_y):
            silent.append(group.label)
        for trace in figure["data"][start:]:
            trace.update(xaxis=f"x{suffix}", yaxis=f"y{suffix}")
        layout["annotations"].append(_panel_title(i, group, options))
    layout["xaxis"]["title"] = {"text": ""}
    kind = "excess" if bounded else "loss"
    notes = [f"No points yet: {listed(silent)}."] if silent else []
    if len(groups) > 1:
        notes.insert(0, "All panels share their axes" + ("; grey is the baseline." if base is not None else "."))
    alt = f"{plural(len(groups), 'panel')}: {kind} against {options.x} in {options.unit}, a group of runs in each"
    return Chart(figure, alt, notes)


def _panel_track(group: Group, options: Options, *, bounded: bool) -> Track:
    if bounded:
        curves = [axis_points(e.curve, options) for e in group.entries if e.curve is not None]
    else:
        curves = [axis_points(e.loss, options) for e in group.entries]
    track = rescaled(merge(curves, log_x=options.log), options.scale)
    return positive(track) if bounded and options.log else track


def _panel_title(i: int, group: Group, options: Options) -> dict[str, Any]:
    """Its label, and where it stands; the browser puts it above its panel."""
    excess = group.excess
    stands = f"  {number(excess.value * options.scale, 4)}" if excess is not None else ""
    text = plain(group.label, LABEL_CHARS + 6)
    return {
        "name": f"panel {i}",
        "text": (f"<b>{text}</b>" if group.baseline else text) + stands,
        "xref": "paper",
        "yref": "paper",
        "x": 0,
        "y": 1,
        "xanchor": "left",
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"color": style(group.index)[1], "size": 12},
    }


def _ghost(track: Track, base: Group) -> list[dict[str, Any]]:
    if track.end is None:
        return []
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": f"baseline {plain(base.label)}",
            "x": [short(x, 6) for x in track.x],
            "y": [None if y is None else short(y, 5) for y in track.mean],
            "line": {"color": "@muted:0.55", "width": 1.2},
            "hoverinfo": "skip",
        }
    ]
