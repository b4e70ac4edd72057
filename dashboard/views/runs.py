"""Runs: what is running, and how far each learner is from the bound."""

from __future__ import annotations

from datetime import datetime

import streamlit as st

from dashboard import data
from dashboard.components.page import Chip, away_note, header, live, note
from dashboard.components.table import Cell, Column, Row, table
from dashboard.wording import STATE_HELP, STATES, ago, clock, mnat, number, si
from nanollama.api.schemas import Run, RunPage, Worker
from nanollama.api.status import RunState

PAGE_SIZE = 50

COLUMNS = (
    Column("name", "run", "name"),
    Column("state", "state"),
    Column("progress", "progress", help="share of the steps that are done"),
    Column("loss", "loss", "number", help="of the newest batch, nats per token", minor=True),
    Column("bound", "bound", "number", help="what the true model scores on that batch, nats per token", minor=True),
    Column("excess", "excess, mnat", "number", help="loss − bound on the same tokens, in 10⁻³ nats per token"),
    Column("speed", "tokens/s", "number", minor=True),
    Column("attempt", "attempt", "number", minor=True),
    Column("created", "created", minor=True),
    Column("reason", "note", "clip", minor=True),
)


def row(run: Run, now: datetime) -> Row:
    """A run as a row of the table."""
    progress = run.progress
    glyph, tone = STATES[run.state]
    share = min(1.0, progress.step / progress.total_steps) if progress.total_steps else 0.0
    steps = f"{progress.step:,} of {progress.total_steps:,} steps, {si(progress.tokens)} tokens"
    speed = progress.tokens_per_second if run.state is RunState.RUNNING else None
    return Row(
        id=run.id,
        cells={
            "name": Cell(run.name, title=f"{run.name[:200]} · {run.id}", href=f"run?run={run.id}"),
            "state": Cell(run.state.value.lower(), glyph=glyph, tone=tone, title=STATE_HELP.get(run.state, "")),
            "progress": Cell(f"{share:.0%}", bar=share, title=steps),
            "loss": Cell(number(progress.loss)),
            "bound": Cell(number(progress.bound)),
            "excess": Cell(mnat(progress.excess)),
            "speed": Cell(si(speed)),
            "attempt": Cell(str(run.attempt)),
            "created": Cell(ago(run.created_at, now), title=clock(run.created_at)),
            "reason": Cell(*_remark(run)),
        },
    )


def _remark(run: Run) -> tuple[str, str]:
    """What else is to be said of a run, and the whole of it for the tooltip."""
    parts = ["cancel requested"] if run.cancel_requested and not run.state.terminal else []
    if run.unknown_since is not None:
        parts.append("its worker has gone silent")
    if run.reason:
        parts.append(" ".join(run.reason.split()))
    if run.tags:
        parts.append(" ".join(f"#{tag}" for tag in run.tags))
    text = " · ".join(parts)
    return text[:300], text[:2000]


def _chips(page: RunPage, workers: list[Worker], at: datetime) -> list[Chip]:
    chips = [
        Chip(str(page.counts[state]), unit=state.value.lower(), glyph=STATES[state][0], tone=STATES[state][1])
        for state in RunState
        if page.counts.get(state)
    ]
    alive = [w for w in workers if w.alive]
    busy, slots = sum(w.busy for w in alive), sum(w.slots for w in alive)
    unit = f"{'worker' if len(alive) == 1 else 'workers'} · {busy}/{slots} slots busy" if alive else "worker alive"
    title = "workers that have reported lately; runs they execute, of what they can execute at once"
    chips.append(Chip(str(len(alive)) if alive else "no", unit=unit, title=title))
    return [*chips, Chip(f"{at:%H:%M:%S}", label="updated", title="UTC")]


def _turn(cursor: str | None) -> None:
    """Go to an older page, or with None back by one."""
    trail: list[str | None] = st.session_state.setdefault("trail", [])
    if cursor is not None:
        trail.append(st.query_params.get("cursor"))
        st.query_params["cursor"] = cursor
        return
    newer = trail.pop() if trail else None
    if newer is None:
        _to_newest()
    else:
        st.query_params["cursor"] = newer


def _to_newest() -> None:
    st.session_state["trail"] = []
    st.query_params.pop("cursor", None)


def _filters() -> tuple[str, tuple[str, ...]]:
    with st.container(horizontal=True, vertical_alignment="center"):
        search = st.text_input(
            "Search",
            key="q",
            bind="query-params",
            placeholder="Name, id or tag",
            label_visibility="collapsed",
            icon=":material/search:",
            on_change=_to_newest,
            width=280,
        )
        states = st.pills(
            "State",
            [state.value.lower() for state in RunState],
            selection_mode="multi",
            key="state",
            bind="query-params",
            label_visibility="collapsed",
            on_change=_to_newest,
        )
    return (search or "")[:200], tuple(sorted(state.upper() for state in states))


def body() -> None:
    """What is drawn at every tick."""
    head = st.container()
    search, states = _filters()
    cursor = st.query_params.get("cursor")

    def load() -> tuple[RunPage, list[Worker]]:
        return data.runs(search, states, PAGE_SIZE, cursor), data.workers()

    (page, workers), at, away = data.latest("runs", f"{search} {states} {cursor}", load)
    with head:
        header("Runs", chips=_chips(page, workers, at))
        if away:
            away_note(away, at)
    if not page.items:
        _nothing(filtered=bool(search or states or cursor))
        return
    reply = table(COLUMNS, [row(run, at) for run in page.items], label="Runs, newest first", key="runs")
    if reply.opened:
        st.switch_page("views/run.py", query_params={"run": reply.opened})
    if cursor or page.next_cursor:
        with st.container(horizontal=True):
            st.button("← Newer", disabled=cursor is None, on_click=_turn, args=(None,))
            st.button("Older →", disabled=page.next_cursor is None, on_click=_turn, args=(page.next_cursor,))


def _nothing(*, filtered: bool) -> None:
    if filtered:
        note("Change the search or the states above.", title="No run matches")
        return
    note(
        "A run is one training of a learner on data from a graph whose entropy is known. Start the first one here:",
        title="No runs yet",
        code="n2n submit configs/gssm/debug.yaml",
    )
    if st.button("Write a config and launch it", type="primary"):
        st.switch_page("views/launch.py")


live(body)
