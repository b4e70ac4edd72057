"""Run: one learner against its bound, and everything that is known about it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import streamlit as st
import yaml

from dashboard import data
from dashboard.components.drawing import drawing
from dashboard.components.page import away_note, header, live, note, said, section, skeleton
from dashboard.components.plot import expect_plots
from dashboard.components.shortcuts import Shortcut, shortcuts
from dashboard.components.source import source
from dashboard.data import editing
from dashboard.data.launch import draft_graph
from dashboard.data.shared import steady
from dashboard.explain import graph, repeat_commands
from dashboard.panels.checkpoints import checkpoints
from dashboard.panels.history import attempts, events
from dashboard.panels.run_charts import Curves, View, charts, evaluation_charts, load_curves
from dashboard.panels.run_head import actions, head, standing
from dashboard.panels.run_log import log_tail
from dashboard.wording import plural
from nanollama.api.errors import NotFound
from nanollama.api.schemas import Attempt, Checkpoint, Event, RunDetail
from nanollama.api.status import RunState

KEYS = (
    Shortcut("j", "next checkpoint; Enter chooses it", "next row", ".n2n-table"),
    Shortcut("k", "checkpoint before", "previous row", ".n2n-table"),
    Shortcut("/", "search in the log", "focus", 'input[aria-label="Search in the log"]'),
    Shortcut("e", "edit tags and notes", "press", ".st-key-edit button"),
)


@dataclass(frozen=True)
class Snapshot:
    """What one tick reads."""

    run: RunDetail
    curves: Curves
    checkpoints: list[Checkpoint]
    events: list[Event]
    attempts: list[Attempt]


def load(run_id: str, view: View) -> Snapshot:
    """Read a run and its series."""
    run = data.run(run_id)
    curves = load_curves(run, view)
    saved = steady(("checkpoints", run_id), data.checkpoints(run_id))
    return Snapshot(run, curves, saved, data.events(run_id), data.attempts(run_id))


def view_of() -> View:
    """How the curves are looked at. The switches come later on the page; until they are drawn, only the URL knows."""
    state, asked = st.session_state, st.query_params
    log_x = bool(state.get("logx", asked.get("logx") != "false"))
    kind = state.get("x") or asked.get("x")
    raw = (state.get("loss") or asked.get("loss")) == "raw batches"
    return View("tokens" if kind == "tokens" else "step", log_x, raw)


def controls(run: RunDetail, keys: list[str]) -> None:
    """What is counted, and whether the raw loss is drawn, in the URL; and on the right what can be done."""
    side: Literal["distribute", "right"] = "distribute" if keys else "right"
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment=side):
        if keys:
            with st.container(horizontal=True, vertical_alignment="center", width="content"):
                _choice("Horizontal axis", "x", ["step", "tokens"])
                if "excess" in keys:
                    _choice("Loss", "loss", ["noise-free", "raw batches"])
                st.toggle("log x", value=True, key="logx", bind="query-params")
        with st.container(horizontal=True, vertical_alignment="center", width="content"):
            actions(run)
            shortcuts(KEYS, key="keys")


def _choice(label: str, key: str, options: list[str]) -> None:
    st.segmented_control(
        label, options, default=options[0], required=True, key=key, bind="query-params", label_visibility="collapsed"
    )


def config(run: RunDetail) -> None:
    """The config, and how to train it again."""
    text = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
    file_name = f"{run.id}.yaml"
    left, right = st.columns([0.58, 0.42], gap="medium")
    with left:
        section("Config", f"resolved · hash {run.config_hash[:12]}")
        source(text, label="The resolved config", key=f"config-{run.id}", yaml=True, height=560)
    with right:
        section("To repeat this run", "the config holds everything, seeds included")
        source(repeat_commands(run.config, file_name), label="Commands to repeat this run", key=f"repeat-{run.id}")
        with st.container(horizontal=True):
            st.download_button(
                "Download the config", text, file_name=file_name, mime="application/yaml", on_click="ignore"
            )
            st.download_button(
                "Download everything",
                lambda: editing.run_archive(run.id),
                file_name=f"{run.id}.tar.gz",
                mime="application/gzip",
                on_click="ignore",
                help="Config, metrics, events and logs as one archive that another service can import; no checkpoints.",
            )
        nodes = graph(run.config)
        svg = draft_graph(text) if nodes else None
        if svg:
            section("Graph", f"{plural(len(nodes), 'node')}; the observed one gives the sequences")
            drawing(svg, label=f"Graph of {plural(len(nodes), 'node')}", key=f"graph-{run.id}", height=400)


def body(run_id: str, polling: bool) -> None:
    """What is drawn at every tick."""
    top = st.container()
    view = view_of()
    subject = f"{run_id} {view}"
    waiting = st.empty()
    if not data.known("run", run_id):
        with waiting:
            skeleton(10)
    snap, at, away = data.latest("run", subject, lambda: load(run_id, view))
    waiting.empty()
    run = snap.run
    if polling is run.state.terminal:  # it has ended, or was opened again: the page polls or no longer does
        st.rerun()
    with top:
        if away:
            away_note(away, at)
        head(run, at)
        said()
        standing(run)
    keys = snap.curves.even.keys
    controls(run, keys)
    if keys:
        charts(run, snap.curves, view, snap.checkpoints)
    elif run.state is RunState.RUNNING:
        note("The first metric line comes with the first steps.", title="No metrics yet")
    evaluation_charts(run, snap.curves.evaluations, at)
    left, right = st.columns([0.5, 0.5], gap="medium")
    with left:
        log_tail(run)
    with right:
        checkpoints(run, snap.checkpoints)
        events(run.id, snap.events)
    attempts(run.id, snap.attempts, at)


def page() -> None:
    """The run that the URL names."""
    run_id = st.query_params.get("run", "")
    try:
        run = data.run(run_id) if re.fullmatch(r"[0-9A-Za-z_-]{1,32}", run_id) else None
    except NotFound:
        run = None
    if run is None:
        header("Run")
        text = f"There is no run {run_id[:200]} on {data.client().url}." if run_id else "The address names no run."
        note(text, title="No such run", tone="bad")
        st.page_link("views/runs.py", label="All runs", icon=":material/arrow_back:")
        return
    st.set_page_config(page_title=f"{run.name[:60]} · Nodes to Narratives")
    polling = not run.state.terminal
    expect_plots()
    live(lambda: body(run.id, polling), polling=polling)
    config(run)


page()
