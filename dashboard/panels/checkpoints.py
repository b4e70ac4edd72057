"""The checkpoints of a run: which there are, and what can be done with the one that is chosen."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from dashboard import data
from dashboard.components.page import attempt_to, section
from dashboard.components.source import source
from dashboard.components.table import Cell, Column, Row, table
from dashboard.data import editing
from dashboard.panels.run_head import continue_from
from dashboard.wording import clock, mnat, number, size
from nanollama.api.schemas import Checkpoint, RunDetail

MAX_ROWS, HEIGHT = 200, 220
DOWNLOADED_HERE = 500_000_000  # bytes; what is larger does not go through the page, which keeps it in memory

COLUMNS = (
    Column("step", "step", "number"),
    Column("loss", "eval loss", "number", help="on held-out sequences, nats per token"),
    Column("excess", "eval excess", "number", help="over the bound on the same tokens, 10⁻³ nats per token"),
    Column("size", "size", "number"),
    Column("kept", "kept"),
    Column("attempt", "attempt", "number", minor=True),
    Column("created", "created", minor=True),
    Column("digest", "digest", "mono", minor=True, help="SHA-256 of the checkpoint's manifest"),
    Column("path", "path", "mono clip", minor=True, help="on the worker's file system"),
)
PENDING = {"pin": "to be pinned", "unpin": "to be unpinned", "delete": "to be deleted"}


def chosen_step(run_id: str) -> int | None:
    """Step of the checkpoint that is chosen."""
    step = st.session_state.get(f"checkpoint-of {run_id}")
    return step if isinstance(step, int) else None


def choose(run_id: str, step: str | None) -> None:
    """Choose the checkpoint of a step. Choosing it again changes nothing, however often the browser says so."""
    if step is not None and step.isdecimal() and int(step) != chosen_step(run_id):
        st.session_state[f"checkpoint-of {run_id}"] = int(step)
        st.rerun()


def checkpoints(run: RunDetail, found: Sequence[Checkpoint]) -> None:
    """The table, and below it the chosen one."""
    kept = sum(not c.removed for c in found)
    hint = " · press one, or its mark on a curve" if kept else ""
    section("Checkpoints", f"{kept:,} on disk{hint}" if found else "none yet")
    if not found:
        return
    step = chosen_step(run.id)
    rows = [_row(c, marked=c.step == step and not c.removed) for c in reversed(found[-MAX_ROWS:])]
    label = "Checkpoints, newest first"
    reply = table(COLUMNS, rows, label=label, key=f"checkpoints-{run.id}", height=HEIGHT, pick=True)
    choose(run.id, reply.picked.rpartition("/")[2] if reply.picked else None)
    chosen = next((c for c in found if c.step == step and not c.removed), None)
    if chosen is not None:
        _actions(run, chosen)


def _row(c: Checkpoint, *, marked: bool) -> Row:
    if c.pending:
        kept, tone = PENDING[c.pending], "warn"
    elif c.removed:
        kept, tone = "removed", "muted"
    else:
        kept, tone = ("pinned", "good") if c.pinned else ("", "")
    cells = {
        "step": Cell(f"{c.step:,}"),
        "loss": Cell("" if c.evaluation_loss is None else number(c.evaluation_loss)),
        "excess": Cell("" if c.evaluation_excess is None else mnat(c.evaluation_excess)),
        "size": Cell(size(c.size_bytes)),
        "kept": Cell(kept, tone=tone, glyph="⚲" if kept == "pinned" else ""),
        "attempt": Cell(str(c.attempt)),
        "created": Cell(f"{c.created_at:%H:%M:%S}", title=clock(c.created_at)),
        "digest": Cell(c.digest.removeprefix("sha256:")[:12], title=c.digest),
        "path": Cell("…/" + "/".join(c.path.split("/")[-2:]), title=c.path + (" (removed since)" if c.removed else "")),
    }
    return Row(f"{c.attempt}/{c.step}", cells, faded=c.removed, marked=marked)


def _actions(run: RunDetail, c: Checkpoint) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.html(f"<span class='n2n-crumb'>step <b>{c.step:,}</b></span>", width="content")
        with st.popover("Continue from here", key="continue"):
            continue_from(run, c.step)
        label = "Unpin" if c.pinned else "Pin"
        tip = "Training never removes what is pinned."
        st.button(label, key="pin", help=tip, on_click=_pin, args=(run.id, c.step, not c.pinned))
        if c.size_bytes <= DOWNLOADED_HERE:
            st.download_button(
                "Download",
                lambda: editing.checkpoint_archive(run.id, c.step),
                file_name=f"{run.id}-{c.step}.tar",
                mime="application/x-tar",
                on_click="ignore",
                key="download",
            )
        else:
            with st.popover("Download", key="download-large"):
                st.html(f"<p>{size(c.size_bytes)} are too much for the page. Fetch it from the service:</p>")
                path = f"/api/v1/runs/{run.id}/checkpoints/{c.step}/archive"
                command = f"curl -o {run.id}-{c.step}.tar {data.client().url}{path}"
                source(command, label="The command that fetches it", key=f"fetch-{run.id}")
        with st.popover("Delete", key="delete", disabled=bool(c.pinned) or not run.state.terminal):
            st.html(f"<p>Delete the checkpoint of step {c.step:,} for good? This can't be undone.</p>")
            st.button("Yes, delete it", type="primary", key="confirm-delete", on_click=_delete, args=(run.id, c.step))
        st.button("Close", key="let-go", type="tertiary", on_click=_let_go, args=(run.id,))


def _let_go(run_id: str) -> None:
    st.session_state[f"checkpoint-of {run_id}"] = None


def _pin(run_id: str, step: int, pinned: bool) -> None:
    def pin() -> str:
        changed = editing.pin(run_id, step, pinned=pinned)
        if changed.pending:
            return "A worker of the run's pool does it at its next report."
        return "Pinned." if pinned else "No longer pinned."

    attempt_to("Pinning" if pinned else "Unpinning", pin)


def _delete(run_id: str, step: int) -> None:
    def delete() -> str:
        changed = editing.delete_checkpoint(run_id, step)
        return "A worker of the run's pool deletes it at its next report." if changed.pending else "Deleted."

    attempt_to("Deleting", delete)
