"""Workers: who is alive, what each has and holds, and to drain one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import streamlit as st

from dashboard import data
from dashboard.components.facts import facts
from dashboard.components.page import attempt_to, note, section
from dashboard.components.table import Cell, Column, Row, table
from dashboard.data import queue as service
from dashboard.explain import worker_command
from dashboard.planning import Fact
from dashboard.wording import STATES, ago, clock, plural
from nanollama.api.schemas import Run, Worker

TABLE_HEIGHT = 420  # pixels beyond which a table scrolls

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


def workers_part(workers: Sequence[Worker], held: Sequence[Run], now: datetime) -> None:
    """The table of workers, and the one that is chosen."""
    alive = sum(w.alive for w in workers)
    section("Workers", f"{alive:,} of {len(workers):,} alive" if workers else "")
    if not workers:
        text = "A worker executes runs: on this machine, or by a cluster's scheduler. To start one here:"
        note(text, title="No worker has ever registered", code=worker_command(data.client().url))
        return
    # of a single worker there is nothing to choose
    chosen = st.query_params.get("worker") or (workers[0].id if len(workers) == 1 else None)
    rows = [worker_row(w, [r for r in held if r.worker == w.name], now, marked=w.id == chosen) for w in workers]
    reply = table(WORKER_COLUMNS, rows, label="Workers", key="workers", height=TABLE_HEIGHT, pick=True)
    if reply.picked and reply.picked != chosen:
        st.query_params["worker"] = reply.picked
        st.rerun(scope="fragment")
    worker = next((w for w in workers if w.id == chosen), None)
    if worker is not None:
        one_worker(worker, [r for r in held if r.worker == worker.name], now)
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
