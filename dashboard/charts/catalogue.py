"""The entropy of a graph by position, as a figure: a pure function of what the service knows."""

from __future__ import annotations

from collections.abc import Sequence

from dashboard.charts.curves import LINE, Chart
from dashboard.figure import Axis, draw_bound, frame
from dashboard.wording import number

HEIGHT = 300  # pixels
Z95 = 1.96


def position_chart(
    positions: Sequence[int], entropy: Sequence[float], stderr: Sequence[float], mean: float | None
) -> Chart:
    """Entropy of the next token given all before it, against its position, with a 95 % band.

    Args:
        positions: of the predicted tokens, from 1.
        entropy: of each, nats.
        stderr: its standard error.
        mean: entropy per token of whole sequences; dashed, where it is known.
    """
    figure = frame(Axis("step", log=False, end=None), height=HEIGHT, y_title="entropy, nats/token")
    figure["layout"]["xaxis"]["title"]["text"] = "position in the sequence"
    figure["layout"]["xaxis"]["unifiedhovertitle"] = {"text": "position %{x:,d}"}
    figure["layout"]["uirevision"] = "position"
    if not positions:
        return Chart(figure, "no entropy by position yet")
    x = [float(p) for p in positions]
    lower = [h - Z95 * e for h, e in zip(entropy, stderr, strict=True)]
    upper = [h + Z95 * e for h, e in zip(entropy, stderr, strict=True)]
    band = {"type": "scatter", "mode": "lines", "x": x, "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    figure["data"] += [
        {**band, "y": lower, "name": "lower"},
        {**band, "y": upper, "name": "upper", "fill": "tonexty", "fillcolor": "@series:0.16"},
        {
            "type": "scatter",
            "mode": "lines",
            "name": "entropy",
            "x": x,
            "y": list(entropy),
            "customdata": [number(Z95 * e) for e in stderr],
            "line": {"color": "@series", "width": LINE},
            "hovertemplate": "%{y:.4f} ± %{customdata} nats<extra></extra>",
        },
    ]
    alt = f"Entropy by position: {number(entropy[0])} nats at position {positions[0]}"
    alt += f", {number(entropy[-1])} at position {positions[-1]:,}"
    if mean is not None:
        draw_bound(figure, mean, 0.0)
        alt += f"; per token of a whole sequence {number(mean)}, dashed"
    return Chart(figure, alt)
