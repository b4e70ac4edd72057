"""A picture that the service drew, in the colours of the reader's theme."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

_CSS = """
.n2n-drawing { --n2n-ink: var(--n2n-text); display: flex; justify-content: center; overflow: auto; padding: 8px;
  border: 1px solid var(--n2n-border); border-radius: 6px; }
"""

_mount = st.components.v2.component(
    "n2n_drawing",
    html='<div class="n2n-drawing" role="group"></div>',
    css=_CSS,
    js=Path(__file__).with_name("drawing.js").read_text(encoding="utf-8"),
    isolate_styles=False,
)


def drawing(svg: str, *, label: str, key: str, height: int = 420) -> None:
    """Show an SVG, at most `height` pixels high; scripts and links in it are left out.

    Args:
        svg: as the service gives it.
        label: what it shows, for those who cannot see it.
        key: its name, unique on the page.
        height: in pixels.
    """
    _mount(data={"svg": svg, "label": label, "height": height}, key=key)
