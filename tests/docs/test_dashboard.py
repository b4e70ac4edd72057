"""The tour of the page shows pictures that exist and that are small."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
MAX_BYTES = 300_000


def test_every_picture_of_the_page_is_shown_and_small() -> None:
    text = (DOCS / "dashboard.md").read_text(encoding="utf-8")
    shown = {DOCS / name for name in re.findall(r"\]\((images/[\w-]+\.png)\)", text)}
    assert len(shown) >= 9
    for picture in shown:
        assert picture.read_bytes().startswith(b"\x89PNG"), picture
        assert picture.stat().st_size < MAX_BYTES, picture
    for view in ("runs", "run", "compare", "launch", "data", "workers"):
        assert any(picture.stem.removesuffix("-dark") == f"page-{view}" for picture in shown), view


def test_pages_that_it_leads_to_exist() -> None:
    text = (DOCS / "dashboard.md").read_text(encoding="utf-8")
    for name in re.findall(r"\]\(([\w-]+\.md)\)", text):
        assert (DOCS / name).is_file(), name
