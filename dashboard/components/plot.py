"""A Plotly chart that keeps its zoom while its data moves."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from dashboard.charts.curves import Chart

_mount = st.components.v2.component(
    "n2n_plot",
    html='<div class="n2n-plot" style="width:100%"></div>',
    js=Path(__file__).with_name("plot.js").read_text(encoding="utf-8"),
    isolate_styles=False,
)


def plot(chart: Chart, key: str) -> None:
    """Draw a chart, and below it what could not be drawn.

    Args:
        chart: what to draw.
        key: its name, unique on the page; an exported picture is named after it.
    """
    _mount(data={"figure": chart.figure, "alt": chart.alt, "name": key}, key=key)
    if chart.notes:
        st.html("".join(f"<div class='n2n-under'>{note}</div>" for note in chart.notes))
