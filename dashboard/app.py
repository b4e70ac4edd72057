"""The page: navigation between the views, and what they share."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from dashboard.components.page import error_note, wait_for_service
from nanollama.api.errors import ApiError, Unavailable

HERE = Path(__file__).parent

# the icon comes before the navigation: otherwise the browser fetches the page's own one from outside
st.set_page_config(page_icon=str(HERE / "static" / "favicon.svg"), layout="wide")
st.html(HERE / "style.css")
view = st.navigation(
    [
        st.Page("views/runs.py", title="Runs", icon=":material/table_rows:", default=True),
        st.Page("views/run.py", title="Run", url_path="run", visibility="hidden"),
        st.Page("views/compare.py", title="Compare", icon=":material/stacked_line_chart:", url_path="compare"),
        st.Page("views/launch.py", title="Launch", icon=":material/rocket_launch:", url_path="launch"),
        st.Page("views/data.py", title="Data", icon=":material/account_tree:", url_path="data"),
        st.Page("views/workers.py", title="Workers & queue", icon=":material/dns:", url_path="workers"),
    ],
    position="top",
)
st.set_page_config(page_title=f"{view.title} · Nodes to Narratives")
try:
    view.run()
except Unavailable as error:
    wait_for_service(error)
except ApiError as error:
    error_note(error, "Reading from the service")
