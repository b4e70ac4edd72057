"""What a page over a service in memory shows: components are read from what they are sent."""

from __future__ import annotations

import json
from typing import Any

from streamlit.testing.v1 import AppTest


def sent(page: AppTest, key: str) -> Any:
    """What the component with this key is sent, its figure decoded; None when it is not on the page."""
    found = [json.loads(e.proto.json) for e in page.get("bidi_component") if e.proto.id.endswith(f"-{key}")]
    if found and "figure" in found[0]:
        found[0]["figure"] = json.loads(found[0]["figure"])
    return found[0] if found else None


def text(page: AppTest) -> str:
    """All HTML of the page."""
    return "\n".join(element.proto.body for element in page.get("html"))


def cells(page: AppTest, key: str) -> list[dict[str, str]]:
    """The texts of a table, by column."""
    table = sent(page, key)
    return [{name: cell.get("text", "") for name, cell in row["cells"].items()} for row in table["rows"]]
