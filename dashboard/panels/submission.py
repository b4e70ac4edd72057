"""Submitting a draft: the form, the button, and what came of it."""

from __future__ import annotations

import hashlib
import secrets

import streamlit as st

from dashboard.components.editor import Draft
from dashboard.components.order import order, order_form
from dashboard.components.page import note, section
from dashboard.components.table import Cell, Column, Row, table
from dashboard.data import launch as service
from dashboard.panels.plan import Check
from dashboard.wording import plural
from nanollama.api.errors import AlreadySucceeded, ApiError
from nanollama.api.schemas import Worker
from nanollama.spec.base import SpecError

EARLIER_COLUMNS = (Column("name", "this run", "wrap"), Column("run", "was learnt by", "mono"))


def submit(draft: Draft, reuse: str) -> None:
    """Create the runs and go where they can be watched; a refusal is kept to be shown.

    A double click, or a reply that was lost, creates nothing twice: the key stays until there was an answer.
    """
    st.session_state.pop("launch refusal", None)
    st.session_state.pop("launch earlier", None)
    try:
        given = order(draft.text, reuse)
    except SpecError as error:
        st.session_state["launch refusal"] = "\n".join(map(str, error.problems))
        return
    token = st.session_state.setdefault("launch token", secrets.token_hex(16))
    key = hashlib.sha256((token + given.model_dump_json()).encode()).hexdigest()
    try:
        experiment = service.submit(given, key)
    except AlreadySucceeded as error:
        st.session_state["launch earlier"] = (draft.text, error)
        return
    except ApiError as error:
        st.session_state["launch refusal"] = str(error)
        return
    del st.session_state["launch token"]
    service.recent_runs.clear()
    if experiment.num_runs == 1 and experiment.runs:
        st.switch_page("views/run.py", query_params={"run": experiment.runs[0].id})
    st.switch_page("views/runs.py", query_params={"q": f"experiment:{experiment.id}"})


def submission(draft: Draft, verdict: Check, workers: list[Worker]) -> None:
    """The form, the button, and what came of it."""
    section("Submit", "runs are queued; a worker starts them")
    order_form(workers)
    count = max(1, verdict.validation.num_runs) if verdict.validation is not None and verdict.valid else 0
    label = f"Submit {plural(count, 'run')}" if count else "Submit"
    pressed = st.button(label, type="primary", key="submit", disabled=not verdict.valid)
    if pressed and verdict.valid:
        submit(draft, "ask")
    text, earlier = st.session_state.get("launch earlier", ("", None))
    if earlier is not None and text == draft.text:
        show_earlier(draft, earlier)
    refusal = st.session_state.get("launch refusal")
    if refusal:
        note(
            f"{refusal}\nYour text is kept; submitting it again creates nothing twice.",
            title="Submitting failed",
            tone="bad",
        )


def show_earlier(draft: Draft, error: AlreadySucceeded) -> None:
    """Earlier runs have learnt the same: which, and the choice to use them."""
    text = "Use the results that are there, or run everything again? Runs that are not listed are trained either way."
    note(f"{error.detail}. {text}", title="Learnt before", tone="warn")
    rows = []
    for i, problem in enumerate(error.problems):
        words = problem.message.split()
        run_id = words[1] if len(words) > 1 and words[0] == "run" else ""
        link = f"run?run={run_id}" if run_id else ""
        rows.append(
            Row(run_id or str(i), {"name": Cell(problem.path), "run": Cell(run_id or problem.message, href=link)})
        )
    opened = table(EARLIER_COLUMNS, rows, label="Runs that have been learnt before", key="earlier", height=200).opened
    if opened:
        st.switch_page("views/run.py", query_params={"run": opened})
    with st.container(horizontal=True):
        st.button("Use the earlier results", type="primary", key="reuse", on_click=choose_reuse, args=("always",))
        st.button("Run them again", key="rerun", on_click=choose_reuse, args=("never",))
    choice = st.session_state.pop("launch reuse", None)
    if choice is not None:
        submit(draft, choice)


def choose_reuse(choice: str) -> None:
    """Remember what becomes of earlier results, for the run of the page that follows."""
    st.session_state["launch reuse"] = choice
