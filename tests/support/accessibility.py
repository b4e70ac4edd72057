"""axe-core on a page, as it is now."""

from __future__ import annotations

from typing import Any

from axe_playwright_python.base import AXE_FILE_PATH
from playwright.sync_api import Page

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]

# what is just fading in is looked at as it will be; what pulses without end goes on
RUN = """async (rules) => {
  document.getAnimations().filter(a => a.effect.getComputedTiming().endTime < Infinity).forEach(a => a.finish());
  return (await axe.run(document, { runOnly: rules, resultTypes: ['violations'] })).violations;
}"""


def violations(page: Page, *, beside: tuple[str, ...] = ()) -> list[str]:
    """Rules of WCAG 2.2 AA and good practice that the page breaks, each with the first element that does.

    Args:
        page: as it is drawn now.
        beside: ids of rules that are not looked at.
    """
    if not page.evaluate("() => 'axe' in window"):
        page.add_script_tag(path=AXE_FILE_PATH)
    found: list[dict[str, Any]] = page.evaluate(RUN, RULES)
    return [f"{each['id']}: {each['nodes'][0]['html'][:300]}" for each in found if each["id"] not in beside]
