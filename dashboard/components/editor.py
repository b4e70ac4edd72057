"""A YAML editor that marks what is wrong at its line, and keeps what is typed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from nanollama.spec.base import Problem

MAX_PATH, MAX_SAID = 200, 2000  # characters of a problem that are shown


@dataclass(frozen=True)
class Draft:
    """What stands in the editor.

    Attributes:
        text: as typed.
        source: what it began as, for example "template:debug"; empty for a text of one's own.
        version: of the text that was put there last; what was typed into an older one does not count.
    """

    text: str
    source: str = ""
    version: int = 0


_here = Path(__file__)
_mount = st.components.v2.component(
    "n2n_editor",
    html="""<div class="n2n-editor">
  <div class="box">
    <div class="gutter" aria-hidden="true"><div></div></div>
    <div class="sheet"><div class="paint" aria-hidden="true"></div>
      <textarea aria-label="Config (YAML)" spellcheck="false" wrap="off"></textarea></div>
  </div>
  <div class="state" role="status"></div>
  <ol></ol>
</div>""",
    css=_here.with_suffix(".css").read_text(encoding="utf-8"),
    js="\n".join(_here.with_name(name).read_text(encoding="utf-8") for name in ("yaml.js", "editor.js")),
    isolate_styles=False,
)


def typed(key: str) -> Draft | None:
    """What the browser has sent last; None before it has sent anything."""
    state = st.session_state.get(key)
    draft = None if state is None else state.get("draft")
    if not isinstance(draft, dict):
        return None
    text, source, version = draft.get("text"), draft.get("source"), draft.get("version")
    if not (isinstance(text, str) and isinstance(source, str) and isinstance(version, int)):
        return None
    return Draft(text, source, version)


def editor(
    draft: Draft,
    *,
    problems: Sequence[Problem],
    changed: Collection[int],
    status: str,
    tone: str,
    key: str,
) -> None:
    """Show the editor; `typed(key)` says on the next run what was typed.

    Args:
        draft: what stands in it; the browser takes the text when the version is new to it.
        problems: of this text.
        changed: lines, from 1, that are not as in the text that it began as.
        status: one line under the text.
        tone: of that line: good, bad or none.
        key: its name, unique on the page.
    """
    said = typed(key)
    there = said is not None and said.version == draft.version and said.text == draft.text
    listed = [
        {
            "path": p.path[:MAX_PATH],
            "message": p.message[:MAX_SAID],
            "remedy": (p.remedy or "")[:MAX_SAID],
            "line": p.line,
            "column": p.column,
        }
        for p in problems
    ]
    data = {
        "text": None if there else draft.text,  # what the browser has is not sent back at every key
        "source": draft.source,
        "version": draft.version,
        "label": "Config (YAML)",
        "placeholder": "Choose a template above, or paste a config.",
        "problems": listed,
        "changed": sorted(changed),
        "status": status,
        "tone": tone,
    }
    _mount(data=data, key=key, on_draft_change=lambda: None)
