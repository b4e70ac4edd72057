"""A dense table that is patched in place, so that a live tick neither flickers nor takes the focus away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import streamlit as st


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        key: of its cells.
        title: over it.
        kind: text, number (to the right), name (cut at a width), clip (takes what is left, cut), wrap, mono.
        help: what it means, shown on hover.
        minor: left out on a narrow screen.
    """

    key: str
    title: str
    kind: Literal["text", "number", "name", "clip", "wrap", "mono", "mono clip"] = "text"
    help: str = ""
    minor: bool = False


@dataclass(frozen=True)
class Cell:
    """What stands in a cell, as text: nothing in it is ever read as HTML or Markdown.

    Attributes:
        text: what is read.
        title: more of it, shown on hover.
        tone: accent, good, warn, bad, muted, or none.
        glyph: in front of the text.
        bar: a share from 0 to 1, drawn in front of the text.
        href: where the row leads; a plain click on the row reports its id instead.
    """

    text: str = ""
    title: str = ""
    tone: str = ""
    glyph: str = ""
    bar: float | None = None
    href: str = ""


@dataclass(frozen=True)
class Row:
    """A row: an id that stays the same while its content changes, its cells by column, and whether it is past."""

    id: str
    cells: dict[str, Cell]
    faded: bool = False


_here = Path(__file__)
_mount = st.components.v2.component(
    "n2n_table",
    html='<div class="n2n-table" tabindex="-1"><table><thead></thead><tbody></tbody></table></div>',
    css=_here.with_suffix(".css").read_text(encoding="utf-8"),
    js=_here.with_suffix(".js").read_text(encoding="utf-8"),
    isolate_styles=False,
)


def table(
    columns: Sequence[Column], rows: Sequence[Row], *, label: str, key: str, height: int | None = None
) -> str | None:
    """Show a table, scrolling beyond `height` pixels; returns the id of the row that was just opened, if any."""
    data = {
        "label": label,
        "height": height,
        "columns": [asdict(c) for c in columns],
        "rows": [asdict(r) for r in rows],
    }
    result = _mount(data=data, key=key, on_open_change=lambda: None)
    opened = result.open
    return opened if isinstance(opened, str) else None
