"""Launch: from a template or a past run to a config, what it would run and cost, and a submission."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, replace

import streamlit as st

from dashboard import data
from dashboard.components.drawing import drawing
from dashboard.components.editor import Draft, editor, typed
from dashboard.components.facts import facts
from dashboard.components.order import fill, filled_from, order, order_form
from dashboard.components.page import away_note, error_note, header, live, note, section
from dashboard.components.table import Cell, Column, Row, table
from dashboard.data import catalogue
from dashboard.data import launch as service
from dashboard.drafts import changed_lines, changes
from dashboard.planning import bound_fact
from dashboard.planning import facts as plan_facts
from dashboard.wording import STATES, plural
from nanollama.api.errors import AlreadySucceeded, ApiError, NotFound, Unavailable
from nanollama.api.schemas import Bound, Estimate, Run, Template, Validation, Worker
from nanollama.spec.base import Problem, SpecError
from nanollama.spec.load import dump_yaml

EDITOR = "editor"
MAX_CHANGES = 200  # rows of the table of changes
SHOWN = 300  # characters of a value in it

CHANGE_COLUMNS = (
    Column("path", "key", "mono"),
    Column("before", "was", "wrap"),
    Column("after", "is", "wrap"),
)
NAME_COLUMNS = (Column("number", "#"), Column("name", "run", "mono"))
EARLIER_COLUMNS = (Column("name", "this run", "wrap"), Column("run", "was learnt by", "mono"))


@dataclass(frozen=True)
class Check:
    """What the service says of a draft: a plan, or problems; or why it could not be asked."""

    validation: Validation | None = None
    problems: tuple[Problem, ...] = ()
    away: Unavailable | None = None

    @property
    def valid(self) -> bool:
        """Whether the draft could be submitted."""
        return self.validation is not None and self.validation.valid

    @property
    def status(self) -> tuple[str, str]:
        """One line, and its tone."""
        if self.away is not None:
            return "Not checked: the service does not answer. What you type is kept.", "bad"
        if self.problems:
            return f"{plural(len(self.problems), 'problem')} · nothing was created", "bad"
        if self.validation is None:
            return "", ""
        digest = (self.validation.config_hash or "")[:12]
        return f"Valid · {plural(max(1, self.validation.num_runs), 'run')} · hash {digest}", "good"


# -- where a draft comes from ----------------------------------------------------------------------------------------


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
        return next((t.yaml for t in service.templates() if t.name == name), None)
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
    templates = {t.name: t for t in service.templates()}
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

    left, right = st.columns(2)
    left.selectbox(
        "Template",
        list(templates),
        format_func=lambda key: _template_label(templates[key]),
        placeholder="Start from a template …",
        key="pick template",
        on_change=pick,
        args=("pick template", "template"),
        help="A config that ships with the project replaces the text below.",
    )
    right.selectbox(
        "Past run",
        list(runs),
        format_func=lambda key: _run_label(runs[key]),
        placeholder="… or from a past run" if runs else "no run yet",
        disabled=not runs,
        key="pick run",
        on_change=pick,
        args=("pick run", "run"),
        help="Its config, tags and resources; what you change is listed below.",
    )


def _template_label(template: Template) -> str:
    return f"{template.name}: {template.summary}"[:160]


def _run_label(run: Run) -> str:
    return f"{STATES[run.state][0]} {run.name[:80]} · {run.id}"


# -- what is thought of it -------------------------------------------------------------------------------------------


def check(draft: Draft) -> Check:
    """Ask the service for every problem of a draft."""
    if not draft.text.strip():
        return Check()
    try:
        validation = service.check(draft.text)
    except Unavailable as error:
        return Check(away=error)
    except ApiError as error:
        return Check(problems=error.problems or (Problem(path="", message=str(error)),))
    return Check(validation, tuple(validation.problems))


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


def known_bound(estimate: Estimate | None) -> Bound | None:
    """The entropy of the draft's graph, when it has been computed before."""
    if estimate is None or estimate.gssm_hash is None:
        return None
    try:
        return catalogue.gssm(estimate.gssm_hash).bound
    except (NotFound, Unavailable):
        return None


def show_plan(validation: Validation) -> None:
    """What a valid draft would run and cost."""
    found = plan_facts(validation)
    if validation.estimate is not None:
        found.append(bound_fact(validation.estimate, known_bound(validation.estimate)))
    section("Plan", "before anything is spent")
    facts(found)
    for remark in validation.notes[:20]:
        note(remark.text, title=remark.path, tone="warn")


def show_graph(draft: Draft, num_runs: int) -> None:
    """The graph that the draft samples from, as soon as it can be read."""
    try:
        svg = service.draft_graph(draft.text) if draft.text.strip() else None
    except ApiError as error:
        error_note(error, "Drawing the graph")
        return
    if svg is not None:
        section("Graph", "of the first run" if num_runs > 1 else "")
        drawing(svg, label="Graph of the draft", key="draft graph")


def show_names(validation: Validation) -> None:
    """The names of a sweep's runs: the first ones, and the last."""
    names, count = validation.names, validation.num_runs
    if count < 2 or not names:
        return
    section(
        "Runs of the sweep", f"the first {len(names)} of {count:,}, and the last" if len(names) < count else "in order"
    )
    listed = list(enumerate(names, 1))
    if len(names) < count and validation.last_run:
        listed.append((count, validation.last_run))
    rows = [Row(str(i), {"number": Cell(f"{i:,}"), "name": Cell(name, title=name)}) for i, name in listed]
    table(NAME_COLUMNS, rows, label="Runs of the sweep", key="names", height=240)


# -- the submission --------------------------------------------------------------------------------------------------


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
    note(f"{error.detail}. Use their results, or run everything again?", title="Learnt before", tone="warn")
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


# -- the page --------------------------------------------------------------------------------------------------------


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
        service.templates(), service.recent_runs()  # for the choice above the text; kept for a while
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
                text = "A config says which data, which learner and for how long; a `grid` in it makes a sweep."
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
