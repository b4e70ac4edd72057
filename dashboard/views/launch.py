"""Launch: from a template or a past run to a config, what it would run and cost, and a submission."""

from __future__ import annotations

import streamlit as st

from dashboard import data
from dashboard.components.editor import Draft, editor, typed
from dashboard.components.page import away_note, error_note, header, live, note, section
from dashboard.data import launch as service
from dashboard.drafts import changed_lines
from dashboard.panels.draft import EDITOR, choose_source, current, original, show_changes
from dashboard.panels.plan import Check, check, show_graph, show_names, show_plan
from dashboard.panels.submission import submission
from nanollama.api.errors import ApiError, Unavailable


def body() -> None:
    """Editor on the left; on the right what it would run, and the way to run it."""
    header("Launch", crumb="a config becomes runs")
    draft, began_as, away = read()
    verdict = Check(away=away) if away else check(draft)
    away = away or verdict.away
    if away:
        away_note(away)
    missing = st.session_state.pop("launch missing", None)
    if missing:
        kind, _, name = missing.partition(":")
        text = f"There is no {kind} {name[:200]} on {data.client().url}. Choose another below."
        note(text, title="Nothing to start from", tone="bad")
    left, right = st.columns([0.56, 0.44], gap="medium")
    with left:
        if not away:
            choose_source(draft)
        status, tone = verdict.status
        changed = changed_lines(began_as, draft.text) if began_as is not None else ()
        editor(draft, problems=verdict.problems, changed=changed, status=status, tone=tone, key=EDITOR)
        show_changes(draft, began_as)
        if not away:
            show_graph(draft, verdict.validation.num_runs if verdict.validation is not None else 1)
    with right:
        beside(draft, verdict)
    if bool(away) is not st.session_state.get("launch away", False):
        st.session_state["launch away"] = bool(away)
        st.rerun()


def read() -> tuple[Draft, str | None, Unavailable | None]:
    """The draft, the text that it began as, and why the service could not be asked for more."""
    try:
        draft = current()
        data.templates(), service.recent_runs()  # for the choice above the text; kept for a while
        return draft, original(draft.source) if draft.source else None, None
    except Unavailable as error:
        return typed(EDITOR) or st.session_state.get("launch draft") or Draft(""), None, error


def beside(draft: Draft, verdict: Check) -> None:
    """What the draft would run, and the form; or what to do first."""
    if verdict.away is not None:
        return
    plan = verdict.validation if verdict.valid else None
    try:
        if plan is not None:
            show_plan(plan)
        else:
            section("Plan", "before anything is spent")
            if verdict.problems:
                note("Mend the problems listed under the text; the plan follows by itself.", title="Nothing to run yet")
            else:
                text = "A config says which data, which learner and for how long; with a section “grid” it is a sweep."
                note(text, title="Choose a template or a past run, or paste a config")
        submission(draft, verdict, data.workers())
        if plan is not None:
            show_names(plan)
    except Unavailable as error:
        away_note(error)
    except ApiError as error:
        error_note(error, "Asking the service")


# while the service is away the page asks again by itself; otherwise it has no reason to
live(body, polling=st.session_state.get("launch away", False))
