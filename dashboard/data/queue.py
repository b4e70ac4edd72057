"""What Workers & queue asks the service, and what it has it do."""

from __future__ import annotations

import streamlit as st

from dashboard import data
from nanollama.api import schemas
from nanollama.api.errors import NotFound

TTL = 1.0  # seconds
SHOWN_JOBS, SHOWN_HELD = 200, 500
HELD = ("LEASED", "SUBMITTED", "RUNNING")
EVERY_APP = 'app!=""'  # naming the field brings in the jobs that compute bounds, which lists leave out


@st.cache_data(ttl=TTL, show_spinner=False, max_entries=16)
def queue(offset: int) -> schemas.Queue:
    """Jobs that wait, in the order of claims."""
    return data.client().queue(limit=SHOWN_JOBS, offset=offset)


@st.cache_data(ttl=TTL, show_spinner=False)
def held() -> list[schemas.Run]:
    """The runs that workers hold; those that compute bounds too."""
    return data.client().runs(state=list(HELD), filter=EVERY_APP, limit=SHOWN_HELD).items


@st.cache_data(ttl=5, show_spinner=False, max_entries=256)
def experiment(experiment_id: str) -> schemas.Experiment | None:
    """The experiment that a job belongs to; None where it is not shown to anybody."""
    try:
        return data.client().experiment(experiment_id)
    except NotFound:
        return None


def drain(worker_id: str, *, draining: bool) -> schemas.Worker:
    """Let a worker take nothing more, or take jobs again."""
    client = data.client()
    worker = client.drain_worker(worker_id) if draining else client.resume_worker(worker_id)
    _forget()
    return worker


def pause_queue(*, paused: bool) -> None:
    """Lease nothing more to anybody, or lease again."""
    client = data.client()
    if paused:
        client.pause_queue()
    else:
        client.resume_queue()
    _forget()


def pause_experiment(experiment_id: str, *, paused: bool) -> schemas.Experiment:
    """Lease none of an experiment's runs, or lease them again."""
    client = data.client()
    experiment = client.pause(experiment_id) if paused else client.resume(experiment_id)
    _forget()
    return experiment


def prioritise(run_id: str, priority: int) -> schemas.Run:
    """Change the priority of a job that waits."""
    run = data.client().change_run(run_id, schemas.RunPatch(priority=priority))
    _forget()
    return run


def cancel(run_ids: list[str]) -> int:
    """Ask for jobs to stop; those that wait have then ended. How many that made a difference to."""
    changed = data.client().cancel_runs(schemas.RunSelection(ids=run_ids)).changed
    _forget()
    return len(changed)


def _forget() -> None:
    """Ask again at the next look: what was done has to be seen at once."""
    queue.clear()
    held.clear()
    experiment.clear()
    data.workers.clear()
