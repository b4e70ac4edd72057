"""What an empty list teaches: a command to type, and a small sweep that a button submits."""

from __future__ import annotations

import secrets

import streamlit as st

from dashboard import data
from dashboard.components.page import error_note, note
from dashboard.data import launch
from nanollama.api.errors import ApiError
from nanollama.api.schemas import ExperimentCreate

DEMO = "debug"
DEMO_GRID = """
grid:
  model.emb_dim: [16, 64]
  orchestration.utils.seed: [0, 1]
"""
"""Two widths with two seeds each: enough to compare, done in a minute or two."""
DEMO_NAME = "first-sweep"


def teach() -> None:
    """How to make the first runs."""
    note(
        "A run is one training of a learner on data from a graph whose entropy is known: how far it is from the best "
        "possible loss can be read off at any time. Type this for a first one, or press a button:",
        title="No runs yet",
        code="n2n submit configs/gssm/debug.yaml",
    )
    with st.container(horizontal=True):
        if st.button(
            "Submit the demo sweep",
            type="primary",
            key="demo",
            help="The debug config with two widths and two seeds: four runs of about 20 seconds each.",
        ):
            _submit()
        if st.button("Write a config", key="write"):
            st.switch_page("views/launch.py")


def _submit() -> None:
    key = st.session_state.setdefault("demo-key", secrets.token_hex(16))  # a double click makes one sweep
    try:
        text = next((t.yaml for t in data.templates() if t.name == DEMO), None)
        if text is None:
            note(f"This service has no template '{DEMO}'. Write a config instead.", tone="bad")
            return
        launch.submit(ExperimentCreate(yaml=text.rstrip() + DEMO_GRID, name=DEMO_NAME, tags=["demo"]), key)
    except ApiError as error:
        error_note(error, "Submitting")
        return
    del st.session_state["demo-key"]
    data.runs.clear()
    st.rerun()
