"""Settings of every test process, made before anything imports torch; and the browser of those that need one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# tests run beside each other on few cores: one thread each, and no spinning while one waits for another
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium for the tests of a file; not longer, since Playwright holds the thread's event loop meanwhile."""
    from tests.support.browser import chromium  # noqa: PLC0415 - only where a browser is wanted

    with chromium() as running:
        yield running
