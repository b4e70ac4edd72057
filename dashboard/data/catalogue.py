"""What Data asks the service: graphs with their entropies, and sets on disk."""

from __future__ import annotations

import streamlit as st

from dashboard import data
from nanollama.api import schemas

TTL = 1.0  # seconds; a bound that is being computed is looked at again and again
MOST = 500  # graphs and sets in a table


@st.cache_data(ttl=TTL, show_spinner=False)
def gssms() -> schemas.GSSMPage:
    """The graphs that are known, newest first."""
    return data.client().gssms(limit=MOST)


@st.cache_data(ttl=TTL, show_spinner=False, max_entries=64)
def gssm(content_hash: str) -> schemas.GSSMDetail:
    """One graph with its entropy by position and the runs that use it. Raises NotFound."""
    return data.client().gssm(content_hash)


@st.cache_data(ttl=3600, show_spinner=False, max_entries=256)
def picture(content_hash: str) -> str:
    """The graph as SVG; it never changes, since the hash is of its content."""
    return data.client().gssm_graph(content_hash)


@st.cache_data(ttl=5, show_spinner=False)
def datasets() -> list[schemas.Dataset]:
    """Sets of sequences on disk that runs or workers told of."""
    return data.client().datasets()


def compute_bound(content_hash: str) -> schemas.GSSM:
    """Queue the computation of a graph's entropy; once for each content."""
    answer = data.client().compute_bound(content_hash)
    gssms.clear()
    gssm.clear()
    return answer
