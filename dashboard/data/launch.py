"""What Launch asks the service: configs to start from, what it thinks of a draft, and to run it."""

from __future__ import annotations

import streamlit as st

from dashboard import data
from nanollama.api import schemas
from nanollama.api.errors import InvalidRequest, NotFound, TooLarge

RECENT = 200  # runs that are offered to be started from


@st.cache_data(ttl=5, show_spinner=False)
def recent_runs() -> list[schemas.Run]:
    """The newest runs, for a choice among them."""
    return data.client().runs(limit=RECENT).items


@st.cache_data(ttl=60, show_spinner=False, max_entries=256)
def origin_run(run_id: str) -> schemas.RunDetail | None:
    """The run that a draft began as; None where there is none."""
    try:
        return data.client().run(run_id)
    except NotFound:
        return None


@st.cache_data(ttl=60, show_spinner=False, max_entries=256)
def origin_resources(experiment_id: str) -> schemas.Resources:
    """What the runs of an experiment need; nothing where it is gone."""
    try:
        return data.client().experiment(experiment_id).resources
    except NotFound:
        return schemas.Resources()


@st.cache_data(ttl=60, show_spinner=False, max_entries=64)
def check(yaml: str) -> schemas.Validation:
    """Every problem of a draft, or what it would run and cost."""
    return data.client().validate(yaml=yaml)


@st.cache_data(ttl=600, show_spinner=False, max_entries=64)
def draft_graph(yaml: str) -> str | None:
    """The graph of a draft as SVG, whatever else is wrong with it; None where it describes no graph."""
    try:
        return data.client().draft_graph(yaml=yaml)
    except (InvalidRequest, TooLarge):
        return None


def submit(order: schemas.ExperimentCreate, key: str) -> schemas.Experiment:
    """Create an experiment; repeating a key creates nothing new."""
    return data.client().submit(
        yaml=order.yaml,
        name=order.name,
        notes=order.notes,
        tags=order.tags,
        priority=order.priority,
        resources=order.resources,
        reuse=order.reuse,
        retries=order.retries,
        idempotency_key=key,
    )
