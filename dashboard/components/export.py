"""Save charts at paper size, and copy the address of the page: both are done by the browser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import streamlit as st

_HERE = Path(__file__)
_CSS = """
.n2n-export { font-size: 0.93rem; color: var(--n2n-text); }
.n2n-export .rows div { display: flex; align-items: center; gap: 6px; margin: 6px 0; }
.n2n-export .rows span { min-width: 7.5rem; }
.n2n-export button, .n2n-export select, .n2n-share button { font: inherit; color: var(--n2n-text);
  background: var(--n2n-bg); border: 1px solid var(--n2n-border); border-radius: 6px; padding: 4px 12px;
  cursor: pointer; }
.n2n-export button:hover, .n2n-share button:hover { border-color: var(--n2n-accent); color: var(--n2n-accent); }
.n2n-export :focus-visible, .n2n-share :focus-visible { outline: 2px solid var(--n2n-accent); outline-offset: 1px; }
.n2n-export .said { min-height: 1.4em; color: var(--n2n-muted); }
.n2n-share button { min-height: 2.5rem; white-space: nowrap; }
"""

_export = st.components.v2.component(
    "n2n_export",
    html="""<div class="n2n-export"><label>Width <select>
<option value="170">two columns, 170 mm</option><option value="85">one column, 85 mm</option>
<option value="254">a slide, 254 mm</option></select></label>
<div class="rows"></div><div class="said" role="status"></div></div>""",
    css=_CSS,
    js="\n".join(_HERE.with_name(name).read_text(encoding="utf-8") for name in ("pdf.js", "export.js")),
    isolate_styles=False,
)

_share = st.components.v2.component(
    "n2n_share",
    html='<div class="n2n-share"><button type="button"><span role="status">Share</span></button></div>',
    css=_CSS,
    js=_HERE.with_name("share.js").read_text(encoding="utf-8"),
    isolate_styles=False,
)


def figure_export(charts: Sequence[tuple[str, str]], key: str) -> None:
    """Buttons that save charts of the page as SVG, PDF and PNG.

    Args:
        charts: name, as given to `plot`, and title of each.
        key: its own name, unique on the page.
    """
    _export(data={"charts": [{"name": name, "title": title} for name, title in charts]}, key=key)


def share(key: str) -> None:
    """A button that copies the address of the page, which holds everything that is chosen on it."""
    _share(data={}, key=key)
