"""What is done to several runs at once: to those that are selected, or to all that the filter matches."""

from __future__ import annotations

from typing import Any

import streamlit as st

from dashboard.components.page import attempt_to
from dashboard.components.table import reselect
from dashboard.data import editing
from dashboard.wording import plural

DONE = {
    "cancel": "asked to stop",
    "retry": "queued again",
    "archive": "archived; the filter archived:any shows them",
    "restore": "taken back from the archive",
    "tag": "tagged anew",
}


def bulk(ids: tuple[str, ...], whole: str, total: int, table_key: str) -> None:
    """The bar over the table.

    Args:
        ids: of the runs that are selected.
        whole: a filter that matches all that are listed.
        total: how many it matches.
        table_key: of the table, whose selection ends with an action.
    """
    everything = bool(st.session_state.get("everything")) and bool(ids)
    selection: dict[str, Any] = {"filter": whole} if everything else {"ids": list(ids)}
    count = total if everything else len(ids)

    def act(action: str, **values: Any) -> None:
        attempt_to(f"To {action}", lambda: _outcome(action, editing.act_on_runs(action, selection, **values), count))
        _clear(table_key)

    def retag() -> None:
        add, remove = (editing.words(st.session_state.get(key, "")) for key in ("tags-add", "tags-remove"))
        if add or remove:
            act("tag", add=add, remove=remove)
            st.session_state["tags-add"] = st.session_state["tags-remove"] = ""

    off = not ids
    with st.container(horizontal=True, vertical_alignment="center"):
        words = f"<b>{count:,}</b> selected" if ids else f"{plural(total, 'run')} · none selected"
        st.html(f"<span class='n2n-crumb'>{words}</span>", width="content")
        if ids and total > len(ids):
            st.toggle(f"all {total:,} that match", key="everything")
        with st.popover("Cancel", disabled=off):
            then = "What runs is asked to save a checkpoint first; a retry goes on from the newest one."
            st.html(f"<p>Stop {plural(count, 'run')}? {then}</p>")
            st.button(f"Yes, cancel {count:,}", type="primary", key="confirm-bulk", on_click=act, args=("cancel",))
        help_retry = "Those that failed or were cancelled go on from their checkpoints."
        st.button("Retry", disabled=off, key="bulk-retry", help=help_retry, on_click=act, args=("retry",))
        st.button("Archive", disabled=off, key="bulk-archive", on_click=act, args=("archive",))
        if st.session_state.get("archived") or "archived:" in whole.replace("archived:false", ""):
            st.button("Restore", disabled=off, key="bulk-restore", on_click=act, args=("restore",))
        with st.popover("Tag", disabled=off):
            st.text_input("Add", key="tags-add", placeholder="separated by commas")
            st.text_input("Remove", key="tags-remove", placeholder="separated by commas")
            st.button("Change tags", key="bulk-tag", type="primary", on_click=retag)
        if st.button("Compare", disabled=off or everything, key="bulk-compare"):
            st.switch_page("views/compare.py", query_params={"runs": ",".join(ids)})
        if ids:
            st.button("Clear", key="bulk-clear", type="tertiary", on_click=_clear, args=(table_key,))


def _clear(table_key: str) -> None:
    reselect(table_key, [])
    st.session_state["everything"] = False


def _outcome(action: str, reply: Any, count: int) -> str:
    changed = len(reply.changed)
    text = f"{plural(changed, 'run')} {DONE[action]}"
    if reply.more:
        return f"{text}; more match than one request changes: do it again"
    passed = count - changed
    return f"{text}; {passed:,} passed over, since it would change nothing for them" if passed > 0 else text
