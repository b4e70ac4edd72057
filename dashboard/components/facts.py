"""Names with their values, and what stands behind them."""

from __future__ import annotations

import html
from collections.abc import Sequence

import streamlit as st

from dashboard.planning import Fact

_STYLE = """<style>
.n2n-facts { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; padding: 0 !important; }
.n2n-facts, .n2n-facts dt, .n2n-facts dd { margin: 0 !important; }
.n2n-facts dt { padding: 0; color: var(--n2n-muted); font-weight: 400; }
.n2n-facts dd { padding: 0; min-width: 0; overflow-wrap: anywhere; }
.n2n-facts dd b { font-weight: 650; }
.n2n-facts dd span { color: var(--n2n-muted); font-size: 0.9em; margin-left: 8px; }
</style>"""


def facts(items: Sequence[Fact]) -> None:
    """Show facts, one a line; every value is escaped."""
    st.html(_STYLE + "<dl class='n2n-facts'>" + "".join(_entry(item) for item in items) + "</dl>")


def _entry(item: Fact) -> str:
    tone = f" class='tone-{item.tone}'" if item.tone else ""
    why = f"<span>{html.escape(item.why)}</span>" if item.why else ""
    return f"<dt>{html.escape(item.name)}</dt><dd><b{tone}>{html.escape(item.value)}</b>{why}</dd>"
