"""What a comparison shows as data (CSV, Parquet) and as a program that draws it again from the client."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from importlib.util import find_spec
from pprint import pformat
from typing import Any, Literal

from dashboard.charts.compare import Fitted, Options, loss_points
from dashboard.charts.scaling import SIZES, Size
from dashboard.charts.tracks import merge
from dashboard.comparison import Group, entropies
from dashboard.data.compare import X_NAMES
from dashboard.figure import AXIS_TITLES

View = Literal["curves", "small multiples", "scaling"]
Rows = list[dict[str, Any]]


def curve_rows(groups: Sequence[Group], options: Options) -> Rows:
    """The curves as drawn: a row for each point of each chart, with mean, one standard deviation and number of runs."""
    bounds = entropies(e for g in groups for e in g.entries)
    rows: Rows = []
    for group in groups:
        known = [bounds[w] for w in group.worlds if w in bounds]
        floor = sum(known) / len(known) if known else None
        charts = {"loss": floor, "excess": 0.0} if any(e.curve is not None for e in group.entries) else {"loss": None}
        for chart, offset in charts.items():
            drawn = options if chart == "loss" else Options(options.x, options.log, options.bits)
            curves = [loss_points(e, drawn, offset) for e in group.entries if chart == "loss" or e.curve is not None]
            track = merge(curves, log_x=options.log)
            points = zip(track.x, track.mean, track.low, track.high, track.count, strict=True)
            rows += [
                {
                    "chart": chart,
                    "group": group.label,
                    options.x: x,
                    "mean": mean,
                    "low": low,
                    "high": high,
                    "runs": count,
                    "bound": None if floor is None else floor * options.scale,
                    "unit": options.unit,
                }
                for x, mean, low, high, count in points
            ]
    return rows


def scaling_rows(groups: Sequence[Group], options: Options) -> Rows:
    """The ends of training: a row for each run."""
    return [
        {
            "group": group.label,
            "run": entry.run.name,
            "id": entry.run.id,
            "state": entry.run.state.value,
            **{size: entry.sizes.get(size) for size in SIZES},
            "excess": entry.excess.value * options.scale if entry.excess else None,
            "stderr": entry.excess.error * options.scale if entry.excess and entry.excess.error is not None else None,
            "from": entry.excess.source if entry.excess else None,
            "unit": options.unit,
        }
        for group in groups
        for entry in group.entries
    ]


def as_csv(rows: Rows) -> str:
    """Rows as CSV with a header."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _safe(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def has_parquet() -> bool:
    """Whether rows can be written as Parquet here."""
    return find_spec("pyarrow") is not None


def as_parquet(rows: Rows) -> bytes:
    """Rows as a Parquet file. ImportError where pyarrow is not installed."""
    import pyarrow as pa  # noqa: PLC0415 - large, and needed by this alone
    import pyarrow.parquet as pq  # noqa: PLC0415

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue().to_pybytes())


def program(
    groups: Sequence[Group], options: Options, view: View, size: Size, *, url: str, fits: Sequence[Fitted] = ()
) -> str:
    """A Python program that reads the same runs through the client and draws the same figure with matplotlib."""
    ids = {group.label: [e.run.id for e in group.entries] for group in groups}
    worlds: dict[str, list[str]] = {}
    for entry in (e for g in groups for e in g.entries):
        worlds.setdefault(entry.world, []).append(entry.run.id)
    laws = {f.group.label: (f.law.intercept, f.law.exponent, f.law.start, f.law.end) for f in fits}
    draw = {"curves": _CURVES, "small multiples": _PANELS, "scaling": _SCALING}[view]
    title = SIZES[size] if view == "scaling" else AXIS_TITLES[options.x]
    return _PROGRAM.format(
        groups=pformat(ids, width=100, sort_dicts=False),
        worlds=pformat(list(worlds.values()), width=100),
        fits=pformat(laws, width=100, sort_dicts=False),
        url=url,
        x=X_NAMES[options.x],
        size=size,
        title=title,
        scale="1 / np.log(2)" if options.bits else "1.0",
        unit=options.unit,
        log=options.log,
        raw=options.raw,
        draw=draw,
    )


def _safe(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


_PROGRAM = r'''"""Draws a comparison of runs again. Needs `pip install 'nodes-to-narratives[visu]'` and the service."""

import os
import sys

import matplotlib.pyplot as plt
import numpy as np

from nanollama.api.client import Client
from nanollama.api.schemas import MetricsQuery

GROUPS = {groups}
WORLDS = {worlds}  # runs that learn from the same data, and so have the same entropy
FITS = {fits}  # log of the excess in nats at x = 1, exponent, from, to
X, X_TITLE, SIZE = "{x}", "{title}", "{size}"
SCALE, UNIT = {scale}, "{unit}"
LOG, RAW = {log}, {raw}
HUES = ["#1762A0", "#CC7C05", "#7E1603", "#1D99CE", "#B73549", "#561D64"]
DASHES = ["-", "--", ":", "-.", (0, (8, 2)), (0, (1, 5))]
STYLES = {{label: {{"color": HUES[i % 6], "ls": DASHES[i // 6 % 6]}} for i, label in enumerate(GROUPS)}}

ids = [run for runs in GROUPS.values() for run in runs]
client = Client(os.environ.get("N2N_URL", {url!r}))
query = MetricsQuery(runs=ids, keys=["excess", "loss"], x=X, spacing="log" if LOG else "linear", max_points=1000)
series = {{each.run_id: each.series for each in client.curves(query).runs}}
query = MetricsQuery(runs=ids, keys=["bound"], max_points=5)
bounds = {{m.run_id: m.series["bound"].summary for m in client.curves(query).runs if "bound" in m.series}}


def bound_of(world):
    """Mean bound over all batches of the runs that learn from the same data; NaN where there is none."""
    known = [bounds[run] for run in world if run in bounds and bounds[run].count and np.isfinite(bounds[run].mean)]
    return np.average([b.mean for b in known], weights=[b.count for b in known]) if known else np.nan


entropy = {{run: bound_of(world) for world in WORLDS for run in world}}


def points(run, key):
    """Where a metric of a run is, and what."""
    if key not in series[run]:
        return np.zeros(0), np.zeros(0)
    found = series[run][key]
    x = np.array(found.x if found.x is not None else found.step if X == "step" else found.tokens, float)
    keep = np.isfinite(x) & (x > 0 if LOG else True)
    return x[keep], np.array(found.value)[keep] * SCALE


def track(curves):
    """Mean and standard deviation over the runs that have come so far."""
    curves = [(x, y) for x, y in curves if len(x)]
    if len(curves) < 2:
        return (*curves[0], 0 * curves[0][1]) if curves else (np.zeros(0),) * 3
    low, high = min(x[0] for x, _ in curves), max(x[-1] for x, _ in curves)
    grid = np.geomspace(low, high, 200) if LOG else np.linspace(low, high, 200)
    u = np.log if LOG else np.asarray
    rows = np.array([np.interp(u(grid), u(x), y, left=np.nan, right=np.nan) for x, y in curves])
    rows = rows[:, keep := np.isfinite(rows).any(0)]
    count = np.isfinite(rows).sum(0)
    mean = np.nansum(rows, 0) / count
    spread = np.sqrt(np.nansum((rows - mean) ** 2, 0) / np.maximum(count - 1, 1))
    return grid[keep], mean, spread


def floor(runs):
    """Mean entropy of the data of runs; NaN where it is not known."""
    return SCALE * np.mean([entropy[run] for run in runs])


def excess(runs):
    """Curve of a group over its bound."""
    return track([points(run, "excess") for run in runs])


def loss(runs):
    """Entropy plus paired excess, or the loss of each batch."""
    if RAW or not any("excess" in series[run] for run in runs):
        return track([points(run, "loss") for run in runs])
    x, mean, spread = excess(runs)
    return x, mean + floor(runs), spread


def name(label):
    """A label that is never read as mathematics."""
    return label.replace("$", r"\$")


def draw(ax, label, curve):
    """A mean, and one standard deviation around it."""
    x, mean, spread = curve
    ax.plot(x, mean, label=name(label), **STYLES[label])
    ax.fill_between(x, mean - spread, mean + spread, color=STYLES[label]["color"], alpha=0.16, lw=0)


{draw}
path = sys.argv[1] if len(sys.argv) > 1 else "comparison.pdf"
fig.savefig(path)
print(path)
'''

_CURVES = """fig, (top, bottom) = plt.subplots(2, 1, figsize=(6.75, 6.5), sharex=True, layout="constrained")
for label, runs in GROUPS.items():
    draw(top, label, loss(runs))
    draw(bottom, label, excess(runs))
for height in sorted({round(h, 4) for runs in GROUPS.values() if np.isfinite(h := floor(runs))}):
    top.axhline(height, color="#3D4A5A", ls="--", lw=1.2)
    top.annotate(f"H = {height:.4f}", (1, height), xycoords=("axes fraction", "data"), ha="right", va="bottom")
for label, (level, exponent, start, end) in FITS.items():
    x = np.geomspace(start, end)
    bottom.plot(x, SCALE * np.exp(level) * x**-exponent, ":", lw=1.2, color=STYLES[label]["color"])
top.set(ylabel=f"loss, {UNIT}", xscale="log" if LOG else "linear")
bottom.set(ylabel=f"excess, {UNIT}", xlabel=X_TITLE, yscale="log" if LOG else "linear")
top.legend(fontsize="small")
"""

_PANELS = """columns = min(3, len(GROUPS))
rows = -(-len(GROUPS) // columns)
size = (6.75, 0.6 + 1.7 * rows)
fig, axes = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained")
for ax, (label, runs) in zip(axes.flat, GROUPS.items()):
    draw(ax, label, excess(runs))
    ax.set_title(name(label), fontsize="small", loc="left")
    ax.set(xscale="log" if LOG else "linear", yscale="log" if LOG else "linear")
fig.supxlabel(X_TITLE)
fig.supylabel(f"excess, {UNIT}")
"""

_SCALING = '''newest = {each.run_id: each.values for each in client.values(ids)}
details = {run: client.run(run) for run in ids}


def end(run):
    """Excess at the end: of the newest evaluation, else of the result, else of the curve."""
    if "eval/excess" in newest[run]:
        return SCALE * newest[run]["eval/excess"].last
    result = details[run].result or {}
    if result.get("excess") is not None:
        return SCALE * result["excess"]
    values = points(run, "excess")[1][-8:]
    return values.mean() if len(values) else np.nan


def extent(run):
    """Size of a run."""
    progress = details[run].progress
    if SIZE == "tokens":
        return progress.tokens
    if SIZE == "sequences":
        return progress.step * details[run].config["data"]["batch_size"]
    if SIZE == "parameters":
        estimate = client.validate(config=details[run].config).estimate
        return estimate.parameters if estimate else np.nan
    flops = newest[run].get("flops")
    return flops.last / flops.last_step * progress.step if flops and flops.last_step else np.nan


fig, ax = plt.subplots(figsize=(6.75, 4.2), layout="constrained")
world_of = {run: number for number, world in enumerate(WORLDS) for run in world}
places = {}  # sizes and ends, by the data that are learnt from
for label, runs in GROUPS.items():
    ends = np.array([[extent(run), end(run)] for run in runs], float)
    ends = ends[np.isfinite(ends).all(1)]
    if len(ends):
        (x, y), spread = ends.mean(0), ends[:, 1].std(ddof=1) / len(ends) ** 0.5 if len(ends) > 1 else 0
        if x > 0 and y > 0:
            places.setdefault(frozenset(world_of[run] for run in runs), []).append((x, y))
        ax.errorbar(x, y, spread, fmt="o", capsize=3, label=name(label), color=STYLES[label]["color"])
for some in places.values():
    if len({x for x, _ in some}) >= 3:
        some = np.array(some)
        slope, level = np.polyfit(*np.log(some).T, 1)
        x = np.geomspace(some[:, 0].min(), some[:, 0].max())
        ax.plot(x, np.exp(level) * x**slope, ":", color="#566474", label=f"α = {-slope:.3f}")
ax.set(xscale="log", yscale="log", xlabel=X_TITLE, ylabel=f"excess, {UNIT}")
ax.legend(fontsize="small")
'''
