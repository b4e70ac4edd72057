"""Workers & queue: who is alive and what each holds, who waits and why; to drain, pause, reorder and cancel."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import streamlit as st

from dashboard import data
from dashboard.components.facts import facts
from dashboard.components.page import Chip, attempt_to, away_note, header, live, note, said, say, section
from dashboard.components.table import Cell, Column, Row, reselect, selected, table
from dashboard.data import queue as service
from dashboard.explain import worker_command
from dashboard.placement import needs
from dashboard.planning import Fact
from dashboard.wording import STATES, ago, clock, plural
from nanollama.api.schemas import Experiment, Queue, QueueEntry, Run, Worker

TABLE_HEIGHT = 420  # pixels beyond which a table scrolls
PRIORITIES = range(-100, 101)

WORKER_COLUMNS = (
    Column("name", "worker", "name"),
    Column("state", "state"),
    Column("busy", "busy", help="runs that it executes, of what it can execute at once"),
    Column("holds", "holds", "clip", minor=True),
    Column("has", "has", help="accelerators, CPUs, memory and labels, for all its runs together", minor=True),
    Column("executor", "executor", minor=True),
    Column("host", "host", "name", minor=True),
    Column("version", "version", minor=True),
    Column("seen", "heard of"),
)
HELD_COLUMNS = (
    Column("name", "run", "name"),
    Column("state", "state"),
    Column("progress", "progress"),
    Column("started", "started", minor=True),
)
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


@dataclass(frozen=True)
class Snapshot:
    """What one tick reads."""

    workers: list[Worker]
    held: list[Run]
    queue: Queue
    paused: list[Experiment]


def load(offset: int) -> Snapshot:
    """Read workers, what they hold, and a page of the queue."""
    return Snapshot(data.workers(), service.held(), service.queue(offset), service.paused_experiments())


# -- workers ---------------------------------------------------------------------------------------------------------


def state_of(worker: Worker) -> Cell:
    """Whether a worker lives and takes jobs."""
    if not worker.alive:
        return Cell("away", glyph="○", tone="muted", title="not heard of within its lease")
    if worker.draining or worker.drain_requested:
        return Cell("draining", glyph="↓", tone="warn", title="finishes what it holds and takes nothing more")
    return Cell("alive", glyph="●", tone="good")


def has(worker: Worker) -> str:
    """What a worker has, in few words."""
    parts = [] if not worker.accelerators else [plural(worker.accelerators, "accelerator")]
    parts += [] if worker.cpus is None else [plural(worker.cpus, "CPU")]
    parts += [] if worker.memory_gb is None else [f"{worker.memory_gb:.3g} GB"]
    return " · ".join([*parts, *worker.labels])


def worker_row(worker: Worker, held: Sequence[Run], now: datetime, *, marked: bool) -> Row:
    """A worker as a row."""
    names = ", ".join(run.name for run in held)
    state = state_of(worker)
    problems = [str(problem) for problem in getattr(worker, "problems", ())]
    if problems:
        state = Cell(state.text, glyph="!", tone="bad", title="\n".join(problems)[:2000])
    cells = {
        "name": Cell(worker.name, title=f"{worker.name[:200]} · {worker.id}"),
        "state": state,
        "busy": Cell(
            f"{worker.busy}/{worker.slots}", bar=min(1.0, worker.busy / worker.slots) if worker.slots else 0.0
        ),
        "holds": Cell(names[:300] or "nothing", title=names[:2000], tone="" if names else "muted"),
        "has": Cell(has(worker)[:120], title=has(worker)[:2000]),
        "executor": Cell(worker.executor),
        "host": Cell(worker.host, title=f"{worker.user}@{worker.host}"[:300]),
        "version": Cell(worker.version),
        "seen": Cell(ago(worker.last_seen_at, now), title=clock(worker.last_seen_at)),
    }
    return Row(worker.id, cells, marked=marked)


def workers_part(snap: Snapshot, now: datetime) -> None:
    """The table of workers, and the one that is chosen."""
    alive = sum(w.alive for w in snap.workers)
    section("Workers", f"{alive:,} of {len(snap.workers):,} alive" if snap.workers else "")
    if not snap.workers:
        text = "A worker executes runs: on this machine, or by a cluster's scheduler. To start one here:"
        note(text, title="No worker has ever registered", code=worker_command(data.client().url))
        return
    chosen = st.query_params.get("worker")
    rows = [
        worker_row(w, [r for r in snap.held if r.worker == w.name], now, marked=w.id == chosen) for w in snap.workers
    ]
    reply = table(WORKER_COLUMNS, rows, label="Workers", key="workers", height=TABLE_HEIGHT, pick=True)
    if reply.picked and reply.picked != chosen:
        st.query_params["worker"] = reply.picked
        st.rerun(scope="fragment")
    worker = next((w for w in snap.workers if w.id == chosen), None)
    if worker is not None:
        one_worker(worker, [r for r in snap.held if r.worker == worker.name], now)
    elif chosen:
        note(f"There is no worker {chosen[:100]}.", tone="bad")


def one_worker(worker: Worker, held: Sequence[Run], now: datetime) -> None:
    """What is known of a worker, what it holds, and how to drain it."""
    left, right = st.columns([0.42, 0.58], gap="medium")
    with left:
        section(worker.name[:120], state_of(worker).text)
        facts(
            [
                Fact("Where", f"{worker.user}@{worker.host}", f"{worker.executor} · version {worker.version}"),
                Fact("Has", has(worker) or "has not said", f"{plural(worker.slots, 'slot')}"),
                Fact("Run root", worker.run_root),
                Fact("Pool", worker.pool, "its workers take up each other's runs"),
                Fact("Heard of", clock(worker.last_seen_at)),
                *(Fact("Problem", str(problem), tone="bad") for problem in getattr(worker, "problems", ())),
            ]
        )
        if worker.drain_requested:
            st.button("Let it take jobs again", key="undrain", on_click=drain, args=(worker.id, False))
        else:
            st.button(
                "Drain",
                key="drain",
                on_click=drain,
                args=(worker.id, True),
                help="it finishes what it holds and takes nothing more; this can be undone",
            )
    with right:
        section("Holds", plural(len(held), "run"))
        if not held:
            note("It executes nothing now.")
            return
        reply = table(HELD_COLUMNS, [held_row(run, now) for run in held], label="Runs that it holds", key="held")
        if reply.opened:
            st.switch_page("views/run.py", query_params={"run": reply.opened})


def held_row(run: Run, now: datetime) -> Row:
    """A run that a worker holds."""
    glyph, tone = STATES[run.state]
    p = run.progress
    share = min(1.0, p.step / p.total_steps) if p.total_steps else 0.0
    cells = {
        "name": Cell(run.name, title=f"{run.name[:200]} · {run.id}", href=f"run?run={run.id}"),
        "state": Cell(run.state.value.lower(), glyph=glyph, tone=tone),
        "progress": Cell(f"{share:.0%}", bar=share, title=f"{p.step:,} of {p.total_steps:,} steps"),
        "started": Cell("" if run.started_at is None else ago(run.started_at, now)),
    }
    return Row(run.id, cells)


def drain(worker_id: str, draining: bool) -> None:
    """Let a worker take nothing more, or jobs again."""

    def act() -> str:
        name = service.drain(worker_id, draining=draining).name
        return f"{name} finishes what it holds and takes nothing more." if draining else f"{name} takes jobs again."

    attempt_to("Draining" if draining else "Letting it take jobs", act)


# -- the queue -------------------------------------------------------------------------------------------------------


def queue_row(entry: QueueEntry, now: datetime) -> Row:
    """A job that waits."""
    glyph, tone = REASONS.get(entry.reason, ("", ""))
    again = f" · attempt {entry.attempt}" if entry.attempt > 1 else ""
    cells = {
        "position": Cell(f"{entry.position + 1:,}"),
        "name": Cell(entry.run_name, title=f"{entry.run_name[:200]} · {entry.run_id}", href=f"run?run={entry.run_id}"),
        "why": Cell(entry.detail[:500] + again, glyph=glyph, tone=tone),
        "priority": Cell(f"{entry.priority}"),
        "needs": Cell(needs(entry.resources)[:120] or "–", title=needs(entry.resources)[:2000]),
        "experiment": Cell(service.experiment_name(entry.experiment_id), title=entry.experiment_id),
        "since": Cell(ago(entry.since, now), title=clock(entry.since)),
    }
    return Row(entry.run_id, cells)


def queue_part(snap: Snapshot, now: datetime, offset: int) -> None:
    """Who waits, in which order and why."""
    queue, items = snap.queue, snap.queue.items
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        section(
            "Queue",
            f"{plural(queue.waiting, 'job')} waiting" + (", in the order in which workers take them" if items else ""),
        )
        queue_actions(queue)
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
    rows = [queue_row(entry, now) for entry in items]
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
            with st.popover(f"Cancel {plural(len(chosen), 'job')}"):
                st.html("<p>Cancel these jobs? They leave the queue; a retry puts one back.</p>")
                st.button("Yes, cancel them", type="primary", key="confirm-cancel", on_click=cancel, args=(chosen,))
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


def experiments_part(snap: Snapshot) -> None:
    """Experiments with jobs in the queue, or that are paused; each can be paused and resumed."""
    waiting = Counter(entry.experiment_id for entry in snap.queue.items)
    paused = {experiment.id: experiment for experiment in snap.paused}
    held_back = {e.experiment_id for e in snap.queue.items if e.reason == "experiment_paused"} | set(paused)
    known = [*paused, *(each for each in waiting if each not in paused)]
    if not known:
        return
    section("Experiments", "those with jobs in the queue, and those that are paused")
    rows = []
    for each in known:
        state = (
            Cell("paused", glyph="Ⅱ", tone="warn", act="resume") if each in held_back else Cell("waits", act="pause")
        )
        name = paused[each].name if each in paused else service.experiment_name(each)
        cells = {
            "name": Cell(name, title=f"{name[:200]} · {each}", href=f"./?q=experiment:{each}"),
            "waiting": Cell(f"{waiting.get(each, 0):,}"),
            "state": state,
        }
        rows.append(Row(each, cells))
    reply = table(EXPERIMENT_COLUMNS, rows, label="Experiments in the queue", key="experiments", height=TABLE_HEIGHT)
    if reply.opened:
        st.switch_page("views/runs.py", query_params={"q": f"experiment:{reply.opened}"})
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


# -- the page --------------------------------------------------------------------------------------------------------


def chips(snap: Snapshot, at: datetime) -> list[Chip]:
    """What is alive and what waits."""
    alive = [w for w in snap.workers if w.alive]
    busy, slots = sum(w.busy for w in alive), sum(w.slots for w in alive)
    found = [
        Chip(str(len(alive)), unit="alive", glyph="●", tone="good" if alive else "muted"),
        Chip(f"{busy}/{slots}", unit="slots busy"),
        Chip(f"{snap.queue.waiting:,}", unit="waiting", glyph="◷", tone="warn" if snap.queue.waiting else "muted"),
    ]
    if snap.queue.paused_since is not None:
        found.append(Chip("paused", label="queue", tone="warn", glyph="Ⅱ"))
    return [*found, Chip(f"{at:%H:%M:%S}", label="updated", title="UTC")]


def banners(snap: Snapshot) -> None:
    """What keeps everything from going on."""
    said()
    if snap.workers and not any(w.alive for w in snap.workers):
        waits = f"{plural(snap.queue.waiting, 'job')} waiting for one. " if snap.queue.waiting else ""
        note(
            f"{waits}To start one on this machine:",
            title="No worker is alive",
            code=worker_command(data.client().url),
            tone="warn",
        )


def body() -> None:
    """What is drawn at every tick."""
    top = st.container()
    word = st.query_params.get("from", "")
    offset = int(word) if re.fullmatch(r"\d{1,9}", word) else 0
    snap, at, away = data.latest("workers", str(offset), lambda: load(offset))
    with top:
        header("Workers & queue", chips=chips(snap, at))
        if away:
            away_note(away, at)
        banners(snap)
    workers_part(snap, at)
    queue_part(snap, at, offset)
    experiments_part(snap)


live(body)
