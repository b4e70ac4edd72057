"""Tables of the Compare page: the runs to choose from, what differs between their configs, and power laws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dashboard.charts.compare import Fitted, Options, style
from dashboard.charts.scaling import law_words
from dashboard.comparison import Excess, Group, differences, excess_text, relative
from dashboard.components.table import Cell, Column, Row, TableReply, table
from dashboard.wording import DASH, STATE_HELP, STATES, number, plural, si
from nanollama.api.schemas import Run, Series

RUNS_KEY = "compare-runs"
PIN = "pin"
RUNS_HEIGHT, DIFF_HEIGHT, FITS_HEIGHT = 430, 330, 260
MAX_DIFF = 60  # keys


def runs_table(
    runs: Sequence[Run],
    groups: Sequence[Group],
    standings: Mapping[str, Excess | None],
    sparks: Mapping[str, Series],
    options: Options,
) -> TableReply:
    """The list of runs, checkboxes first. A selected run has the line of its group in front of its name."""
    milli = "mbit" if options.bits else "mnat"
    columns = (
        Column("run", "run", "name", help="with the line of its group"),
        Column("state", "state"),
        Column(
            "excess", f"excess, {milli}", "number", help="loss − bound in 10⁻³ per token; hover for where it is from"
        ),
        Column("delta", "Δ base", "number", help="excess against the baseline's on the same data; negative is better"),
        Column("spark", "log excess", minor=True),
    )
    places = {e.run.id: g for g in groups for e in g.entries}
    base = next((g for g in groups if g.baseline), None)
    rows = []
    for run in runs:
        group = places.get(run.id)
        of = f"{run.experiment[:200]} · " if run.experiment else ""
        name = Cell(run.name, title=f"{of}{run.name[:200]} · {run.id}", href=f"run?run={run.id}")
        if group is not None:
            color, _, dash = style(group.index)
            name = Cell(**{**vars(name), "color": f"var(--n2n-{color[1:]})", "dash": dash})
        rows.append(
            Row(
                run.id,
                _run_cells(run, name, standings.get(run.id), options)
                | {
                    "delta": _delta(group, base, standings.get(run.id)),
                    "spark": _spark(sparks.get(run.id)),
                },
            )
        )
    return table(columns, rows, label="Runs to compare", key=RUNS_KEY, height=RUNS_HEIGHT, select=True)


def diff_table(groups: Sequence[Group]) -> None:
    """Keys that differ, the baseline first; what is not as in the baseline is marked."""
    ordered = sorted(groups, key=lambda g: not g.baseline)
    rows_ = differences(ordered)
    columns = [Column("key", "key", "mono", help="⌗: set by the grid of its sweep")]
    columns += [Column(g.key, g.label + (" ⚑" if g.baseline else ""), "name") for g in ordered]
    rows = []
    for diff in rows_[:MAX_DIFF]:
        cells = {"key": Cell(diff.key, glyph="⌗" if diff.swept else "")}
        for group, text, changed in zip(ordered, diff.values, diff.changed, strict=True):
            cells[group.key] = Cell(text, title=text[:500], tone="changed" if changed else "")
        rows.append(Row(diff.key, cells))
    table(columns, rows, label="Config keys that differ, baseline first", key="compare-diff", height=DIFF_HEIGHT)


def fits_table(fits: Sequence[Fitted], options: Options) -> None:
    """The power laws of the curves, with their intervals and what they went through."""
    columns = (
        Column("group", "power law of", "name"),
        Column("alpha", "α [95 %]", "number", help=f"the excess falls as {options.x} to the power of −α"),
        Column("on", "fitted to"),
        Column("span", f"over {options.x}", minor=True),
    )
    rows = []
    for fitted in fits:
        color, _, dash = style(fitted.group.index)
        law = fitted.law
        on = f"{law.num_points:,} {fitted.on if fitted.on == 'evaluations' else 'means of batches'}"
        if law.num_runs > 1:
            on += f" of {law.num_runs} runs"
        if law.left_out:
            on += f", {plural(law.left_out, 'point')} ≤ 0 left out"
        cells = {
            "group": Cell(fitted.group.label, color=f"var(--n2n-{color[1:]})", dash=dash),
            "alpha": Cell(law_words(law)),
            "on": Cell(on),
            "span": Cell(f"{si(law.start)} to {si(law.end)}"),
        }
        rows.append(Row(fitted.group.key, cells))
    table(columns, rows, label="Power laws of the excess", key="compare-fits", height=FITS_HEIGHT)


def _run_cells(run: Run, name: Cell, standing: Excess | None, options: Options) -> dict[str, Cell]:
    glyph, tone = STATES[run.state]
    progress = run.progress
    share = min(1.0, progress.step / progress.total_steps) if progress.total_steps else 0.0
    steps = f"{progress.step:,} of {progress.total_steps:,} steps, {si(progress.tokens)} tokens"
    state = run.state.value.lower() + (f" {share:.0%}" if 0 < share < 1 else "")
    value = None if standing is None else standing.value * options.scale * 1e3
    return {
        "run": name,
        "state": Cell(
            state, glyph=glyph, tone=tone, title=" · ".join(filter(None, [STATE_HELP.get(run.state), steps]))
        ),
        "excess": Cell(number(value, 1), title=excess_text(standing)),
    }


def _delta(group: Group | None, base: Group | None, standing: Excess | None) -> Cell:
    """Its distance from the baseline, and a button that makes it the baseline."""
    if group is None:
        return Cell(DASH)
    if base is group:
        return Cell("baseline", glyph="⚑", title=f"the others are measured against {group.label[:200]}")
    if base is None or base.worlds != group.worlds:
        return Cell(DASH, title="the baseline learns from other data" if base else "no baseline", act=PIN)
    share = relative(standing, base.excess)
    if share is None:
        return Cell(DASH, act=PIN)
    text = f"{share:+.1%}".replace("-", "−")
    return Cell(text, tone="good" if share < 0 else "bad" if share > 0 else "", act=PIN)


def _spark(series: Series | None) -> Cell:
    """The logarithm of the excess against the logarithm of the step."""
    points = (
        []
        if series is None
        else [(float(s), v) for s, v in zip(series.step, series.value, strict=True) if s > 0 and v > 0]
    )
    points = [(math.log(s), math.log(v)) for s, v in points if math.isfinite(v)]
    if len(points) < 2:
        return Cell("")
    (x0, x1), (y0, y1) = ((min(c), max(c)) for c in zip(*points, strict=True))
    if not x1 > x0 or not y1 > y0:
        return Cell("")
    curve = tuple((round((x - x0) / (x1 - x0), 3), round((y - y0) / (y1 - y0), 3)) for x, y in points)
    return Cell(f"log excess from {math.exp(points[0][1]):.3g} to {math.exp(points[-1][1]):.3g}", spark=curve)
