"""Save charts at paper size, and copy the address of the page: both are done by the browser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import streamlit as st

_HERE = Path(__file__)
_CSS = _HERE.with_suffix(".css").read_text(encoding="utf-8")

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
