"""One installation and one finished demo for all tests that look at them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.demo import Demo, start_demo
from tests.support.installation import Installation, install_wheel


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The wheel, installed outside the checkout."""
    return install_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def demo(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """`n2n demo` with its run finished; it is interrupted at the end."""
    running = start_demo(installation, tmp_path_factory.mktemp("demo"))
    try:
        running.wait_until_finished()
        yield running
    finally:
        if running.process.poll() is None:
            running.interrupt()
