"""What viewers share: it is made once while nothing changes, and again when something does."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from dashboard.data import shared
from dashboard.data.shared import once, steady


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    shared.forget()
    yield
    shared.forget()


def test_an_equal_answer_is_the_object_that_was_there_before() -> None:
    first = [1.0, 2.0]
    assert steady("a", first) is first
    assert steady("a", [1.0, 2.0]) is first
    assert steady("b", [1.0, 2.0]) is not first
    other = [1.0, 3.0]
    assert steady("a", other) is other
    assert steady("a", [1.0, 3.0]) is other


def test_a_value_of_another_type_is_another_value() -> None:
    assert steady("a", 1) == 1
    assert steady("a", True) is True


def test_it_is_built_again_only_of_other_objects() -> None:
    builds = []

    def build() -> int:
        builds.append(1)
        return len(builds)

    old, new = [1], [1]
    assert once("a", (old, None), build) == 1
    assert once("a", (old, None), build) == 1
    assert once("b", (old, None), build) == 2
    assert once("a", (new, None), build) == 3
    assert once("a", (new,), build) == 4


def test_what_could_not_be_built_is_tried_again() -> None:
    def fails() -> int:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        once("a", (), fails)
    assert once("a", (), lambda: 1) == 1


def test_viewers_that_ask_at_once_wait_for_the_first() -> None:
    started, go = threading.Event(), threading.Event()
    builds: list[int] = []
    found: list[int] = []

    def build() -> int:
        builds.append(1)
        started.set()
        assert go.wait(60)
        return len(builds)

    viewers = [threading.Thread(target=lambda: found.append(once("a", (), build))) for _ in range(5)]
    viewers[0].start()
    assert started.wait(60)
    for viewer in viewers[1:]:
        viewer.start()
    go.set()
    for viewer in viewers:
        viewer.join(60)
    assert found == [1] * 5


def test_what_nobody_looks_at_any_more_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(shared, "monotonic", lambda: now[0])
    first = once("a", (), object)
    now[0] = shared.IDLE_SECONDS
    once("b", (), object)
    assert once("a", (), object) is first
    now[0] += shared.IDLE_SECONDS + 1
    once("c", (), object)
    assert once("a", (), object) is not first


def test_their_number_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "MAX_KEPT", 3)
    first = once(0, (), object)
    for i in range(1, 4):
        once(i, (), object)
    assert once(0, (), object) is not first
