"""What the page knows: the only caller of the API client, with answers kept for about a second."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import TypeVar

import streamlit as st

from nanollama.api import schemas
from nanollama.api.client import Client
from nanollama.api.errors import Unavailable

TTL = 1.0  # seconds; below the refresh period, so that every viewer's tick sees news but viewers share answers
T = TypeVar("T")


@st.cache_resource
def client() -> Client:
    """The one client of this process. Few retries: a live page asks again by itself."""
    return Client(timeout=5.0, retries=1)


@st.cache_data(ttl=TTL, show_spinner=False, max_entries=256)
def runs(condition: str, states: tuple[str, ...], sort: str, limit: int, cursor: str | None) -> schemas.RunPage:
    """A page of runs that meet a condition of the filter language; newest first unless sorted."""
    return client().runs(
        state=list(states) or None, filter=condition or None, sort=sort or None, limit=limit, cursor=cursor
    )


@st.cache_data(ttl=TTL, show_spinner=False, max_entries=256)
def run(run_id: str) -> schemas.RunDetail:
    """One run."""
    return client().run(run_id)


@st.cache_data(ttl=TTL, show_spinner=False, max_entries=64)
def metrics(
    run_id: str,
    keys: tuple[str, ...],
    max_points: int,
    log_x: bool,
    *,
    x: str = "step",
    window: tuple[float, float] | None = None,
) -> schemas.Metrics:
    """Series of a run; with a window only the points between two values of `x`."""
    low, high = window or (None, None)
    return client().metrics(run_id, list(keys), max_points=max_points, log_x=log_x, x=x, x_min=low, x_max=high)


@st.cache_data(ttl=TTL, show_spinner=False, max_entries=256)
def checkpoints(run_id: str) -> list[schemas.Checkpoint]:
    """Checkpoints of a run, by step."""
    return client().checkpoints(run_id)


@st.cache_data(ttl=TTL, show_spinner=False, max_entries=256)
def events(run_id: str) -> list[schemas.Event]:
    """What happened to a run, oldest first."""
    return client().events(run_id)


@st.cache_data(ttl=TTL, show_spinner=False, max_entries=256)
def attempts(run_id: str) -> list[schemas.Attempt]:
    """The attempts of a run, oldest first."""
    return client().attempts(run_id)


@st.cache_data(ttl=TTL, show_spinner=False, max_entries=256)
def evaluations(run_id: str) -> list[schemas.Evaluation]:
    """What the learner of a run was worth on held-out sequences, by step."""
    return client().evaluations(run_id)


@st.cache_data(ttl=TTL, show_spinner=False, max_entries=64)
def logs(run_id: str, attempt: int | None, stream: str | None, tail_bytes: int = 65536) -> schemas.LogTail:
    """The end of a log."""
    return client().logs(run_id, attempt=attempt, stream=stream, tail_bytes=tail_bytes)


@st.cache_data(ttl=TTL, show_spinner=False)
def workers() -> list[schemas.Worker]:
    """Every worker that has registered."""
    return client().workers()


@st.cache_data(ttl=60, show_spinner=False)
def templates() -> list[schemas.Template]:
    """Configs that ship with the project."""
    return client().templates()


def alive() -> bool:
    """Whether the service answers."""
    try:
        client().health()
    except Unavailable:
        return False
    return True


def known(view: str, subject: str) -> bool:
    """Whether `latest` has an answer already, for a subject that begins so."""
    kept = st.session_state.get("latest", {})
    return view in kept and kept[view][0].startswith(subject)


def latest(view: str, subject: str, load: Callable[[], T]) -> tuple[T, datetime, Unavailable | None]:
    """What `load` returns now or, while the service is away, what it returned last for the same subject.

    Args:
        view: where it is shown; the session keeps one answer per view.
        subject: what was asked for, for example a run's id.
        load: reads from the service.

    Returns:
        The answer, the moment it dates from, and why there is no newer one.

    Raises:
        Unavailable: the service is away and there was no answer yet.
    """
    kept: dict[str, tuple[str, T, datetime]] = st.session_state.setdefault("latest", {})
    away: Unavailable | None = None
    try:
        kept[view] = subject, load(), datetime.now(timezone.utc)
    except Unavailable as error:
        if view not in kept or kept[view][0] != subject:
            raise
        away = error
    _, value, at = kept[view]
    return value, at, away
