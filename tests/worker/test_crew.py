"""A few threads that follow many tasks."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.support.waiting import eventually
from worker.crew import Crew


class Counting:
    """A task that counts its steps and notices when two are under way at once."""

    def __init__(self, pause: float = 0.0, steps: int | None = None) -> None:
        self.pause = pause
        self.steps = steps
        self.count = 0
        self.overlaps = 0
        self._inside = threading.Lock()

    def step(self) -> float | None:
        if not self._inside.acquire(blocking=False):
            self.overlaps += 1
            return self.pause
        self.count += 1
        self._inside.release()
        return None if self.count == self.steps else self.pause


class Blocking:
    """A task whose steps wait until they are released."""

    def __init__(self) -> None:
        self.entered = 0
        self.release = threading.Semaphore(0)

    def step(self) -> float | None:
        self.entered += 1
        self.release.acquire()
        return 1000.0


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew(threads=4)
    yield crew
    crew.close(10)


def test_many_tasks_take_turns_on_few_threads(crew: Crew) -> None:
    before = threading.active_count()
    tasks = [Counting(0.001) for _ in range(500)]
    for task in tasks:
        crew.add(task)
    assert threading.active_count() <= before + 4
    eventually(lambda: all(task.count >= 3 for task in tasks), what="three steps of each")
    assert [task.overlaps for task in tasks] == [0] * 500


def test_a_task_that_is_over_is_not_stepped_again(crew: Crew) -> None:
    task, other = Counting(0.0, steps=3), Counting(0.0)
    crew.add(task)
    crew.add(other)
    eventually(lambda: task.count == 3 and other.count > 50)
    crew.wake(task)
    eventually(lambda: other.count > 100)
    assert task.count == 3


def test_a_slow_task_does_not_hold_up_the_others(crew: Crew) -> None:
    slow, quick = Blocking(), Counting(0.0)
    crew.add(slow)
    eventually(lambda: slow.entered == 1)
    crew.add(quick)
    eventually(lambda: quick.count > 20)
    slow.release.release()


def test_a_task_that_breaks_costs_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def step(self) -> float | None:
            raise ZeroDivisionError

    crew, task = Crew(threads=1), Counting(0.0)
    crew.add(Broken())
    eventually(lambda: "a bug in the worker" in caplog.text)
    crew.add(task)
    eventually(lambda: task.count > 3)
    crew.close(10)


def test_a_task_is_woken_before_its_time(crew: Crew) -> None:
    task, later = Counting(1000.0), Counting(2000.0)
    crew.add(later)
    crew.add(task)
    eventually(lambda: task.count == 1 and later.count == 1)
    for n in (2, 3):
        crew.wake(task)
        eventually(lambda n=n: task.count == n)
    assert later.count == 1


def test_who_is_woken_during_a_step_is_stepped_again(crew: Crew) -> None:
    task = Blocking()
    crew.add(task)
    eventually(lambda: task.entered == 1)
    crew.wake(task)
    task.release.release()
    eventually(lambda: task.entered == 2)
    task.release.release()


def test_nothing_is_stepped_once_it_is_closed() -> None:
    crew, task = Crew(threads=2), Counting(0.0)
    crew.add(task)
    eventually(lambda: task.count > 3)
    crew.close(10)
    count = task.count
    crew.wake(task)
    crew.add(task)
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith("crew-") and thread in crew._threads
    ]
    assert task.count == count
