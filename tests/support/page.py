"""`python -m dashboard`, started as a user starts it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.support.ports import free_ports
from tests.support.waiting import eventually


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
