"""The draft of Launch: the template or the past run that it begins as, what was typed, and what differs."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from dashboard import data
from dashboard.components.editor import Draft, typed
from dashboard.components.order import fill, filled_from
from dashboard.components.page import section
from dashboard.components.table import Cell, Column, Row, table
from dashboard.data import launch as service
from dashboard.drafts import changes
from dashboard.wording import STATES, plural
from nanollama.api.schemas import Run, Template
from nanollama.spec.yaml_text import dump_yaml

EDITOR = "editor"
MAX_CHANGES = 200  # rows of the table of changes
SHOWN = 300  # characters of a value in it

CHANGE_COLUMNS = (
    Column("path", "key", "mono"),
    Column("before", "was", "wrap"),
    Column("after", "is", "wrap"),
)


def address() -> str:
    """The source that the URL names: "template:debug", "run:<id>", or nothing."""
    name, run_id = st.query_params.get("template", ""), st.query_params.get("clone", "")
    return f"run:{run_id[:64]}" if run_id else f"template:{name[:200]}" if name else ""


def start_from(source: str) -> None:
    """Put a source's text into the editor, and its name into the address."""
    kind, _, name = source.partition(":")
    for key in ("template", "clone"):
        st.query_params.pop(key, None)
    if name:
        st.query_params["template" if kind == "template" else "clone"] = name
    st.session_state["launch address"] = None


def original(source: str) -> str | None:
    """The text of a source; None when there is none of this name."""
    kind, _, name = source.partition(":")
    if kind == "template":
        return next((t.yaml for t in data.templates() if t.name == name), None)
    run = service.origin_run(name) if kind == "run" else None
    return None if run is None else dump_yaml(run.config)


def current() -> Draft:
    """The draft: what the address names when that is new, otherwise what was typed last."""
    known = st.session_state.get("launch draft")
    draft: Draft = known or Draft("")
    wanted = address()
    if wanted and wanted != st.session_state.get("launch address"):
        text = original(wanted)
        if text is None:
            st.session_state["launch missing"] = wanted
        else:
            if draft.text.strip() and draft.text != (original(draft.source) if draft.source else None):
                st.session_state["launch replaced"] = draft
            draft = Draft(text, wanted, draft.version + 1 if known else 0)
            if wanted.startswith("run:"):
                fill_from_run(wanted.partition(":")[2])
    elif not wanted and draft.source:  # the address without a source means the draft of before: it says so again
        start_from(draft.source)
        wanted = address()
    st.session_state["launch address"] = wanted
    said = typed(EDITOR)
    if said is not None and said.version == draft.version:
        if said.source not in (draft.source, wanted):  # a draft that the browser had kept
            start_from(said.source)
            st.session_state["launch address"] = said.source
        draft = said
    st.session_state["launch draft"] = draft
    return draft


def fill_from_run(run_id: str) -> None:
    """Let the form say what the run had, but for what the address says."""
    run = service.origin_run(run_id)
    if run is None:
        return
    values = {"tags": ", ".join(run.tags), "priority": run.priority or None, "retries": run.retries}
    values |= filled_from(service.origin_resources(run.experiment_id))
    fill({key: value for key, value in values.items() if key not in st.query_params})


def put_back(draft: Draft) -> None:
    """Bring back a text that was replaced."""
    now: Draft = st.session_state["launch draft"]
    start_from(draft.source)
    st.session_state["launch address"] = draft.source
    st.session_state["launch draft"] = replace(draft, version=now.version + 1)
    st.session_state.pop("launch replaced", None)


def choose_source(draft: Draft) -> None:
    """Templates and past runs to begin with."""
    templates = {t.name: t for t in data.templates()}
    runs = {r.id: r for r in service.recent_runs()}
    kind, _, name = draft.source.partition(":")
    st.session_state["pick template"] = name if kind == "template" and name in templates else None
    if kind == "run" and name not in runs:
        origin = service.origin_run(name)
        runs |= {} if origin is None else {name: origin}
    st.session_state["pick run"] = name if kind == "run" and name in runs else None

    def pick(key: str, prefix: str) -> None:
        chosen = st.session_state[key]
        if chosen:
            start_from(f"{prefix}:{chosen}")

    columns = st.columns(2 if runs else 1)  # a choice among no runs is none
    columns[0].selectbox(
        "Template",
        list(templates),
        format_func=lambda key: _template_label(templates[key]),
        placeholder="Start from a template …",
        key="pick template",
        on_change=pick,
        args=("pick template", "template"),
        help="A config that ships with the project replaces the text below.",
    )
    if not runs:
        return
    columns[1].selectbox(
        "Past run",
        list(runs),
        format_func=lambda key: _run_label(runs[key]),
        placeholder="… or from a past run",
        key="pick run",
        on_change=pick,
        args=("pick run", "run"),
        help="Its config, tags and resources; what you change is listed below.",
    )


def _template_label(template: Template) -> str:
    return f"{template.name}: {template.summary}"[:160]


def _run_label(run: Run) -> str:
    return f"{STATES[run.state][0]} {run.name[:80]} · {run.id}"


def show_changes(draft: Draft, began_as: str | None) -> None:
    """The keys that differ from the template or the run, and the way back to it."""
    replaced: Draft | None = st.session_state.get("launch replaced")
    differs = began_as is not None and began_as != draft.text
    if replaced is not None or differs:
        with st.container(horizontal=True):
            if differs:
                st.button("Reset", key="reset", on_click=start_from, args=(draft.source,), help="undo every change")
            if replaced is not None:
                st.button(
                    "Bring back what I had",
                    key="put back",
                    on_click=put_back,
                    args=(replaced,),
                    help="the text that stood here before, with your changes",
                )
    if began_as is None or not differs:
        return
    kind, _, name = draft.source.partition(":")
    found = changes(began_as, draft.text)
    if found is None:
        return
    section("Changes", f"{plural(len(found), 'key')} not as in {kind} {name[:80]}" if found else "of comments only")
    rows = [
        Row(
            c.path,
            {
                "path": Cell(c.path[:SHOWN]),
                "before": Cell("absent", tone="muted") if c.before is None else Cell(c.before[:SHOWN]),
                "after": Cell("removed", tone="bad") if c.after is None else Cell(c.after[:SHOWN], tone="good"),
            },
        )
        for c in found[:MAX_CHANGES]
    ]
    if rows:
        table(CHANGE_COLUMNS, rows, label="Changes to the config", key="changes", height=260)
