"""The list of runs as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime

from dashboard.components.table import Cell, Column, Row
from dashboard.data.sparks import Curve
from dashboard.explain import remaining_seconds
from dashboard.wording import STATE_HELP, STATES, ago, clock, duration, mnat, number, plural, si
from nanollama.api.schemas import Run
from nanollama.api.status import RunState

COLUMNS = (
    Column("name", "run", "name", sort="name"),
    Column("experiment", "experiment", "link", minor=True, help="press it to see its runs alone"),
    Column("state", "state", sort="state"),
    Column("progress", "progress", sort="step", help="share of the steps that are done"),
    Column(
        "excess",
        "excess, mnat",
        "number",
        sort="excess",
        help="loss − bound on the same tokens, in 10⁻³ nats per token, at the newest line of metrics; "
        "Compare tells that of evaluations, where there are some",
    ),
    Column("spark", "log excess", minor=True, help="excess against step on log–log axes, all rows on one scale"),
    Column("speed", "tokens/s", "number", minor=True, sort="tokens_per_second"),
    Column("left", "ETA", "number", minor=True, help="remaining tokens at the present speed"),
    Column("tags", "tags", minor=True, edit=True, help="separated by commas"),
    Column("notes", "notes", "clip", minor=True, edit=True),
    Column("created", "created", minor=True, sort="created"),
    Column("remark", "what happened", "clip", minor=True),
)
SHOW_LOG, HIDE_LOG = "log", "hide log"


def rows(runs: Sequence[Run], curves: Mapping[str, Curve], now: datetime, logs: Mapping[str, str]) -> list[Row]:
    """Runs as rows; `logs` are shown under theirs."""
    scale = Scale.of(list(curves.values()))
    return [row(run, now, curves.get(run.id, ()), scale, logs.get(run.id, "")) for run in runs]


def row(run: Run, now: datetime, curve: Curve, scale: Scale, log: str = "") -> Row:
    """A run as a row of the table."""
    p = run.progress
    glyph, tone = STATES[run.state]
    share = min(1.0, p.step / p.total_steps) if p.total_steps else 0.0
    attempts = f", attempt {run.attempt}" if run.attempt > 1 else ""
    steps = f"{p.step:,} of {p.total_steps:,} steps, {si(p.tokens)} tokens{attempts}"
    against = "" if p.loss is None else f"loss {number(p.loss)}, bound {number(p.bound)} nats/token"
    running = run.state is RunState.RUNNING
    tags = ", ".join(run.tags)
    notes = " ".join(run.notes.split())
    remark, whole = _remark(run)
    return Row(
        id=run.id,
        detail=log,
        cells={
            "name": Cell(run.name, title=f"{run.name[:200]} · {run.id}", href=f"run?run={run.id}"),
            "experiment": experiment_link(run),
            "state": Cell(run.state.value.lower(), glyph=glyph, tone=tone, title=STATE_HELP.get(run.state, "")),
            "progress": Cell(f"{share:.0%}", bar=share, title=steps),
            "excess": Cell(mnat(p.excess), title=against),
            "spark": _spark(curve, scale),
            "speed": Cell(si(p.tokens_per_second) if running else ""),
            "left": Cell(duration(remaining_seconds(run)) if running else ""),
            "tags": Cell(chips=tuple(run.tags), edit=tags),
            "notes": Cell(notes[:200], title=run.notes[:2000], edit=run.notes),
            "created": Cell(ago(run.created_at, now), title=clock(run.created_at)),
            "remark": Cell(remark, title=whole, act=_button(run, shown=bool(log))),
        },
    )


def experiment_link(run: Run) -> Cell:
    """The experiment of a run, leading to the list of its runs."""
    name = run.experiment or run.experiment_id
    return Cell(name, title=f"{name[:200]} · {run.experiment_id}", href=f"./?q=experiment:{run.experiment_id}")


class Scale:
    """Logarithmic axes that all small curves of a table share, from 0 to 1."""

    def __init__(self, xs: tuple[float, float], ys: tuple[float, float]) -> None:
        self.xs, self.ys = (tuple(math.log(end) for end in ends) for ends in (xs, ys))

    @classmethod
    def of(cls, curves: Sequence[Curve]) -> Scale:
        """Around all of these curves."""
        xs = [x for curve in curves for x, _ in curve] or [1.0]
        ys = [y for curve in curves for _, y in curve] or [1.0]
        return cls((min(xs), max(xs)), (min(ys), max(ys)))

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies."""
        return _share(math.log(x), *self.xs), _share(math.log(y), *self.ys)


def _share(value: float, low: float, high: float) -> float:
    return round((value - low) / (high - low), 3) if high > low else 0.5


def _spark(curve: Curve, scale: Scale) -> Cell:
    if len(curve) < 2:
        return Cell()
    text = f"excess from {mnat(curve[0][1])} to {mnat(curve[-1][1])} mnat in {plural(int(curve[-1][0]), 'step')}"
    return Cell(text, title=text, spark=tuple(scale.place(x, y) for x, y in curve))


def _button(run: Run, *, shown: bool) -> str:
    if shown:
        return HIDE_LOG
    return SHOW_LOG if run.state in (RunState.FAILED, RunState.CANCELLED) or run.unknown_since is not None else ""


def _remark(run: Run) -> tuple[str, str]:
    """What else is to be said of a run in one line, and the whole of it for the tooltip."""
    parts = ["archived"] if run.archived else []
    if run.cancel_requested and not run.state.terminal:
        parts.append("cancel requested")
    if run.unknown_since is not None:
        parts.append("its worker has gone silent")
    if run.reason:
        parts.append(" ".join(run.reason.split()))
    text = " · ".join(parts)
    return text[:300], text[:2000]
