"""Runs: what is running, and how far each learner is from the bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import streamlit as st

from dashboard import data
from dashboard.components.log import plain
from dashboard.components.page import Chip, attempt_to, away_note, header, live, note, said, skeleton
from dashboard.components.shortcuts import Shortcut, shortcuts
from dashboard.components.table import Edit, TableReply, selected, table
from dashboard.data import editing, sparks
from dashboard.explain import why_idle
from dashboard.panels.bulk import bulk
from dashboard.panels.filter import Query, explain_error, query, sort_by, turn
from dashboard.panels.first_steps import teach
from dashboard.panels.run_table import COLUMNS, HIDE_LOG, rows
from dashboard.wording import STATES
from nanollama.api.errors import ApiError
from nanollama.api.schemas import RunPage, Worker
from nanollama.api.status import RunState

PAGE_SIZE = 50
TABLE = "runs"
LOG_LINES, LOG_BYTES = 25, 8192

ROWS = ".n2n-table"
KEYS = (
    Shortcut("/", "filter", "focus", 'input[aria-label="Filter"]'),
    Shortcut("j", "next run; Enter opens it", "next row", ROWS),
    Shortcut("k", "previous run", "previous row", ROWS),
    Shortcut("x", "select the run, or no longer", "check row", ROWS),
    Shortcut("a", "select all that are shown, or none", "press", f"{ROWS} input.all"),
    Shortcut("c", "compare the selected ones", "press", ".st-key-bulk-compare button"),
    Shortcut("n", "next page", "press", ".st-key-older button"),
    Shortcut("p", "page before", "press", ".st-key-newer button"),
)


@dataclass(frozen=True)
class Snapshot:
    """What one tick reads."""

    page: RunPage
    workers: list[Worker]
    curves: dict[str, sparks.Curve]


def load(asked: Query) -> Snapshot:
    """Read a page of runs, and what is drawn beside them."""
    page = data.runs(asked.condition, asked.states, asked.sort, PAGE_SIZE, asked.cursor)
    return Snapshot(page, data.workers(), sparks.excesses(page.items))


def chips(page: RunPage, workers: Sequence[Worker], at: datetime) -> list[Chip]:
    """How many runs are in each state, and who works."""
    shown = [
        Chip(f"{page.counts[state]:,}", unit=state.value.lower(), glyph=STATES[state][0], tone=STATES[state][1])
        for state in RunState
        if page.counts.get(state)
    ]
    alive = [w for w in workers if w.alive]
    busy, slots = sum(w.busy for w in alive), sum(w.slots for w in alive)
    unit = f"{'worker' if len(alive) == 1 else 'workers'} · {busy}/{slots} slots busy" if alive else "worker alive"
    title = "workers that have reported lately; runs they execute, of what they can execute at once"
    shown.append(Chip(str(len(alive)) if alive else "no", unit=unit, title=title))
    return [*shown, Chip(f"{at:%H:%M:%S}", label="updated", title="UTC")]


def last_lines(run_id: str) -> str:
    """The end of a run's log."""
    try:
        tail = data.logs(run_id, None, None, LOG_BYTES)
    except ApiError as error:
        return f"no log: {error}"
    return "\n".join(plain(tail.text).rstrip("\n").split("\n")[-LOG_LINES:]) or "nothing was written"


def change(edit: Edit) -> str:
    """Store what was edited in the table."""
    if edit.column == "tags":
        editing.change_run(edit.row, tags=editing.words(edit.text))
        return "Tags changed"
    editing.change_run(edit.row, notes=edit.text)
    return "Notes changed"


def heed(reply: TableReply) -> None:
    """Do what was asked for in the table."""
    if reply.opened:
        st.switch_page("views/run.py", query_params={"run": reply.opened})
    if reply.acted:
        run_id, button = reply.acted
        st.session_state["log-of"] = None if button == HIDE_LOG else run_id
    elif reply.sort is not None:
        sort_by(reply.sort)
    elif reply.edit:
        edit = reply.edit
        attempt_to("Changing the run", lambda: change(edit))
    else:
        return
    st.rerun()


def listing(asked: Query, snap: Snapshot, at: datetime) -> None:
    """The table with what can be done to its rows."""
    page = snap.page
    total = sum(count for state, count in page.counts.items() if not asked.states or state.value in asked.states)
    bulk(selected(TABLE), asked.whole, total, TABLE)
    shown_log = st.session_state.get("log-of")
    logs = {run.id: last_lines(run.id) for run in page.items if run.id == shown_log}
    order = f"sorted by {asked.sort}" if asked.sort else "newest first"
    reply = table(
        COLUMNS,
        rows(page.items, snap.curves, at, logs),
        label=f"Runs, {order}",
        key=TABLE,
        sort=asked.sort,
        select=True,
    )
    heed(reply)
    if asked.cursor or page.next_cursor:
        older, newer = ("Next →", "← Before") if asked.sort else ("Older →", "← Newer")
        with st.container(horizontal=True):
            st.button(newer, key="newer", disabled=asked.cursor is None, on_click=turn, args=(None,))
            st.button(older, key="older", disabled=page.next_cursor is None, on_click=turn, args=(page.next_cursor,))


def body() -> None:
    """What is drawn at every tick."""
    head = st.container()
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        with st.container(width="stretch"):
            asked = query()
        shortcuts(KEYS, key="keys")
    if asked.error:
        with head:
            header("Runs")
        explain_error(asked.text, asked.error)
        return
    subject = f"{asked.condition} {asked.states} {asked.sort} {asked.cursor}"
    waiting = st.empty()
    if not data.known("runs", ""):
        with waiting:
            skeleton(12)
    snap, at, away = data.latest("runs", subject, lambda: load(asked))
    waiting.empty()
    with head:
        header("Runs", chips=chips(snap.page, snap.workers, at))
        if away:
            away_note(away, at)
        idle = None if away else why_idle(snap.page.counts, snap.workers, data.client().url)
        if idle:
            note(idle.text, code=idle.code, tone="warn")
        said()
    if snap.page.items:
        listing(asked, snap, at)
    elif asked.text or asked.states or asked.cursor:
        note(
            "Change the filter or the states above; archived runs are left out unless asked for.",
            title="No run matches",
        )
    else:
        teach()


live(body)
