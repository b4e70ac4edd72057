"""`python -m dashboard`, started as a user starts it, and what its charts show in a browser."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Page

from tests.support.browser import PATIENCE
from tests.support.ports import free_ports
from tests.support.waiting import eventually

# The first chart of a page, as Plotly keeps it: points of the curve, range of x, and whether the drawn bound is dashed.
CHART = """() => {
  const plot = document.querySelector('.js-plotly-plot');
  if (!plot?._fullLayout?.shapes) return null;
  const named = Object.fromEntries(plot.data.filter(t => t.name).map(t => [t.name, t]));
  const shape = plot.querySelector('.shapelayer path');
  return {
    points: named.loss?.x.length ?? 0,
    marks: plot.querySelectorAll('.scatterlayer .points path').length,
    saved: named.checkpoints?.x ?? [],
    range: plot._fullLayout.xaxis.range,
    dash: shape ? getComputedStyle(shape).strokeDasharray : '',
    color: named.loss ? getComputedStyle([...plot.querySelectorAll('.scatterlayer .js-line')].at(-1)).stroke : '',
    labels: [...plot.querySelectorAll('.annotation-text')].map(e => e.textContent),
  };
}"""


@contextlib.contextmanager
def serve_page(api_url: str, folder: Path) -> Iterator[str]:
    """The page over a service, on a free port; its URL. Its output goes to a file in `folder`."""
    (port,) = free_ports(1)
    output = folder / "dashboard.log"
    with open(output, "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dashboard", "--port", str(port), "--api-url", api_url],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"

    def healthy() -> bool:
        assert process.poll() is None, output.read_text()
        try:
            return httpx.get(f"{url}/_stcore/health", trust_env=False, timeout=10).text == "ok"
        except httpx.HTTPError:
            return False

    try:
        eventually(healthy, within=120, what="the page")
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def chart(page: Page, *, points: int = 1) -> dict[str, Any]:
    """The loss chart, once it shows at least so many points."""

    def probe() -> Any:
        seen = page.evaluate(CHART)
        return seen if seen and seen["points"] >= points else None

    found: dict[str, Any] = eventually(probe, within=PATIENCE / 1000, what=f"a curve of {points} points")
    return found
