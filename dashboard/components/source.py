"""Configs and commands, to read and to copy."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

_CSS = """
.n2n-source { position: relative; }
.n2n-source pre { margin: 0; overflow: auto; padding: 10px 12px; border: 1px solid var(--n2n-border);
  border-radius: 6px; background: var(--n2n-surface); color: var(--n2n-text); font-family: "Source Code Pro", monospace;
  font-size: 0.8rem; line-height: 1.5; white-space: pre-wrap; overflow-wrap: anywhere; }
.n2n-source pre:focus-visible { outline: 2px solid var(--n2n-accent); }
.n2n-source button { position: absolute; top: 6px; right: 14px; padding: 1px 8px; border: 1px solid var(--n2n-border);
  border-radius: 6px; background: var(--n2n-bg); color: var(--n2n-muted); font: inherit; font-size: 0.8rem;
  cursor: pointer; }
.n2n-source button:hover, .n2n-source button:focus-visible { color: var(--n2n-text); }
.n2n-source .key { color: var(--n2n-accent); }
.n2n-source .comment { color: var(--n2n-muted); font-style: italic; }
.n2n-source .value { color: light-dark(#7a3e00, #ffc247); }
.n2n-source .string { color: var(--n2n-good); }
"""
_here = Path(__file__)

# not st.code: its colours are a program of 1.5 MB, which the browser would run before it draws the charts
_mount = st.components.v2.component(
    "n2n_source",
    html='<div class="n2n-source"><pre role="region" tabindex="0"></pre><button type="button">Copy</button></div>',
    css=_CSS,
    js="\n".join(_here.with_name(name).read_text(encoding="utf-8") for name in ("yaml.js", "source.js")),
    isolate_styles=False,
)


def source(text: str, *, label: str, key: str, yaml: bool = False, height: int | None = None) -> None:
    """Show a text with a button that copies it.

    Args:
        text: as it is copied.
        label: what it is, for those who cannot see it.
        key: its name, unique on the page.
        yaml: it has the colours of YAML.
        height: pixels beyond which it scrolls.
    """
    _mount(data={"text": text, "label": label, "yaml": yaml, "height": height}, key=key)
