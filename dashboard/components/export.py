"""Save charts at paper size, and copy the address of the page: both are done by the browser."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

_HERE = Path(__file__)
_CSS = _HERE.with_suffix(".css").read_text(encoding="utf-8")

KEPT = 8.0  # seconds that a file stays in what is sent to the browser

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


@dataclass(frozen=True)
class File:
    """A file that can be saved: the name of its button, its own, its type, and what makes its content when wanted."""

    title: str
    name: str
    mime: str
    content: Callable[[], bytes]


def exporter(charts: Sequence[tuple[str, str]], files: Sequence[File], key: str) -> None:
    """Buttons that save charts of the page as SVG, PDF and PNG, and files that the server makes when they are wanted.

    A file goes to the browser with the page, not by an address of its own, which a live tick would withdraw.

    Args:
        charts: name, as given to `plot`, and title of each.
        files: what else can be saved.
        key: its own name, unique on the page.
    """
    _export(
        data={
            "charts": [{"name": name, "title": title} for name, title in charts],
            "files": [file.title for file in files],
            "file": _made(files, f"{key} made"),
        },
        key=key,
        on_wanted_change=lambda: _want(key),
    )


def _want(key: str) -> None:
    wanted = st.session_state[key].get("wanted")
    if isinstance(wanted, dict):
        st.session_state[f"{key} made"] = {"wanted": wanted, "until": time.monotonic() + KEPT}


def _made(files: Sequence[File], key: str) -> dict[str, Any] | None:
    """The file that was wanted last; for a few ticks, as one of them may be skipped. The browser saves it once."""
    made: dict[str, Any] | None = st.session_state.get(key)
    if made is None or time.monotonic() > made["until"]:
        st.session_state.pop(key, None)
        return None
    if "sent" not in made:
        file = next((each for each in files if each.title == made["wanted"].get("title")), None)
        if file is None:
            return None
        content = base64.b64encode(file.content()).decode()
        serial = str(made["wanted"].get("serial"))
        made["sent"] = {"serial": serial, "name": file.name, "mime": file.mime, "base64": content}
    sent: dict[str, Any] = made["sent"]
    return sent


def share(key: str, **meant: str) -> None:
    """A button that copies the address of the page, which holds everything that is chosen on it.

    Args:
        key: its name, unique on the page.
        meant: what the address stands for now where it does not say so, by parameter; the copy says it.
    """
    _share(data=meant, key=key)
