"""A Plotly chart that keeps its zoom while its data moves."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from dashboard.charts.curves import Chart


def _script(*names: str) -> str:
    return "\n".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("plotly.js", *names))


_mount = st.components.v2.component(
    "n2n_plot",
    html='<div class="n2n-plot" style="width:100%"></div>',
    js=_script("ends.js", "plot.js"),
    isolate_styles=False,
)
_mount_ahead = st.components.v2.component(
    "n2n_plot_ahead", html="<i></i>", js=f"{_script()}\nexport default () => {{ plotly(); }};\n", isolate_styles=False
)


@dataclass(frozen=True)
class PlotReply:
    """What was done to a chart: `clicked` is the entry of the trace's `ids` at the point that was just clicked."""

    clicked: str | None = None
    zoom: tuple[float, float] | None = None


def expect_plots() -> None:
    """Have the browser fetch what draws charts while the service is still being asked for what they show."""
    with st.container(key="n2n-ahead"):
        _mount_ahead(key="ahead")


def plot(chart: Chart, key: str, *, listen: bool = False) -> PlotReply:
    """Draw a chart, and below it what could not be drawn.

    Args:
        chart: what to draw.
        key: its name, unique on the page; an exported picture is named after it.
        listen: report clicks on points that have ids, and the horizontal range that is zoomed in on.
    """
    data = {"figure": chart.text, "alt": chart.alt, "name": key, "listen": listen}
    result = _mount(
        data=data, key=key, default={"zoom": None}, on_zoom_change=lambda: None, on_clicked_change=lambda: None
    )
    if chart.notes:
        st.html("".join(f"<div class='n2n-under'>{html.escape(note)}</div>" for note in chart.notes))
    return PlotReply(result.clicked if isinstance(result.clicked, str) else None, _range(result.zoom))


def zoom(key: str) -> tuple[float, float] | None:
    """The horizontal range that is zoomed in on in a chart that listens, in its units; None when it shows all.

    It is known before the chart is drawn, so that finer data can be read for it.
    """
    state: Any = st.session_state.get(key)
    return None if state is None else _range(state.get("zoom"))


def _range(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    low, high = value
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)) or not low < high:
        return None
    return float(low), float(high)
