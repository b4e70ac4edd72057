"""A world for all faults of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.faults import FaultWorld, fault_world


@pytest.fixture(scope="module")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultWorld]:
    """A service on SQLite and the worker `a`, for all tests of a file."""
    with fault_world(tmp_path_factory.mktemp("world")) as world:
        world.start_worker()
        yield world


@pytest.fixture
def world(shared_world: FaultWorld) -> Iterator[FaultWorld]:
    """The same; after the test everything is set right, and what the protocol promises is checked."""
    yield shared_world
    shared_world.settle()
