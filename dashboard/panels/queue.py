"""The queue: who waits, in which order and why; to pause, reorder and cancel."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from urllib.parse import quote

import streamlit as st

from dashboard.components.page import attempt_to, note, say, section
from dashboard.components.table import Cell, Column, Row, reselect, selected, table
from dashboard.data import queue as service
from dashboard.placement import needs
from dashboard.wording import ago, clock, plural
from nanollama.api.schemas import Experiment, Queue, QueueEntry

TABLE_HEIGHT = 420  # pixels beyond which a table scrolls
PRIORITIES = range(-100, 101)
BOUNDS = "e00000000000000"  # the experiment of the jobs that compute entropies
MAX_EXPERIMENTS = 30  # that are told by name and can be paused on one page of the queue

QUEUE_COLUMNS = (
    Column("position", "#", "number", help="in the order in which workers take them"),
    Column("name", "run", "name"),
    Column("why", "waits because", "wrap"),
    Column("priority", "priority", "number", help="higher first, -100 to 100; press it to change it", edit=True),
    Column("needs", "needs", minor=True),
    Column("experiment", "experiment", "name", minor=True),
    Column("since", "since", minor=True),
)
EXPERIMENT_COLUMNS = (
    Column("name", "experiment", "name"),
    Column("waiting", "waiting", "number"),
    Column("state", "state"),
)
REASONS = {
    "queue_paused": ("Ⅱ", "warn"),
    "experiment_paused": ("Ⅱ", "warn"),
    "no_worker": ("✕", "bad"),
    "draining": ("↓", "warn"),
    "busy": ("◷", "muted"),
    "next": ("▸", "accent"),
}
"""Glyph and tone of why a job waits."""


def queue_row(entry: QueueEntry, name: str, now: datetime) -> Row:
    """A job that waits, of an experiment of this name."""
    glyph, tone = REASONS.get(entry.reason, ("", ""))
    again = f" · attempt {entry.attempt}" if entry.attempt > 1 else ""
    cells = {
        "position": Cell(f"{entry.position + 1:,}"),
        "name": Cell(entry.run_name, title=f"{entry.run_name[:200]} · {entry.run_id}", href=f"run?run={entry.run_id}"),
        "why": Cell(entry.detail[:500] + again, glyph=glyph, tone=tone),
        "priority": Cell(f"{entry.priority}"),
        "needs": Cell(needs(entry.resources)[:120] or "–", title=needs(entry.resources)[:2000]),
        "experiment": Cell(name, title=f"{name[:200]} · {entry.experiment_id}"),
        "since": Cell(ago(entry.since, now), title=clock(entry.since)),
    }
    return Row(entry.run_id, cells)


def queue_part(queue: Queue, experiments: Mapping[str, Experiment], now: datetime, offset: int) -> None:
    """Who waits, in which order and why."""
    items = queue.items
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        section(
            "Queue",
            f"{plural(queue.waiting, 'job')} waiting" + (", in the order in which workers take them" if items else ""),
        )
        queue_actions(queue)
    with st.container():  # a place of its own: what comes below does not move in the page when it comes and goes
        if queue.paused_since is not None:
            text = "Nothing is handed to any worker; what runs goes on."
            note(text, title=f"The queue has been paused since {clock(queue.paused_since)}", tone="warn")
    if not items:
        if offset:
            note("Nothing waits that far back.")
            st.button("← First", key="first", on_click=turn, args=(0,))
        else:
            note("What is submitted waits here until a worker is free for it.", title="Nothing waits")
            st.page_link("views/launch.py", label="Launch something", icon=":material/rocket_launch:")
        return
    names = {each: experiment.name for each, experiment in experiments.items()}
    rows = [queue_row(entry, names.get(entry.experiment_id, entry.experiment_id), now) for entry in items]
    reply = table(QUEUE_COLUMNS, rows, label="Jobs that wait", key="queue", height=TABLE_HEIGHT, select=True)
    if reply.opened:
        st.switch_page("views/run.py", query_params={"run": reply.opened})
    if reply.edit is not None and reply.edit.column == "priority":
        prioritise(reply.edit.row, reply.edit.text)
        st.rerun(scope="fragment")
    if offset or offset + len(items) < queue.waiting:
        with st.container(horizontal=True):
            before, after = max(0, offset - service.SHOWN_JOBS), offset + service.SHOWN_JOBS
            st.button("← Before", key="before", disabled=not offset, on_click=turn, args=(before,))
            st.button("After →", key="after", disabled=after >= queue.waiting, on_click=turn, args=(after,))


def queue_actions(queue: Queue) -> None:
    """What can be done to the whole queue, and to the jobs that are checked."""
    shown = {entry.run_id: entry for entry in queue.items}
    chosen = [run_id for run_id in selected("queue") if run_id in shown]
    with st.container(horizontal=True, vertical_alignment="center", width="content"):
        if chosen:
            with st.popover("Cancel jobs"):  # always the same words: others would be another popover, and a closed one
                jobs = "this job" if len(chosen) == 1 else f"these {len(chosen):,} jobs"
                st.html(f"<p>Cancel {jobs}? What is cancelled leaves the queue; a retry puts it back.</p>")
                label = f"Yes, cancel {len(chosen):,}"
                st.button(label, type="primary", key="confirm-cancel", on_click=cancel, args=(chosen,))
        if queue.paused_since is None:
            st.button("Pause the queue", key="pause", on_click=pause_queue, args=(True,), help="what runs goes on")
        else:
            st.button("Resume the queue", type="primary", key="resume", on_click=pause_queue, args=(False,))


def pause_queue(paused: bool) -> None:
    """Lease nothing more to anybody, or lease again."""

    def act() -> str:
        service.pause_queue(paused=paused)
        return "The queue is paused; what runs goes on." if paused else "Workers take jobs again."

    attempt_to("Pausing" if paused else "Resuming", act)


def cancel(run_ids: list[str]) -> None:
    """Let jobs leave the queue."""
    attempt_to("Cancelling", lambda: f"{plural(service.cancel(run_ids), 'job')} cancelled.")
    reselect("queue", [])


def prioritise(run_id: str, text: str) -> None:
    """Change a priority as it was typed."""
    word = text.strip().replace("−", "-")
    if not re.fullmatch(r"[+-]?\d{1,3}", word) or int(word) not in PRIORITIES:
        say(f"'{text[:80]}' is no priority: write a whole number from -100 to 100. Nothing was changed.", tone="bad")
        return

    def act() -> str:
        run = service.prioritise(run_id, int(word))
        return f"{run.name} has priority {run.priority} now."

    attempt_to("Changing the priority", act)


def turn(offset: int) -> None:
    """Show the queue from another position on."""
    if offset:
        st.query_params["from"] = str(offset)
    else:
        st.query_params.pop("from", None)


def runs_filter(experiment_id: str) -> str:
    """The filter under which Runs lists an experiment; jobs that compute bounds are listed only where it names apps."""
    return f"experiment:{experiment_id}" + (" app:gssm.entropy" if experiment_id == BOUNDS else "")


def experiments_of(queue: Queue) -> dict[str, Experiment]:
    """The experiments of the first jobs, by id: not of so many that asking for each takes long."""
    ids = list(dict.fromkeys(entry.experiment_id for entry in queue.items))[:MAX_EXPERIMENTS]
    return {each: found for each in ids if (found := service.experiment(each)) is not None}


def experiments_part(queue: Queue, experiments: Mapping[str, Experiment]) -> None:
    """Experiments with jobs in the queue; each can be paused and resumed."""
    if not experiments:
        return
    waiting = Counter(entry.experiment_id for entry in queue.items)
    section("Experiments", "a paused one keeps its jobs in the queue, and lets others pass")
    rows = []
    for each, experiment in experiments.items():
        paused = experiment.paused_since is not None
        name = experiment.name
        cells = {
            "name": Cell(name, title=f"{name[:200]} · {each}", href=f"./?q={quote(runs_filter(each))}"),
            "waiting": Cell(f"{waiting[each]:,}"),
            "state": Cell("paused", glyph="Ⅱ", tone="warn", act="resume") if paused else Cell("open", act="pause"),
        }
        rows.append(Row(each, cells))
    reply = table(EXPERIMENT_COLUMNS, rows, label="Experiments in the queue", key="experiments", height=TABLE_HEIGHT)
    if reply.opened:
        st.switch_page("views/runs.py", query_params={"q": runs_filter(reply.opened)})
    if reply.acted is not None:
        pause_experiment(*reply.acted)
        st.rerun(scope="fragment")


def pause_experiment(experiment_id: str, action: str) -> None:
    """Lease none of an experiment's runs, or lease them again."""
    paused = action == "pause"

    def act() -> str:
        name = service.pause_experiment(experiment_id, paused=paused).name
        return f"{name} is paused; those of its runs that execute go on." if paused else f"{name} goes on."

    attempt_to("Pausing" if paused else "Resuming", act)
