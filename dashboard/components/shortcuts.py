"""Keys that act on the page, and the list of them behind `?`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import streamlit as st


@dataclass(frozen=True)
class Shortcut:
    """A key and what it does.

    Attributes:
        key: a single character, as it is typed.
        says: what it does, for the list.
        does: focus what `target` selects; press it; move among the rows of the table that it selects; or show the list.
        target: a CSS selector.
    """

    key: str
    says: str
    does: Literal["focus", "press", "next row", "previous row", "check row", "help"]
    target: str = ""


HELP = Shortcut("?", "show this list", "help")

_here = Path(__file__)
_mount = st.components.v2.component(
    "n2n_shortcuts",
    html="<div class='n2n-shortcuts'></div>",
    css=_here.with_suffix(".css").read_text(encoding="utf-8"),
    js=_here.with_suffix(".js").read_text(encoding="utf-8"),
    isolate_styles=False,
)


def shortcuts(keys: Sequence[Shortcut], *, key: str) -> None:
    """Let keys act while the cursor is in no field, and draw the button that lists them; readers can turn them off."""
    _mount(data={"keys": [asdict(each) for each in (*keys, HELP)]}, key=key, width="content")
