"""Launch: write a config, see every problem in it, submit it."""

from __future__ import annotations

import hashlib
import json
import secrets

import streamlit as st

from dashboard import data
from dashboard.components.page import error_note, header, note, section
from dashboard.components.table import Cell, Column, Row, table
from dashboard.explain import graph, summary
from dashboard.wording import plural
from nanollama.api.errors import ApiError, InvalidRequest
from nanollama.api.schemas import Template, Validation
from nanollama.spec.base import Problem

PROBLEM_COLUMNS = (
    Column("line", "line", "number"),
    Column("path", "place", "mono"),
    Column("message", "problem", "wrap"),
    Column("remedy", "remedy", "wrap"),
)
NODE_COLUMNS = (
    Column("name", "node"),
    Column("states", "states", "number"),
    Column("alpha", "alpha", "number", help="concentration of the Dirichlet that the node's kernels are drawn from"),
    Column("mode", "mode", minor=True),
    Column("kernel", "kernel", minor=True),
    Column("parents", "parents", "wrap"),
)


def show_problems(problems: list[Problem]) -> None:
    """Every problem of a config."""
    section("Problems", f"{plural(len(problems), 'problem')} · nothing was created")
    rows = [
        Row(
            str(i),
            {
                "line": Cell("" if p.line is None else str(p.line)),
                "path": Cell(p.path[:200] or "config"),
                "message": Cell(p.message[:2000], tone="bad"),
                "remedy": Cell((p.remedy or "")[:2000]),
            },
        )
        for i, p in enumerate(problems)
    ]
    table(PROBLEM_COLUMNS, rows, label="Problems of the config", key="problems")


def show_plan(validation: Validation) -> None:
    """What a valid config would run."""
    config = validation.config or {}
    facts = ", ".join(f"{name}: {value}" for name, value in summary(config))
    note(facts, title=f"Valid · hash {(validation.config_hash or '')[:12]}", tone="good")
    nodes = graph(config)
    if not nodes:
        return
    section("Graph", f"{plural(len(nodes), 'node')} · states, and what each node depends on")
    rows = [
        Row(
            str(i),
            {
                "name": Cell(str(n.get("name")) + (" (observed)" if n.get("observed") else "")),
                "states": Cell(str(n.get("state_dim"))),
                "alpha": Cell(f"{n.get('alpha'):g}"),
                "mode": Cell(str(n.get("mode"))),
                "kernel": Cell(str(n.get("kernel_type"))),
                "parents": Cell(", ".join(map(str, n.get("parents") or [])) or "none"),
            },
        )
        for i, n in enumerate(nodes)
    ]
    table(NODE_COLUMNS, rows, label="Nodes of the graph", key="nodes")


def choose_template(templates: list[Template]) -> None:
    """Fill the editor from a template."""
    by_name = {template.name: template for template in templates}

    def fill() -> None:
        chosen = by_name.get(st.session_state["template"] or "")
        if chosen is not None:
            st.session_state["spec"] = st.session_state["draft"] = chosen.yaml

    st.selectbox(
        "Template",
        list(by_name),
        index=None,
        format_func=lambda name: f"{name}: {by_name[name].summary}"[:160],
        placeholder="Start from a template …",
        key="template",
        on_change=fill,
        help="Replaces the text below.",
    )


def editor() -> tuple[str, str, list[str], int, str]:
    """The form: text, name, tags, priority, and the button that was pressed, if any."""
    st.session_state.setdefault("spec", st.session_state.get("draft", ""))
    with st.form("launch", border=False, enter_to_submit=False):
        text = st.text_area(
            "Config (YAML)", key="spec", height=460, placeholder="Choose a template, or paste a config."
        )
        left, middle, right = st.columns([0.4, 0.35, 0.25])
        name = left.text_input("Name", key="name", max_chars=200, placeholder="orchestration.name")
        tags = middle.text_input("Tags", key="tags", placeholder="separated by commas")
        priority = right.number_input("Priority", -100, 100, 0, key="priority", help="higher runs first")
        with st.container(horizontal=True):
            validate = st.form_submit_button("Validate")
            submit = st.form_submit_button("Submit", type="primary")
    st.session_state["draft"] = text
    words = [word.strip() for word in tags.split(",")]
    pressed = "submit" if submit else "validate" if validate else ""
    return text, name.strip(), [word for word in words if word], int(priority), pressed


def submit(text: str, name: str, tags: list[str], priority: int) -> None:
    """Create the run and go to its page. A double click, or a reply that was lost, creates nothing twice."""
    token = st.session_state.setdefault("submission", secrets.token_hex(16))
    content = json.dumps([token, text, name, tags, priority])
    key = hashlib.sha256(content.encode()).hexdigest()
    experiment = data.submit(text, name=name or None, tags=tags, priority=priority, key=key)
    del st.session_state["submission"]
    st.switch_page("views/run.py", query_params={"run": experiment.runs[0].id})


def act(text: str, name: str, tags: list[str], priority: int, pressed: str) -> None:
    """Do what was asked for; whatever the service refuses is shown in its words."""
    try:
        validation = data.validate(text)
        if not validation.valid:
            show_problems(validation.problems)
        elif pressed == "submit":
            submit(text, name, tags, priority)
        else:
            show_plan(validation)
    except InvalidRequest as error:
        if error.problems:
            show_problems(list(error.problems))
        else:
            error_note(error, "Asking the service")
    except ApiError as error:
        error_note(error, "Asking the service")


def page() -> None:
    """The editor, and under it what the service says."""
    header("Launch", crumb="a config becomes a run")
    left, right = st.columns([0.58, 0.42], gap="medium")
    with left:
        choose_template(data.templates())
        text, name, tags, priority, pressed = editor()
    with right:
        if not pressed:
            section("Check", "every problem at once, before anything is created")
            note("Validate shows what the config would run. Submit validates first, then queues the run.")
        elif not text.strip():
            note("Choose a template or write a config.", title="Nothing to read yet", tone="warn")
        else:
            act(text, name, tags, priority, pressed)


page()
