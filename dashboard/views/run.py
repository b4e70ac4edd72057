"""Run: one learner against its bound, and everything that is known about it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import streamlit as st
import yaml
from streamlit.delta_generator import DeltaGenerator

from dashboard import data
from dashboard.charts.curves import Chart, entropy_label, excess_chart, loss_chart, small_chart
from dashboard.components.log import log
from dashboard.components.page import Chip, away_note, error_note, header, live, note, section
from dashboard.components.plot import plot
from dashboard.components.table import Cell, Column, Row, table
from dashboard.data import editing
from dashboard.explain import elapsed_seconds, final_result, outcome, remaining_seconds, repeat_commands, why_waiting
from dashboard.figure import Axis, XKind
from dashboard.wording import DASH, clock, duration, mnat, number, plural, si, size
from nanollama.api.errors import ApiError, NotFound
from nanollama.api.schemas import Checkpoint, Event, LogTail, Metrics, RunDetail
from nanollama.api.status import RunState

LIVE_POINTS, FINAL_POINTS = 500, 1000  # of one series
MAX_ROWS, TABLE_HEIGHT = 200, 220  # of a table; pixels, beyond which it scrolls
SMALL = (
    ("tokens_per_second", "Throughput", "tokens/s"),
    ("lr", "Learning rate", ""),
    ("grad_norm", "Gradient norm", ""),
)

CHECKPOINT_COLUMNS = (
    Column("step", "step", "number"),
    Column("size", "size", "number"),
    Column("attempt", "attempt", "number", minor=True),
    Column("created", "created", minor=True),
    Column("digest", "digest", "mono", help="SHA-256 of the checkpoint's manifest"),
    Column("path", "path", "mono clip", help="on the worker's file system"),
)
EVENT_COLUMNS = (
    Column("at", "at (UTC)", minor=True),
    Column("attempt", "attempt", "number", minor=True),
    Column("what", "what"),
    Column("step", "step", "number"),
    Column("message", "message", "wrap"),
)


@dataclass(frozen=True)
class Snapshot:
    """What one tick reads. `curves` are spaced as the axis is, `excess` always evenly in log step."""

    run: RunDetail
    curves: Metrics
    excess: Metrics
    checkpoints: list[Checkpoint]
    events: list[Event]


def load(run_id: str, log_x: bool) -> Snapshot:
    """Read a run and its series."""
    run = data.run(run_id)
    points = FINAL_POINTS if run.state.terminal else LIVE_POINTS
    keys = ("loss", "bound", "excess", *(key for key, _, _ in SMALL))
    curves = data.metrics(run_id, keys, points, log_x)
    excess = curves if log_x else data.metrics(run_id, ("excess",), points, True)
    return Snapshot(run, curves, excess, data.checkpoints(run_id), data.events(run_id))


def head(run: RunDetail, now: datetime) -> None:
    """Name, state and figures of a run, and how to stop it."""
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
    crumb = f"{run.id}{worker} · attempt {run.attempt}" + "".join(f" · #{tag}" for tag in run.tags)
    header(run.name, state=run.state, crumb=crumb, chips=chips)


def cancel_control(run: RunDetail) -> None:
    """The way to stop a run, with a question first: it cannot be undone."""
    if run.state.terminal:
        return
    if run.cancel_requested:
        note(
            "Its worker stops it and reports when it has; that can take a moment.",
            title="Cancel requested",
            tone="warn",
        )
        return
    with st.popover("Cancel run"):
        st.html("<p>Stop this run for good? This can't be undone. Its checkpoints and metrics stay.</p>")
        st.button("Yes, cancel it", type="primary", key="confirm-cancel", on_click=_cancel, args=(run.id,))
    refusal = st.session_state.pop("cancel-refused", None)
    if refusal is not None:
        error_note(refusal, "Cancelling")


def _cancel(run_id: str) -> None:
    try:
        editing.cancel(run_id)
    except ApiError as error:
        st.session_state["cancel-refused"] = error


def standing(run: RunDetail) -> None:
    """Why the run waits, or how it ended."""
    end = outcome(run)
    if end is not None:
        note(end.text, title=run.state.value.capitalize(), tone="bad" if run.state is RunState.FAILED else "")
    elif run.unknown_since is not None:
        text = "Its worker has not reported since then. The run may still be going on; nothing is repeated meanwhile."
        note(text, title=f"Nothing heard since {clock(run.unknown_since)}", tone="warn")
    elif run.state is RunState.SUCCEEDED:
        text = final_result(run)
        if text:
            st.html(f"<div class='n2n-under'>Result: {text}</div>")
    elif run.state is not RunState.RUNNING and not run.cancel_requested:
        advice = why_waiting(run, data.workers(), data.client().url)
        note(advice.text, title="Waiting to start", code=advice.code, tone="warn" if advice.code else "")


def controls(run: RunDetail, keys: list[str]) -> tuple[XKind, bool]:
    """What is counted, and whether the raw loss is drawn, in the URL; and on the right the way to stop the run."""
    kind: str = "step"
    view: str = "noise-free"
    side: Literal["distribute", "right"] = "distribute" if keys else "right"
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment=side):
        if keys:
            with st.container(horizontal=True, vertical_alignment="center", width="content"):
                kind = _choice("Horizontal axis", "x", ["step", "tokens"])
                if "excess" in keys:
                    view = _choice("Loss", "loss", ["noise-free", "raw batches"])
                st.toggle("log x", value=True, key="logx", bind="query-params")
        cancel_control(run)
    return ("tokens" if kind == "tokens" else "step"), view == "raw batches"


def _choice(label: str, key: str, options: list[str]) -> str:
    chosen = st.segmented_control(
        label, options, default=options[0], required=True, key=key, bind="query-params", label_visibility="collapsed"
    )
    return chosen or options[0]


def charts(snap: Snapshot, kind: XKind, log_x: bool, raw: bool) -> None:
    """The curves of a run."""
    run, p, keys = snap.run, snap.run.progress, snap.curves.keys
    end = float(p.total_steps) if kind == "step" else p.total_steps * p.tokens / p.step if p.step else None
    axis = Axis(kind, log_x, end)
    running = run.state is RunState.RUNNING
    bounded = "bound" in keys and "excess" in keys
    left, right = st.columns([0.58, 0.42], gap="medium")
    with left:
        section("Loss", _loss_subtitle(snap.curves, bounded, raw))
        plot(loss_chart(snap.curves, axis, snap.checkpoints, raw=raw, running=running), f"loss-{run.id}")
    with right:
        section("Excess", "loss − bound on the same tokens · log–log" if bounded else "")
        if bounded:
            plot(excess_chart(snap.excess, axis, snap.checkpoints, running=running), f"excess-{run.id}")
        else:
            note("Nothing to subtract: the metrics of this run carry no bound.", title="No excess")
    shown = [item for item in SMALL if item[0] in keys]
    for column, (key, title, unit) in zip(st.columns(max(1, len(shown)), gap="medium"), shown, strict=False):
        with column:
            section(title, unit)
            chart: Chart = small_chart(snap.curves, axis, key, title, from_zero=key != "lr")
            plot(chart, f"{key}-{run.id}")


def _loss_subtitle(curves: Metrics, bounded: bool, raw: bool) -> str:
    if not bounded:
        return "nats/token · no exact bound for this data, so none is drawn"
    what = "loss of each batch" if raw else "entropy + paired excess"
    return f"{what} · dashed: entropy of the data, {entropy_label(curves) or DASH}"


def tables(snap: Snapshot) -> None:
    """Checkpoints and events, the newest first."""
    run_id = snap.run.id
    kept = sum(not c.removed for c in snap.checkpoints)
    section("Checkpoints", f"{kept:,} on disk" if snap.checkpoints else "none yet")
    if snap.checkpoints:
        rows = [_checkpoint_row(c) for c in reversed(snap.checkpoints[-MAX_ROWS:])]
        label = "Checkpoints, newest first"
        table(CHECKPOINT_COLUMNS, rows, label=label, key=f"checkpoints-{run_id}", height=TABLE_HEIGHT)
    shown = snap.events[-MAX_ROWS:]
    cut = f"newest {MAX_ROWS} of {len(snap.events):,}" if len(shown) < len(snap.events) else ""
    section("Events", cut or plural(len(shown), "event"))
    if shown:
        rows = [_event_row(e) for e in reversed(shown)]
        table(EVENT_COLUMNS, rows, label="Events, newest first", key=f"events-{run_id}", height=TABLE_HEIGHT)


def _checkpoint_row(c: Checkpoint) -> Row:
    cells = {
        "step": Cell(f"{c.step:,}"),
        "size": Cell(size(c.size_bytes)),
        "attempt": Cell(str(c.attempt)),
        "created": Cell(f"{c.created_at:%H:%M:%S}", title=clock(c.created_at)),
        "digest": Cell(c.digest.removeprefix("sha256:")[:12], title=c.digest),
        "path": Cell("…/" + "/".join(c.path.split("/")[-2:]), title=c.path + (" (removed since)" if c.removed else "")),
    }
    return Row(f"{c.attempt}/{c.step}", cells, faded=c.removed)


def _event_row(e: Event) -> Row:
    what = e.kind.replace("_", " ")
    if e.to_state:
        what = " → ".join(state.lower() for state in (e.from_state, e.to_state) if state)
    cells = {
        "at": Cell(f"{e.at:%H:%M:%S}", title=clock(e.at)),
        "attempt": Cell(DASH if e.attempt is None else str(e.attempt)),
        "what": Cell(what),
        "step": Cell("" if e.step is None else f"{e.step:,}"),
        "message": Cell((e.message or "")[:2000]),
    }
    return Row(str(e.id), cells)


def log_tail(run: RunDetail) -> None:
    """The end of a log, with a choice of attempt and stream."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        title = st.container(width="content")
        tail = _read_log(run, st.container(width="content", horizontal=True))
    with title:
        cut = f"last {size(tail.length - tail.offset)} of {size(tail.length)}" if tail and tail.offset else ""
        section("Log", cut if tail and tail.length else "nothing written yet")
    if tail is not None and tail.length:
        log(tail.text, label=f"End of {tail.name}", key=f"log-{run.id}")


def _read_log(run: RunDetail, place: DeltaGenerator) -> LogTail | None:
    try:
        attempt: int | None = None
        if run.attempt > 1:
            attempts = list(range(run.attempt, 0, -1))
            attempt = place.selectbox(
                "Attempt",
                attempts,
                format_func="attempt {}".format,
                key="attempt",
                width=120,
                label_visibility="collapsed",
            )
        tail = data.logs(run.id, attempt, None)
        if len(tail.streams) < 2:
            return tail
        first = tail.streams.index(tail.name) if tail.name in tail.streams else 0
        stream = place.selectbox(
            "Stream", tail.streams, index=first, key="stream", width=180, label_visibility="collapsed"
        )
        return data.logs(run.id, attempt, stream)
    except NotFound:
        return None


def config(run: RunDetail) -> None:
    """The config, and how to train it again."""
    text = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
    file_name = f"{run.id}.yaml"
    left, right = st.columns([0.58, 0.42], gap="medium")
    with left:
        section("Config", f"resolved · hash {run.config_hash[:12]}")
        st.code(text, language="yaml", wrap_lines=True)
    with right:
        section("To repeat this run", "the config holds everything, seeds included")
        st.code(repeat_commands(run.config, file_name), language="bash", wrap_lines=True)
        with st.container(horizontal=True):
            st.download_button(
                "Download the config", text, file_name=file_name, mime="application/yaml", on_click="ignore"
            )
            if st.button("Open it in Launch"):
                st.session_state["draft"] = text
                st.switch_page("views/launch.py")


def body(run_id: str, polling: bool) -> None:
    """What is drawn at every tick."""
    top = st.container()
    # the switch itself comes later on the page; until it has been drawn once, only the URL knows its value
    log_x = bool(st.session_state.get("logx", st.query_params.get("logx") != "false"))
    snap, at, away = data.latest("run", f"{run_id} {log_x}", lambda: load(run_id, log_x))
    run = snap.run
    if polling and run.state.terminal:
        st.rerun()
    with top:
        if away:
            away_note(away, at)
        head(run, at)
        standing(run)
    kind, raw = controls(run, snap.curves.keys)
    if snap.curves.keys:
        charts(snap, kind, log_x, raw)
    elif run.state is RunState.RUNNING:
        note("The first metric line comes with the first steps.", title="No metrics yet")
    left, right = st.columns([0.58, 0.42], gap="medium")
    with left:
        log_tail(run)
    with right:
        tables(snap)


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
    live(lambda: body(run.id, polling), polling=polling)
    config(run)


page()
