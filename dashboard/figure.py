"""The frame of a figure: axes, the bound, the label at the end of a curve."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from dashboard.wording import number
from nanollama.api.schemas import Series

XKind = Literal["step", "tokens", "flops", "time"]
AXIS_TITLES: dict[str, str] = {
    "step": "step",
    "tokens": "training tokens",
    "flops": "floating-point operations",
    "time": "seconds since the start",
}
DASHED = "6px,4px"
LABEL_MARGIN = 104  # pixels right of the axes, for the labels at the ends of the lines


@dataclass(frozen=True)
class Axis:
    """The horizontal axis that the charts of a run share.

    Attributes:
        kind: what is counted.
        log: whether it is logarithmic.
        end: where the run will end, in the same unit; None when that is unknown.
    """

    kind: XKind
    log: bool
    end: float | None

    def of(self, series: Series) -> list[float]:
        """The positions of a series' points."""
        if self.kind in ("flops", "time"):
            return list(series.x or [])
        return [float(v) for v in (series.step if self.kind == "step" else series.tokens)]


def frame(axis: Axis, *, height: int, y_title: str) -> dict[str, Any]:
    """An empty figure, `height` pixels high."""
    lines = {
        "gridcolor": "@grid",
        "linecolor": "@axis",
        "showline": True,
        "ticks": "outside",
        "tickcolor": "@axis",
        "ticklen": 4,
        "tickfont": {"color": "@muted", "size": 11.5},
        "zeroline": False,
        "exponentformat": "B",
    }

    def title(text: str) -> dict[str, Any]:
        return {"text": text, "font": {"color": "@muted", "size": 12}, "standoff": 8}

    x: dict[str, Any] = {**lines, "title": title(AXIS_TITLES[axis.kind])}
    x["hoverformat"] = ",d"
    x["unifiedhovertitle"] = {"text": f"{axis.kind} %{{x:,d}}"}
    if axis.log:
        x.update(type="log", minor=minor_ticks(), tickformat="~s", tickangle=0, nticks=6)
    return {
        "data": [],
        "layout": {
            "height": height,
            "xaxis": x,
            "yaxis": {**lines, "title": title(y_title)},
            "annotations": [],
            "shapes": [],
            "margin": {"l": 58, "r": LABEL_MARGIN, "t": 10, "b": 42},
            "paper_bgcolor": "@bg",
            "plot_bgcolor": "@bg",
            "font": {"color": "@text", "size": 12.5},
            "hoverlabel": {"bgcolor": "@surface", "bordercolor": "@axis", "font": {"size": 12, "color": "@text"}},
            "hovermode": "x unified",
            "showlegend": False,
            "dragmode": "zoom",
            "uirevision": f"{axis.kind} {axis.log}",
        },
    }


def draw_bound(figure: dict[str, Any], entropy: float, push: float) -> None:
    """Draw the bound across the whole figure, its label `push` pixels lower than its line."""
    figure["layout"]["shapes"].append(
        {
            "type": "line",
            "name": "bound",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "y0": entropy,
            "y1": entropy,
            "line": {"color": "@bound", "width": 1.5, "dash": DASHED},
        }
    )
    figure["layout"]["annotations"].append(
        {
            "name": "end-label",
            "text": f"H = {number(entropy)}",
            "xref": "paper",
            "x": 1,
            "xanchor": "left",
            "xshift": 6,
            "y": entropy,
            "yanchor": "top",
            "yshift": 8 - push,
            "showarrow": False,
            "font": {"color": "@bound", "size": 12},
        }
    )


def label_end(
    figure: dict[str, Any],
    point: tuple[float, float],
    text: str,
    *,
    log_x: bool,
    log_y: bool,
    ring: bool,
    push: float = 0.0,
) -> None:
    """Label the end of a curve where it is, `push` pixels higher, so that the label moves with it under zoom."""
    x, y = point
    figure["layout"]["annotations"].append(
        {
            "name": "end-label",
            "text": text,
            "x": math.log10(x) if log_x else x,
            "y": math.log10(y) if log_y else y,
            "xanchor": "left",
            "xshift": 9,
            "yanchor": "middle" if log_y else "bottom",
            "yshift": 0 if log_y else push - 7,
            "showarrow": False,
            "font": {"color": "@series", "size": 12},
        }
    )
    if ring:
        figure["data"].append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "now",
                "x": [x],
                "y": [y],
                "marker": {"size": 10, "color": "@bg", "line": {"color": "@series", "width": 2.2}},
                "cliponaxis": False,
                "hoverinfo": "skip",
            }
        )


def minor_ticks() -> dict[str, Any]:
    """Small ticks without labels, for a log axis."""
    return {"ticks": "outside", "ticklen": 2, "dtick": "D1", "tickcolor": "@axis"}
