"""The head of a run's page: what it is and how it stands, and what can be done with it."""

from __future__ import annotations

import secrets
from datetime import datetime

import streamlit as st

from dashboard import data
from dashboard.components.page import Chip, attempt_to, error_note, header, note
from dashboard.data import editing
from dashboard.explain import elapsed_seconds, final_result, outcome, remaining_seconds, why_waiting
from dashboard.wording import clock, duration, mnat, number, si
from nanollama.api.errors import ApiError
from nanollama.api.schemas import RunDetail
from nanollama.api.status import RunState

SHOWN_NOTES = 600  # characters
RESOLUTIONS = {
    "INTERRUPTED": ("It was interrupted", "The next attempt goes on from the newest checkpoint."),
    "FAILED": ("It failed", "It ends as failed; a retry opens it again."),
    "CANCELLED": ("It was cancelled", "It ends as cancelled."),
}


def head(run: RunDetail, now: datetime) -> None:
    """Name, state and figures of a run."""
    p, left, elapsed = run.progress, remaining_seconds(run), elapsed_seconds(run, now)
    chips = [
        Chip(f"{p.step:,}", label="step", unit=f"/ {p.total_steps:,}"),
        *([Chip(si(p.tokens), unit="tokens")] if p.tokens else []),
        *([Chip(si(p.tokens_per_second), unit="tokens/s")] if run.state is RunState.RUNNING else []),
        *([Chip(duration(elapsed), label="elapsed", title="from the start to now, or to the end")] if elapsed else []),
        *([Chip(duration(left), label="ETA", title="remaining tokens at the present speed")] if left else []),
    ]
    for value, label, title in (
        (p.loss, "loss", "newest batch, nats per token"),
        (p.bound, "bound", "the true model on that batch, nats per token"),
    ):
        if value is not None:
            chips.append(Chip(number(value), label=label, unit="nats", title=title))
    if p.excess is not None:
        title = "loss − bound on that batch, 10⁻³ nats per token"
        chips.append(Chip(mnat(p.excess), label="excess", unit="mnat", title=title))
    worker = f" · worker {run.worker}" if run.worker else ""
    archived = " · archived" if run.archived else ""
    crumb = f"{run.id}{worker} · attempt {run.attempt}{archived}" + "".join(f" · #{tag}" for tag in run.tags)
    experiment = (run.experiment or run.experiment_id)[:200], f"./?q=experiment:{run.experiment_id}"
    header(run.name, state=run.state, of=experiment, crumb=crumb, chips=chips)
    notes = run.notes.strip()
    if notes:
        note(notes if len(notes) <= SHOWN_NOTES else f"{notes[:SHOWN_NOTES]} … (Edit shows all of it)")


def standing(run: RunDetail) -> None:
    """Why the run waits, or how it ended."""
    end = outcome(run)
    if end is not None:
        note(end.text, title=run.state.value.capitalize(), tone="bad" if run.state is RunState.FAILED else "")
    elif run.unknown_since is not None:
        lost(run, run.unknown_since)
    elif run.state is RunState.SUCCEEDED:
        text = final_result(run)
        if text:
            st.html(f"<div class='n2n-under'>Result: {text}</div>")
    elif run.state is not RunState.RUNNING and not run.cancel_requested:
        advice = why_waiting(run, data.workers(), data.client().url)
        note(advice.text, title="Waiting to start", code=advice.code, tone="warn" if advice.code else "")
    if run.cancel_requested and not run.state.terminal:
        text = "Its worker stops it and reports when it has; that can take a moment."
        note(text, title="Cancel requested", tone="warn")


def lost(run: RunDetail, since: datetime) -> None:
    """A run of which nobody knows, and how somebody who does can say so."""
    text = (
        "Its worker has not reported since then. The run may still be going on; nothing is repeated meanwhile. "
        "If you have made sure that it no longer executes, say how it ended:"
    )
    note(text, title=f"Nothing heard since {clock(since)}", tone="warn")
    with st.container(horizontal=True):
        for to, (label, effect) in RESOLUTIONS.items():
            with st.popover(label, key=f"resolve-{to}"):
                st.html(f"<p>{effect} Should it execute after all, two runs would write to the same place.</p>")
                st.button(
                    "I am sure", key=f"confirm-resolve-{to}", type="primary", on_click=_resolve, args=(run.id, to)
                )


def actions(run: RunDetail) -> None:
    """What can be done with the run."""
    if run.state in (RunState.FAILED, RunState.CANCELLED):
        st.button("Retry", key="retry", help="It goes on from its newest checkpoint.", on_click=_retry, args=(run.id,))
    with st.popover("Edit", key="edit"):
        edit(run)
    if st.button("Clone", key="clone", help="Change its config and submit it as a new run."):
        st.switch_page("views/launch.py", query_params={"clone": run.id})
    if run.state.terminal:
        label = "Restore" if run.archived else "Archive"
        tip = "Lists leave archived runs out; nothing is deleted."
        st.button(label, key="archive", help=tip, on_click=_archive, args=(run.id, not run.archived))
    elif not run.cancel_requested:
        with st.popover("Cancel run", key="cancel"):
            st.html(
                "<p>Stop this run? It is asked to save a checkpoint first; a retry goes on from the newest one.</p>"
            )
            st.button("Yes, cancel it", type="primary", key="confirm-cancel", on_click=_cancel, args=(run.id,))


def edit(run: RunDetail) -> None:
    """Tags, notes and priority. The fields start with what was stored when they were opened."""
    with st.form("edit-run", border=False):
        tags = st.text_input("Tags", ", ".join(run.tags), placeholder="separated by commas", key=f"tags-{run.id}")
        notes = st.text_area("Notes", run.notes, key=f"notes-{run.id}", max_chars=10_000, height=120)
        priority = run.priority
        if not run.state.terminal:
            tip = "higher starts first; counts while it waits, and for later attempts"
            priority = int(st.number_input("Priority", -100, 100, run.priority, key=f"priority-{run.id}", help=tip))
        if not st.form_submit_button("Keep", type="primary"):
            return
    given: dict[str, object] = {}
    if (words := editing.words(tags)) != run.tags:
        given["tags"] = words
    if notes != run.notes:
        given["notes"] = notes
    if priority != run.priority:
        given["priority"] = priority

    def change() -> str:
        editing.change_run(run.id, **given)
        return f"Changed: {', '.join(given)}"

    if given:
        attempt_to("Changing the run", change)
        st.rerun()


def continue_from(run: RunDetail, step: int) -> None:
    """Make a new run whose training starts from a checkpoint of this one."""
    planned = run.progress.total_steps
    st.html("<p>A new run starts with the weights and at the position of this checkpoint. This run stays as it is.</p>")
    tip = f"this run was planned for {planned:,}"
    later = planned if step < planned else 2 * planned
    steps = st.number_input("Steps in total", step + 1, max(later, 10**12), later, key=f"steps-{step}", help=tip)
    name = st.text_input("Name", f"{run.name[:150]}-from-{step}", key=f"name-{step}", max_chars=200)
    if not st.button("Start it", type="primary", key=f"continue-{step}"):
        return
    key = st.session_state.setdefault(f"clone-key {run.id} {step}", secrets.token_hex(16))  # not twice by two clicks
    changes = {"optim.steps": int(steps)} if int(steps) != planned else {}
    try:
        made = editing.clone(run.id, key=f"{key}-{steps}-{name}", name=name, from_checkpoint=step, overrides=changes)
    except ApiError as error:
        error_note(error, "Continuing")
        return
    del st.session_state[f"clone-key {run.id} {step}"]
    st.switch_page("views/run.py", query_params={"run": made.runs[0].id})


def _cancel(run_id: str) -> None:
    def cancel() -> str:
        editing.cancel(run_id)
        return ""

    attempt_to("Cancelling", cancel)


def _retry(run_id: str) -> None:
    def retry() -> str:
        editing.retry(run_id)
        return "Queued again; it goes on from its newest checkpoint."

    attempt_to("Retrying", retry)


def _archive(run_id: str, archived: bool) -> None:
    def archive() -> str:
        editing.change_run(run_id, archived=archived)
        return "Archived; the filter archived:any shows it." if archived else "Taken back from the archive."

    attempt_to("Archiving", archive)


def _resolve(run_id: str, to: str) -> None:
    def resolve() -> str:
        editing.resolve(run_id, to)
        return "Noted."

    attempt_to("Resolving", resolve)
