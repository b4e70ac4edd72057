"""The end of a run's log, with a choice of attempt and stream, and a search in it."""

from __future__ import annotations

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from dashboard import data
from dashboard.components.log import log, plain
from dashboard.components.page import section
from dashboard.wording import plural, size
from nanollama.api.errors import NotFound
from nanollama.api.schemas import LogTail, RunDetail

SEARCHED = 1_000_000  # bytes from the end


def log_tail(run: RunDetail) -> None:
    """The end of a log."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        title = st.container(width="content")
        place = st.container(width="content", horizontal=True)
        tail, sought = _read(run, place)
    text = plain(tail.text) if tail else ""
    said = "nothing written yet"
    if tail and tail.length:
        said = f"last {size(tail.length - tail.offset)} of {size(tail.length)}" if tail.offset else ""
        if sought:
            text, count = matching(text, sought)
            said = f"{plural(count, 'line')} with it" + (f" in the {said}" if said else "")
    with title:
        section("Log", said)
    if tail is None or not tail.length:
        return
    log(text, label=f"Lines of {tail.name} with the words" if sought else f"End of {tail.name}", key=f"log-{run.id}")


def matching(text: str, sought: str) -> tuple[str, int]:
    """The lines with some words in them, whatever their case, each with its number; and how many there are."""
    words = sought.casefold()
    lines = text.split("\n")
    width = len(str(len(lines)))
    found = [f"{i:>{width}}  {line}" for i, line in enumerate(lines, 1) if words in line.casefold()]
    return "\n".join(found), len(found)


def _read(run: RunDetail, place: DeltaGenerator) -> tuple[LogTail | None, str]:
    sought = place.text_input(
        "Search in the log",
        key="sought",
        placeholder="Search",
        label_visibility="collapsed",
        icon=":material/search:",
        width=180,
    )
    sought = (sought or "").strip()[:200]
    tail_bytes = SEARCHED if sought else 65536
    try:
        attempt: int | None = None
        if run.attempt > 1:
            attempt = place.selectbox(
                "Attempt",
                list(range(run.attempt, 0, -1)),
                format_func="attempt {}".format,
                key="attempt",
                width=120,
                label_visibility="collapsed",
            )
        tail = data.logs(run.id, attempt, None, tail_bytes)
        if len(tail.streams) < 2:
            return tail, sought
        first = tail.streams.index(tail.name) if tail.name in tail.streams else 0
        stream = place.selectbox(
            "Stream", tail.streams, index=first, key="stream", width=180, label_visibility="collapsed"
        )
        return data.logs(run.id, attempt, stream, tail_bytes), sought
    except NotFound:
        return None, sought
