"""Data: the graphs that are known, their entropies, the sets on disk, and who uses them."""

from __future__ import annotations

import re
from datetime import datetime

import streamlit as st

from dashboard import data
from dashboard.charts.catalogue import position_chart
from dashboard.components.drawing import drawing
from dashboard.components.facts import facts
from dashboard.components.page import Chip, attempt_to, away_note, header, live, note, said, section
from dashboard.components.plot import plot
from dashboard.components.source import source
from dashboard.components.table import Cell, Column, Row, table
from dashboard.data import catalogue as service
from dashboard.planning import Fact, entropy_text
from dashboard.wording import DASH, STATES, ago, clock, mnat, number, plural, si, size
from nanollama.api.errors import NotFound
from nanollama.api.schemas import GSSM, Bound, Dataset, GSSMDetail, Run
from nanollama.spec.yaml_text import dump_yaml

TABLE_HEIGHT = 300  # pixels beyond which a table scrolls

GSSM_COLUMNS = (
    Column("name", "graph", "name"),
    Column("entropy", "entropy, nats", "number", help="of a token given all before it: what no learner can beat"),
    Column("bound", "bound"),
    Column("latents", "latents", "number", minor=True),
    Column("states", "joint states", "number", help="over which exact inference goes", minor=True),
    Column("vocab", "symbols", "number", minor=True),
    Column("length", "length", "number", help="tokens of a sequence", minor=True),
    Column("seed", "seed", "number", help="of the kernels", minor=True),
    Column("runs", "runs", "number"),
    Column("created", "known since", minor=True),
    Column("hash", "hash", "mono", help="of the graph and the seed of its kernels", minor=True),
)
RUN_COLUMNS = (
    Column("name", "run", "name"),
    Column("state", "state"),
    Column("excess", "excess, mnat", "number", help="loss − bound of the newest batch"),
    Column("created", "created", minor=True),
)
SET_COLUMNS = (
    Column("path", "set", "wrap"),
    Column("sequences", "sequences", "number"),
    Column("length", "length", "number", minor=True),
    Column("vocab", "symbols", "number", minor=True),
    Column("size", "size", "number", minor=True),
    Column("entropy", "entropy, nats", "number"),
    Column("gssm", "graph", "mono"),
    Column("runs", "runs", "number"),
    Column("there", "on disk", minor=True),
)
BOUNDS = {
    "none": ("not computed", "○", "muted"),
    "queued": ("queued", *STATES["QUEUED"]),
    "running": ("computing", *STATES["RUNNING"]),
    "done": ("exact", *STATES["SUCCEEDED"]),
    "inexact": ("not exact", "≈", "warn"),
    "failed": ("failed", *STATES["FAILED"]),
}
"""Word, glyph and tone of how far the bound of a graph is."""


def bound_cell(bound: Bound) -> Cell:
    """How far the bound of a graph is."""
    word, glyph, tone = BOUNDS.get(bound.state, (bound.state, "", ""))
    return Cell(word, glyph=glyph, tone=tone, title=(bound.reason or "")[:2000])


# -- graphs ----------------------------------------------------------------------------------------------------------


def gssm_row(gssm: GSSM, now: datetime, *, marked: bool) -> Row:
    """A graph as a row."""
    cells = {
        "name": Cell(gssm.name, title=", ".join(gssm.nodes)[:2000]),
        "entropy": Cell(entropy_text(gssm.bound)),
        "bound": bound_cell(gssm.bound),
        "latents": Cell(f"{gssm.num_latents:,}"),
        "states": Cell(si(gssm.joint_states), title=f"{gssm.joint_states:,}"),
        "vocab": Cell(f"{gssm.vocab:,}"),
        "length": Cell(f"{gssm.seq_len:,}"),
        "seed": Cell(str(gssm.seed)),
        "runs": Cell(f"{gssm.num_runs:,}"),
        "created": Cell(ago(gssm.created_at, now), title=clock(gssm.created_at)),
        "hash": Cell(gssm.hash[:12], title=gssm.hash),
    }
    return Row(gssm.hash, cells, marked=marked)


def choose(content_hash: str) -> None:
    """Show a graph below the table; the address keeps it."""
    st.query_params["gssm"] = content_hash


def compute(content_hash: str) -> None:
    """Queue the computation of a bound."""

    def act() -> str:
        bound = service.compute_bound(content_hash).bound
        return "The computation is queued; a worker takes it." if bound.state == "queued" else ""

    attempt_to("Asking for the bound", act)


def bound_part(gssm: GSSMDetail) -> None:
    """The entropy of a graph, or how to have it computed."""
    bound = gssm.bound
    if bound.state in ("none", "failed"):
        if bound.state == "failed":
            note(bound.reason or "Its log says why.", title="The computation failed", tone="bad")
        else:
            note(
                "A worker computes it once for this graph; every run that samples from it is then measured against it."
            )
        label = "Compute the bound" if bound.state == "none" else "Try again"
        st.button(label, type="primary", key="compute", on_click=compute, args=(gssm.hash,))
    elif bound.state in ("queued", "running"):
        what = "It waits for a worker." if bound.state == "queued" else "A worker is computing it."
        note(f"{what} This page shows it as soon as it is there.", title=f"Bound {BOUNDS[bound.state][0]}")
    else:
        if bound.state == "inexact":
            text = bound.reason or "Its exact value is out of reach."
            note(text, title="The entropy is known from both sides only", tone="warn")
        if bound.seq_len is not None and bound.seq_len < gssm.seq_len:
            text = f"It is known for {bound.seq_len:,} tokens; per token it changes with the length."
            note(text, title=f"A config has asked for sequences of {gssm.seq_len:,} tokens since", tone="warn")
            label = f"Compute it for {gssm.seq_len:,} tokens"
            st.button(label, type="primary", key="compute", on_click=compute, args=(gssm.hash,))
    if bound.run_id is not None:
        verb = "computes" if bound.state in ("queued", "running") else "computed"
        st.page_link("views/run.py", label=f"The job that {verb} it", query_params={"run": bound.run_id})


def gssm_facts(gssm: GSSMDetail) -> list[Fact]:
    """What is known of a graph."""
    bound = gssm.bound
    found = []
    if bound.entropy is not None:
        of = f"over {plural(bound.num_sequences, 'sequence')}" if bound.num_sequences else ""
        of += f" of {bound.seq_len:,} tokens" if bound.seq_len and of else ""
        exact = bound.state != "inexact"
        found.append(Fact("Entropy", f"{entropy_text(bound)} nats/token", of, "good" if exact else "warn"))
        if bound.method:
            found.append(Fact("Method", bound.method))
    states = f"{gssm.joint_states:,} joint states"
    found.append(Fact("Nodes", ", ".join(gssm.nodes)[:400], f"{plural(gssm.num_latents, 'latent')} with {states}"))
    found.append(Fact("Tokens", f"{gssm.vocab:,} symbols", f"in sequences of {gssm.seq_len:,}"))
    found.append(Fact("Kernels", f"seed {gssm.seed}", f"hash {gssm.hash[:12]}"))
    return found


def one_gssm(gssm: GSSMDetail, now: datetime) -> None:
    """A graph: its picture, its entropy, its runs."""
    left, right = st.columns([0.44, 0.56], gap="medium")
    with left:
        section(gssm.name[:200], f"{plural(gssm.num_latents, 'latent')} and an observed node")
        drawing(service.picture(gssm.hash), label=f"Graph of {gssm.name[:100]}", key=f"graph-{gssm.hash}")
        facts(gssm_facts(gssm))
        with st.expander("Config of the data"):
            text = dump_yaml({"data": gssm.config})
            source(text, label="Config of the data", key=f"config-{gssm.hash}", yaml=True)
    with right:
        curve = gssm.by_position
        section("Entropy by position", "of a token given all before it · band: 95 %" if curve else "")
        if curve:
            shown = position_chart(curve.positions, curve.entropy, curve.entropy_stderr, gssm.bound.entropy)
            plot(shown, f"position-{gssm.hash}")
        bound_part(gssm)
        section("Runs on it", f"newest {len(gssm.runs)} of {gssm.num_runs:,}" if gssm.num_runs > len(gssm.runs) else "")
        if not gssm.runs:
            note("No run has sampled from it yet.")
            return
        rows = [run_row(run, now) for run in gssm.runs]
        reply = table(RUN_COLUMNS, rows, label="Runs on this graph", key=f"runs-{gssm.hash}", height=TABLE_HEIGHT)
        if reply.opened:
            st.switch_page("views/run.py", query_params={"run": reply.opened})


def run_row(run: Run, now: datetime) -> Row:
    """A run that used a graph."""
    glyph, tone = STATES[run.state]
    cells = {
        "name": Cell(run.name, title=f"{run.name[:200]} · {run.id}", href=f"run?run={run.id}"),
        "state": Cell(run.state.value.lower(), glyph=glyph, tone=tone),
        "excess": Cell(mnat(run.progress.excess)),
        "created": Cell(ago(run.created_at, now), title=clock(run.created_at)),
    }
    return Row(run.id, cells)


def gssms_part(items: list[GSSM], now: datetime, *, more: bool) -> None:
    """The table of graphs, and the one that is chosen; the newest where none is."""
    section("Graphs", f"the newest {len(items):,}" if more else f"{plural(len(items), 'graph')} known")
    wanted = st.query_params.get("gssm", "")
    chosen = next((g.hash for g in items if wanted and g.hash.startswith(wanted)), wanted or items[0].hash)
    rows = [gssm_row(g, now, marked=g.hash == chosen) for g in items]
    reply = table(GSSM_COLUMNS, rows, label="Graphs, newest first", key="gssms", height=TABLE_HEIGHT, pick=True)
    if reply.picked and reply.picked != chosen:
        choose(reply.picked)
        st.rerun(scope="fragment")
    try:
        gssm = service.gssm(chosen) if re.fullmatch(r"[0-9a-f]{8,64}", chosen) else None
    except NotFound:
        gssm = None
    if gssm is None:
        note(f"There is no graph {chosen[:100]}; choose one above.", title="No such graph", tone="bad")
        return
    one_gssm(gssm, now)


# -- sets on disk ----------------------------------------------------------------------------------------------------


def set_row(number_of: int, each: Dataset) -> Row:
    """A set of sequences as a row."""
    there = {True: Cell("yes", glyph="✓", tone="good"), False: Cell("gone", glyph="✕", tone="bad")}
    error = "" if each.entropy_stderr is None else f" ± {number(each.entropy_stderr)}"
    cells = {
        "path": Cell(each.path[:500], title="" if each.pool is None else f"pool {each.pool[:200]}"),
        "sequences": Cell(DASH if each.num_sequences is None else f"{each.num_sequences:,}"),
        "length": Cell(DASH if each.seq_len is None else f"{each.seq_len:,}"),
        "vocab": Cell(DASH if each.vocab is None else f"{each.vocab:,}"),
        "size": Cell(DASH if each.size_bytes is None else size(each.size_bytes)),
        "entropy": Cell(DASH if each.entropy is None else number(each.entropy) + error),
        "gssm": Cell(
            each.gssm_hash[:12] if each.gssm_hash else DASH,
            title=each.gssm_hash or "",
            href=f"data?gssm={each.gssm_hash}" if each.gssm_hash else "",
        ),
        "runs": Cell(f"{each.num_runs:,}"),
        "there": Cell("unknown", tone="muted") if each.present is None else there[each.present],
    }
    return Row(f"{each.gssm_hash or ''} {number_of}", cells)


def sets_part(sets: list[Dataset]) -> None:
    """Sets of sequences on disk."""
    section("Sets on disk", plural(len(sets), "set") if sets else "")
    if not sets:
        text = "Runs sample their sequences on the fly. To train on the same sequences again and again, write a set:"
        code = "python -m nanollama.apps.gssm.data config=configs/gssm/data.yaml"
        note(text, title="No set is known", code=code)
        return
    rows = [set_row(i, each) for i, each in enumerate(sets)]
    opened = table(SET_COLUMNS, rows, label="Sets on disk", key="sets", height=TABLE_HEIGHT).opened
    if opened and opened.split(" ")[0]:
        choose(opened.split(" ")[0])
        st.rerun(scope="fragment")


# -- the page --------------------------------------------------------------------------------------------------------


def nothing() -> None:
    """What a graph is, and how the first one comes here."""
    note(
        "A graph describes a language: latent states that move, and symbols that they emit. Its entropy is known, so "
        "every learner can be measured against what no learner can beat. The first run that you launch brings its "
        "graph here:",
        title="No graph is known yet",
        code="n2n submit configs/gssm/debug.yaml",
    )
    if st.button("Write a config and launch it", type="primary", key="launch"):
        st.switch_page("views/launch.py", query_params={"template": "debug"})


def body() -> None:
    """What is drawn at every tick."""
    top = st.container()
    (page, sets), at, away = data.latest("data", "", lambda: (service.gssms(), service.datasets()))
    with top:
        known = sum(g.bound.entropy is not None for g in page.items)
        chips = [
            Chip(f"{len(page.items):,}", unit="graph" if len(page.items) == 1 else "graphs"),
            Chip(f"{known:,}", unit="with entropy", glyph="✓", tone="good"),
            Chip(f"{len(sets):,}", unit="set" if len(sets) == 1 else "sets"),
        ]
        header("Data", crumb="languages whose entropy is known", chips=chips if page.items or sets else ())
        if away:
            away_note(away, at)
        said()
    if page.items:
        gssms_part(page.items, at, more=page.next_cursor is not None)
    else:
        nothing()
    if page.items or sets:
        sets_part(sets)


live(body)
