"""The end of a log."""

from __future__ import annotations

import re
from pathlib import Path

import streamlit as st

_CSS = """
.n2n-log { margin: 0; height: 460px; overflow: auto; padding: 10px 12px; border: 1px solid var(--n2n-border);
  border-radius: 6px; background: var(--n2n-surface); color: var(--n2n-text); font-family: "Source Code Pro", monospace;
  font-size: 0.8rem; line-height: 1.5; white-space: pre-wrap; overflow-wrap: anywhere; }
.n2n-log:focus-visible { outline: 2px solid var(--n2n-accent); }
"""
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")

_mount = st.components.v2.component(
    "n2n_log",
    html='<pre class="n2n-log" role="region" tabindex="0"></pre>',
    css=_CSS,
    js=Path(__file__).with_name("log.js").read_text(encoding="utf-8"),
    isolate_styles=False,
)


def plain(text: str) -> str:
    """A log as a terminal leaves it: without colour codes, and of a line redrawn by carriage returns the last state."""
    lines = _ESCAPES.sub("", text).replace("\r\n", "\n").split("\n")
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines)


def log(text: str, *, label: str, key: str) -> None:
    """Show the end of a log; it follows new lines while it is scrolled to the end."""
    _mount(data={"text": plain(text), "label": label}, key=key)
