from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from nanollama.data.prefetch import Batches
from nanollama.spec.base import Problem, SpecError

CPU = torch.device("cpu")


class Source:
    """A loader whose batches are their steps; drawing waits until as many have been let through."""

    def __init__(self, allowed: int = 100, broken: int = -1) -> None:
        self.drawn: list[tuple[int, str]] = []
        self.allowed = threading.Semaphore(allowed)
        self.broken = broken

    def batch(self, step: int) -> torch.Tensor:
        assert self.allowed.acquire(timeout=60)
        if step == self.broken:
            raise SpecError([Problem(path="data.path", message=f"step {step}")])
        self.drawn.append((step, threading.current_thread().name))
        return torch.full((2, 3), step)


def batches(source: Any, first: int, last: int, depth: int) -> Batches:
    return Batches(source, first, last, depth=depth, device=CPU)


@pytest.mark.parametrize("depth", [0, 1, 3, 64])
def test_batches_come_in_order_and_none_is_drawn_twice_or_beyond_the_last(depth: int) -> None:
    source = Source()
    with batches(source, 4, 11, depth) as found:
        assert [int(found.next()[0, 0]) for _ in range(4, 11)] == list(range(4, 11))
    assert [step for step, _ in source.drawn] == list(range(4, 11))


def test_they_are_drawn_ahead_by_a_thread_that_ends_with_them() -> None:
    source = Source(allowed=3)
    with batches(source, 0, 100, 2) as found:
        found.next()
        source.allowed.release(2)
        found.next()
    assert {name for _, name in source.drawn} == {"batches_0"}
    assert len(source.drawn) <= 4
    assert not any(thread.name.startswith("batches") for thread in threading.enumerate())


def test_what_cannot_be_drawn_is_said_at_its_step() -> None:
    with batches(Source(broken=2), 0, 9, 4) as found:
        found.next()
        found.next()
        with pytest.raises(SpecError, match="step 2"):
            found.next()
