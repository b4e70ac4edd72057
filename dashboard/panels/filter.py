"""What the list of runs shows: a filter, states, an order and a page of it, all of them in the address."""

from __future__ import annotations

import html
from dataclasses import dataclass

import streamlit as st

from dashboard.components.page import note
from nanollama.api.filters import FilterError, parse_filter
from nanollama.api.status import RunState
from nanollama.spec.base import SpecError

PRESETS = (
    ("Running now", "state:running"),
    ("Waiting to start", "state:queued,leased,submitted"),
    ("Failed in the last day", "state:failed finished>1d"),
    ("Within 0.02 nats of the bound", "excess<0.02"),
    ("Large learning rates", "optim.lr>1e-3"),
    ("Started today, not tagged old", "started>1d -tag:old"),
    ("Archived", "archived:true"),
)
"""Filters with names; each shows a feature of the language."""

LANGUAGE = (
    ("words", "base exp2", "in the name, the id or a tag"),
    ("a field", "state:running tag:exp2", "also name, id, experiment, app, worker, reason"),
    ("the config", "optim.lr>1e-3 data.seed:3", "any key with its dots"),
    ("a measure", "excess<0.02 min.loss<2", "newest value, or min. and max. of it"),
    ("a moment", "created>2d finished>2026-01-31", "later than that: an age or a date"),
    ("either, not", "state:failed,cancelled -tag:old", "a comma is or, a minus is not"),
)

_CONTEXT = 60  # characters shown before and after the place of an error


@dataclass(frozen=True)
class Query:
    """What is asked for.

    Attributes:
        text: the filter as it was typed.
        condition: the filter that the service is asked for.
        states: only runs in these; all when empty.
        sort: as the service has it; newest first when empty.
        cursor: of the page; the first one when absent.
        error: why the filter cannot be read.
    """

    text: str
    condition: str
    states: tuple[str, ...]
    sort: str
    cursor: str | None
    error: SpecError | None

    @property
    def whole(self) -> str:
        """A filter that matches what is listed on all pages."""
        states = f"state:{','.join(state.lower() for state in self.states)}" if self.states else ""
        return " ".join(filter(None, [self.condition, states])) or "archived:false"


def query() -> Query:
    """Draw the fields and read them."""
    with st.container(horizontal=True, vertical_alignment="center"):
        text = st.text_input(
            "Filter",
            key="q",
            bind="query-params",
            placeholder="Filter: a word, state:running, optim.lr>1e-3, excess<0.02 …",
            label_visibility="collapsed",
            icon=":material/search:",
            on_change=to_newest,
            width=430,
        )
        with st.popover("Filters", icon=":material/filter_list:"):
            _presets()
        states = st.pills(
            "State",
            [state.value.lower() for state in RunState],
            selection_mode="multi",
            key="state",
            bind="query-params",
            label_visibility="collapsed",
            on_change=to_newest,
        )
    text = (text or "").strip()
    condition, error = _condition(text, archived=bool(st.session_state.get("archived")))
    chosen = tuple(sorted(state.upper() for state in states))
    sort = st.query_params.get("sort", "")[:300]
    return Query(text, condition, chosen, sort, st.query_params.get("cursor"), error)


def explain_error(text: str, error: SpecError) -> None:
    """Where the filter cannot be read, why, and how to write it."""
    problem = error.problems[0]
    note(problem.remedy or "", title=problem.message, tone="bad")
    if isinstance(error, FilterError):
        at = min(error.position, len(text))
        start = max(0, at - _CONTEXT)
        before = ("…" if start else "") + text[start:at]
        wrong, _, after = text[at:].partition(" ")
        marked = html.escape(wrong[:_CONTEXT]) or "&nbsp;"
        st.html(
            f"<div class='n2n-place' tabindex='0' role='region' aria-label='The filter'>{html.escape(before)}"
            f"<mark>{marked}</mark> {html.escape(after[:_CONTEXT])}</div>"
        )
    _language()


def sort_by(key: str) -> None:
    """Change the order, from the first page on."""
    if key:
        st.query_params["sort"] = key
    else:
        st.query_params.pop("sort", None)
    to_newest()


def turn(cursor: str | None) -> None:
    """Go to the next page, or with None back by one."""
    trail: list[str | None] = st.session_state.setdefault("trail", [])
    if cursor is not None:
        trail.append(st.query_params.get("cursor"))
        st.query_params["cursor"] = cursor
        return
    before = trail.pop() if trail else None
    if before is None:
        to_newest()
    else:
        st.query_params["cursor"] = before


def to_newest() -> None:
    """Go to the first page."""
    st.session_state["trail"] = []
    st.query_params.pop("cursor", None)


def use(text: str) -> None:
    """Filter by this."""
    st.session_state["q"] = text
    to_newest()


def _condition(text: str, *, archived: bool) -> tuple[str, SpecError | None]:
    try:
        terms = parse_filter(text)
    except SpecError as error:
        return "", error
    if archived and not any(term.name == "archived" for term in terms):
        return f"{text} archived:any".strip(), None
    return text, None


def _presets() -> None:
    for name, text in PRESETS:
        st.button(name, help=f"`{text}`", key=f"preset {name}", on_click=use, args=(text,), width="stretch")
    st.toggle(
        "Archived ones too",
        key="archived",
        bind="query-params",
        on_change=to_newest,
        help="Lists leave archived runs out.",
    )
    _language()


def _language() -> None:
    rows = "".join(
        f"<dt>{html.escape(what)}</dt><dd><code>{html.escape(example)}</code> {html.escape(says)}</dd>"
        for what, example, says in LANGUAGE
    )
    st.html(f"<dl class='n2n-language'>{rows}</dl>")
