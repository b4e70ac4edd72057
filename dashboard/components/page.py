"""Header, section titles, chips and messages: HTML in which every value is escaped."""

from __future__ import annotations

import html
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import streamlit as st

from dashboard import data
from dashboard.wording import STATE_HELP, STATES
from nanollama.api.errors import ApiError, Unavailable
from nanollama.api.status import RunState

REFRESH = 2.0  # seconds between two ticks of a live view
SAID_SECONDS = 10.0  # for which good news is shown


@dataclass(frozen=True)
class Chip:
    """A number with its name: `label`, then `value` in bold, then `unit`; `glyph` and `tone` as in a state."""

    value: str
    label: str = ""
    unit: str = ""
    glyph: str = ""
    tone: str = ""
    title: str = ""


def header(
    title: str,
    *,
    crumb: str = "",
    of: tuple[str, str] | None = None,
    state: RunState | None = None,
    chips: Sequence[Chip] = (),
) -> None:
    """The head of a page; `of` is what its subject belongs to, a name and the address of its page."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    if state is not None:
        parts.append(badge(state))
    if of is not None:
        name, address = map(html.escape, of)
        parts.append(f"<a class='n2n-of' href='{address}' target='_self'>{name}</a>")
    if crumb:
        parts.append(f"<span class='n2n-crumb'>{html.escape(crumb)}</span>")
    parts.append(f"<div class='n2n-chips'>{''.join(_chip(chip) for chip in chips)}</div>")
    st.html(f"<div class='n2n-head'>{''.join(parts)}</div>")


def badge(state: RunState) -> str:
    """A state as HTML: glyph, word and colour."""
    glyph, tone = STATES[state]
    word = state.value.lower()
    title = html.escape(STATE_HELP.get(state, ""))
    mark = f"<i aria-hidden='true'>{glyph}</i>"
    return f"<span class='n2n-state pill {word} tone-{tone}' title='{title}'>{mark}{word}</span>"


def section(title: str, subtitle: str = "") -> None:
    """The head of a part of a page; in a horizontal container it leaves room beside it."""
    text = f"<h2>{html.escape(title)}</h2><span>{html.escape(subtitle)}</span>"
    st.html(f"<div class='n2n-section'>{text}</div>", width="content")


def note(text: str, *, title: str = "", code: str = "", tone: str = "") -> None:
    """A message: what is so, and what to type about it."""
    parts = [f"<p><strong>{html.escape(title)}</strong></p>"] if title else []
    parts += [f"<p>{html.escape(text)}</p>"] if text else []
    parts += [f"<code>{html.escape(code)}</code>"] if code else []
    role = "alert" if tone == "bad" else "status"
    st.html(f"<div class='n2n-note {tone}' role='{role}'>{''.join(parts)}</div>")


def error_note(error: ApiError, doing: str) -> None:
    """A refusal of the service, in its own words."""
    note(str(error), title=f"{doing} failed", tone="bad")


def away_note(error: Unavailable, since: datetime | None = None) -> None:
    """The service does not answer: which one, and what to do."""
    url = data.client().url
    said = "" if str(error).startswith(f"no answer from {url}") else f"{error}. "
    shown = f"What is shown dates from {since:%H:%M:%S} UTC. " if since else ""
    text = f"{said}{shown}This page tries again every {REFRESH:g} seconds. If the service is not running, start it:"
    note(text, title=f"No answer from {url}", code="n2n up", tone="bad")


@st.fragment(run_every=REFRESH)
def wait_for_service(error: Unavailable) -> None:
    """The page when there is nothing to show yet; it recovers by itself."""
    if data.alive():
        st.rerun()
    away_note(error)


def skeleton(num_lines: int) -> None:
    """Grey lines where a table or a chart will be, while it is being read."""
    lines = "<div></div>" * num_lines
    st.html(f"<div class='n2n-skeleton' role='status' aria-label='Loading'>{lines}</div>")


def say(text: str, *, tone: str = "") -> None:
    """Remember what became of an action, for `said` to show in place of what became of the one before."""
    until = math.inf if tone == "bad" else time.monotonic() + SAID_SECONDS
    st.session_state["said"] = text, tone, until


def said() -> None:
    """What became of the last action: for a while when it went well, until the next one when it did not."""
    text, tone, until = st.session_state.get("said", ("", "", 0.0))
    if text and time.monotonic() < until:
        note(text, tone=tone)


def attempt_to(doing: str, action: Callable[[], str]) -> None:
    """Do what somebody asked for and remember what to say about it: what it returns, or why it was refused."""
    try:
        say(action(), tone="good")
    except ApiError as error:
        say(f"{doing} failed: {error}", tone="bad")


def live(body: Callable[[], None], *, polling: bool = True) -> None:
    """Draw a part of the page that is drawn again at every tick, as long as `polling`."""

    @st.fragment(run_every=REFRESH if polling else None)
    def tick() -> None:
        try:
            body()
        except Unavailable as error:
            away_note(error)
        except ApiError as error:
            error_note(error, "Reading from the service")

    tick()


def _chip(chip: Chip) -> str:
    glyph = f"<i class='tone-{chip.tone}' aria-hidden='true'>{chip.glyph}</i>" if chip.glyph else ""
    label = f"<span>{html.escape(chip.label)}</span>" if chip.label else ""
    unit = f"<span>{html.escape(chip.unit)}</span>" if chip.unit else ""
    value = f"<b>{html.escape(chip.value)}</b>"
    return f"<span class='n2n-chip' title='{html.escape(chip.title)}'>{glyph}{label}{value}{unit}</span>"
