"""A dense table that is patched in place, so that a live tick neither flickers nor takes the focus away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import streamlit as st


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        key: of its cells.
        title: over it.
        kind: text, number (to the right), name (cut at a width), link (cut at a smaller one, for links that lead away
            from the row's own), clip (takes what is left, cut), wrap, mono.
        help: what it means, shown on hover.
        minor: left out on a narrow screen.
        sort: what the table is asked to be sorted by when its title is pressed; nothing: it cannot be.
        edit: its cells can be edited in place.
    """

    key: str
    title: str
    kind: Literal["text", "number", "name", "link", "clip", "wrap", "mono", "mono clip"] = "text"
    help: str = ""
    minor: bool = False
    sort: str = ""
    edit: bool = False


@dataclass(frozen=True)
class Cell:
    """What stands in a cell, as text: nothing in it is ever read as HTML or Markdown.

    Attributes:
        text: what is read.
        title: more of it, shown on hover.
        tone: accent, good, warn, bad, muted, or none.
        glyph: in front of the text.
        bar: a share from 0 to 1, drawn in front of the text.
        href: where the row leads; a plain click on the row reports its id instead. A second link of a row is followed
            by the browser.
        spark: a small curve in place of the text: its points, x and y from 0 to 1, y upwards. The text describes it.
        chips: words, each in a frame of its own, in front of the text.
        edit: what editing the cell starts with, in a column that can be edited; the text when empty.
        act: name of a button in front of the text, for example "log".
        color: of a dot in front of the text; a CSS colour.
        dash: in place of the dot a piece of a line in that colour: an SVG dash pattern, or solid.
    """

    text: str = ""
    title: str = ""
    tone: str = ""
    glyph: str = ""
    bar: float | None = None
    href: str = ""
    spark: tuple[tuple[float, float], ...] | None = None
    chips: tuple[str, ...] = ()
    edit: str = ""
    act: str = ""
    color: str = ""
    dash: str = ""


@dataclass(frozen=True)
class Row:
    """A row: an id that stays the same while its content changes, its cells by column, and how it looks.

    Attributes:
        id: unique in the table.
        cells: by the keys of the columns.
        faded: it is past.
        marked: it is the one that is meant; a row that becomes so is scrolled into view.
        detail: text on lines of its own under the row.
    """

    id: str
    cells: dict[str, Cell]
    faded: bool = False
    marked: bool = False
    detail: str = ""


@dataclass(frozen=True)
class Edit:
    """A cell that was edited in place."""

    row: str
    column: str
    text: str


@dataclass(frozen=True)
class TableReply:
    """What was just done to a table; `selected` is what is selected by now.

    Attributes:
        opened: id of the row whose link was followed.
        picked: id of the row that was pressed, in a table without links whose rows can be picked.
        acted: id of the row whose button was pressed, and the button's name.
        sort: what to sort by, with `-` in front for the largest first.
        edit: what was edited.
        selected: ids of the rows that are checked, also of rows that are not shown now.
    """

    opened: str | None = None
    picked: str | None = None
    acted: tuple[str, str] | None = None
    sort: str | None = None
    edit: Edit | None = None
    selected: tuple[str, ...] = ()


_here = Path(__file__)
_mount = st.components.v2.component(
    "n2n_table",
    html='<div class="n2n-table" tabindex="-1"><table><thead></thead><tbody></tbody></table></div>',
    css=_here.with_suffix(".css").read_text(encoding="utf-8"),
    js=_here.with_suffix(".js").read_text(encoding="utf-8"),
    isolate_styles=False,
)


def table(
    columns: Sequence[Column],
    rows: Sequence[Row],
    *,
    label: str,
    key: str,
    height: int | None = None,
    sort: str = "",
    select: bool = False,
    pick: bool = False,
) -> TableReply:
    """Show a table.

    Args:
        columns: from left to right.
        rows: from top to bottom.
        label: what it is, for those who cannot see it.
        key: its name, unique on the page.
        height: pixels beyond which it scrolls.
        sort: what it is sorted by now, as its columns call it, with `-` in front for the largest first.
        select: rows have checkboxes; see `selected` and `reselect`.
        pick: pressing a row reports its id.
    """
    version, _ = _forced(key)
    data = {
        "label": label,
        "height": height,
        "sort": sort,
        "select": select,
        "pick": pick,
        "selection": {"version": version, "ids": list(selected(key))},  # by hand too: a table may be drawn anew
        "columns": [asdict(c) for c in columns],
        "rows": [_dense(r) for r in rows],
    }
    result = _mount(
        data=data,
        key=key,
        default={"selected": None},
        on_selected_change=_nothing,
        on_opened_change=_nothing,
        on_picked_change=_nothing,
        on_acted_change=_nothing,
        on_sort_change=_nothing,
        on_edit_change=_nothing,
    )
    acted, edit = result.acted, result.edit
    return TableReply(
        opened=_text(result.opened),
        picked=_text(result.picked),
        acted=(str(acted["id"]), str(acted["name"])) if isinstance(acted, dict) else None,
        sort=_text(result.sort),
        edit=Edit(str(edit["id"]), str(edit["column"]), str(edit["text"])) if isinstance(edit, dict) else None,
        selected=selected(key),
    )


def selected(key: str) -> tuple[str, ...]:
    """Ids of the rows that are selected in the table of this key; known before the table is drawn."""
    version, ids = _forced(key)
    state: Any = st.session_state.get(key)
    told = None if state is None else state.get("selected")
    if isinstance(told, dict) and told.get("version") == version and isinstance(told.get("ids"), list):
        return tuple(str(each) for each in told["ids"])
    return tuple(ids)


def reselect(key: str, ids: Sequence[str]) -> None:
    """Select these rows in the table of this key, and no others."""
    st.session_state[f"{key} selection"] = (_forced(key)[0] + 1, list(ids))


def _forced(key: str) -> tuple[int, list[str]]:
    """The newest selection that was not made by hand, and its number."""
    version, ids = st.session_state.get(f"{key} selection", (0, []))
    return version, ids


def _dense(row: Row) -> dict[str, Any]:
    """A row without what is empty: most of most cells is."""
    cells = {key: {name: value for name, value in vars(cell).items() if value} for key, cell in row.cells.items()}
    for key, cell in row.cells.items():
        if cell.bar is not None:
            cells[key]["bar"] = cell.bar
    return {**vars(row), "cells": cells}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _nothing() -> None:
    pass
