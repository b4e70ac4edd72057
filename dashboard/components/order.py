"""The form beside a config: what its runs are called, how urgent they are, and what they need of a worker."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from dashboard.components.page import note
from dashboard.placement import needs, place
from nanollama.api.schemas import ExperimentCreate, Resources, Worker
from nanollama.spec.base import parse

BLANK: dict[str, Any] = {
    "name": "",
    "tags": "",
    "notes": "",
    "priority": None,
    "retries": 0,
    "executor": None,
    "accelerators": 0,
    "cpus": 0,
    "memory": 0.0,
    "labels": "",
}
"""Every field, by its key in the session and the address, with what it begins as."""
_KEPT = "launch fields"


def fill(values: Mapping[str, Any]) -> None:
    """Put values into the fields, before they are drawn."""
    for key, value in values.items():
        st.session_state[key] = value


def filled_from(resources: Resources) -> dict[str, Any]:
    """What the fields say for these needs."""
    return {
        "executor": resources.executor,
        "accelerators": resources.accelerators,
        "cpus": resources.cpus,
        "memory": resources.memory_gb,
        "labels": ", ".join(resources.labels),
    }


def order_form(workers: Sequence[Worker]) -> None:
    """The fields, and under them which workers could run this."""
    kept: dict[str, Any] = st.session_state.setdefault(_KEPT, dict(BLANK))
    for key, value in kept.items():
        if value != BLANK[key] and key not in st.session_state and key not in st.query_params:
            st.session_state[key] = value
    left, right = st.columns(2)
    left.text_input(
        "Name", key="name", bind="query-params", max_chars=200, placeholder="orchestration.name of the config"
    )
    right.text_input("Tags", key="tags", bind="query-params", placeholder="exp2, paper")
    st.text_area("Notes", key="notes", bind="query-params", max_chars=10_000, height=68, placeholder="Why this is run")
    left, right = st.columns(2)
    left.number_input(
        "Priority",
        -100,
        100,
        value=None,
        placeholder="0",
        key="priority",
        bind="query-params",
        help="-100 to 100; higher runs first",
    )
    right.number_input(
        "Retries",
        0,
        1000,
        key="retries",
        bind="query-params",
        help="attempts that may fail without ending a run; the next one goes on from its checkpoints",
    )
    resources = _resources()
    with st.expander(f"Resources · {needs(resources) or 'whatever a worker has'}", key="resources"):
        _resource_fields()
    placement = place(resources, workers)
    if placement.able:
        st.html(f"<div class='n2n-under'>{html.escape(placement.sentence)}</div>")
    else:
        code = "" if placement.unable else "n2n up"
        note(placement.sentence, title="Nobody to run it yet", code=code, tone="warn")
    st.session_state[_KEPT] = {key: st.session_state.get(key, value) for key, value in BLANK.items()}


def order(yaml: str, reuse: str) -> ExperimentCreate:
    """What is to be submitted, as the fields say. Raises SpecError."""
    state = {key: st.session_state.get(key, value) for key, value in BLANK.items()}
    return parse(
        ExperimentCreate,
        {
            "yaml": yaml,
            "name": str(state["name"]).strip() or None,
            "tags": _words(state["tags"]),
            "notes": state["notes"],
            "priority": int(state["priority"] or 0),
            "retries": int(state["retries"]),
            "resources": _resources().model_dump(),
            "reuse": reuse,
        },
    )


def _resource_fields() -> None:
    st.selectbox(
        "Executor",
        ["local", "slurm"],
        index=None,
        placeholder="any",
        key="executor",
        bind="query-params",
        help="local: processes of a worker's machine; slurm: jobs of a cluster",
    )
    left, middle, right = st.columns(3)
    left.number_input(
        "Accelerators", 0, 10_000, key="accelerators", bind="query-params", help="GPUs that each run needs"
    )
    middle.number_input("CPUs", 0, 100_000, key="cpus", bind="query-params")
    right.number_input("Memory, GB", 0.0, 1e6, step=1.0, format="%g", key="memory", bind="query-params")
    st.text_input(
        "Labels", key="labels", bind="query-params", placeholder="a100, big-disk", help="each has to be the worker's"
    )


def _resources() -> Resources:
    state = {key: st.session_state.get(key, value) for key, value in BLANK.items()}
    return Resources.model_construct(
        executor=state["executor"],
        accelerators=int(state["accelerators"]),
        cpus=int(state["cpus"]),
        memory_gb=float(state["memory"]),
        labels=_words(state["labels"]),
    )


def _words(text: object) -> list[str]:
    return [word for word in (part.strip() for part in str(text).split(",")) if word]
