"""Workers & queue: who is alive and what each holds, who waits and why."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

import streamlit as st

from dashboard import data
from dashboard.components.page import Chip, away_note, header, live, note, said
from dashboard.data import queue as service
from dashboard.explain import worker_command
from dashboard.panels.queue import experiments_of, experiments_part, queue_part
from dashboard.panels.workers import workers_part
from dashboard.wording import plural
from nanollama.api.schemas import Experiment, Queue, Run, Worker


@dataclass(frozen=True)
class Snapshot:
    """What one tick reads."""

    workers: list[Worker]
    held: list[Run]
    queue: Queue
    experiments: dict[str, Experiment]


def load(offset: int) -> Snapshot:
    """Read workers, what they hold, and a page of the queue."""
    queue = service.queue(offset)
    return Snapshot(data.workers(), service.held(), queue, experiments_of(queue))


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
    workers_part(snap.workers, snap.held, at)
    queue_part(snap.queue, snap.experiments, at, offset)
    experiments_part(snap.queue, snap.experiments)


live(body)
