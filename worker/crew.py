"""A few threads that follow any number of jobs: each is looked at when it is due."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger(__name__)

THREADS = 8
"""Enough for that many slow file systems or answers at once; with one thread a job, 500 jobs were 500 stacks."""


_AFTER_A_BUG_SECONDS = 30.0


class Task(Protocol):
    """Something to be done again and again."""

    def step(self) -> float | None:
        """Do what is due; the seconds until the next step, or None when there is none to come."""


class Crew:
    """Takes steps of tasks, never two of one task at once.

    One thread that has nothing to do keeps the time until the next step is due, the others wait to be called.

    Args:
        threads: how many steps may be under way together.
        clock: tells the time in seconds, from any origin.
    """

    def __init__(self, threads: int = THREADS, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._time = threading.Condition(self._lock)  # for the one that keeps the time
        self._idle = threading.Condition(self._lock)
        self._keeping = False
        self._queue: list[tuple[float, int, Task]] = []  # by due time; entries that have been overtaken are left in it
        self._entries: dict[Task, int] = {}  # the entry that counts
        self._numbers = itertools.count()
        self._running: set[Task] = set()
        self._woken: set[Task] = set()  # to be stepped again at once
        self._closed = self._started = False
        self._threads = [
            threading.Thread(target=self._work, name=f"crew-{i}", daemon=True) for i in range(threads)
        ]  # daemons: a thread that waits for an answer must not keep the process

    def add(self, task: Task) -> None:
        """Step a task from now on, until it says that no step is to come."""
        with self._lock:
            if not self._started:
                self._started = True
                for thread in self._threads:
                    thread.start()
            self._put(task, 0.0)

    def wake(self, task: Task) -> None:
        """Step a task at once; nothing happens to one that is over."""
        with self._lock:
            if task in self._running:
                self._woken.add(task)
            elif task in self._entries:
                self._put(task, 0.0)

    def close(self, seconds: float) -> None:
        """Take no step any more, and wait up to some seconds for those under way."""
        with self._lock:
            self._closed = True
            self._time.notify_all()
            self._idle.notify_all()
        deadline = time.monotonic() + seconds
        for thread in self._threads if self._started else ():
            thread.join(max(0.0, deadline - time.monotonic()))

    def _put(self, task: Task, pause: float) -> None:
        number = next(self._numbers)
        self._entries[task] = number
        heapq.heappush(self._queue, (self._clock() + pause, number, task))
        if self._queue[0][1] == number:  # sooner than whoever keeps the time thinks
            (self._time if self._keeping else self._idle).notify()

    def _work(self) -> None:
        while (task := self._next()) is not None:
            pause: float | None = _AFTER_A_BUG_SECONDS
            try:
                pause = task.step()
            except Exception:  # it must not cost the thread, which others need
                log.exception("a bug in the worker; trying again")
            with self._lock:
                self._running.discard(task)
                woken = task in self._woken
                self._woken.discard(task)
                if pause is not None:
                    self._put(task, 0.0 if woken else pause)

    def _next(self) -> Task | None:
        """The next task that is due; None once the crew is closed."""
        with self._lock:
            while not self._closed:
                while self._queue and self._entries.get(self._queue[0][2]) != self._queue[0][1]:
                    heapq.heappop(self._queue)
                left = self._queue[0][0] - self._clock() if self._queue else None
                if left is not None and left <= 0:
                    _, _, task = heapq.heappop(self._queue)
                    del self._entries[task]
                    self._running.add(task)
                    if not self._keeping:
                        self._idle.notify()
                    return task
                if self._keeping:
                    self._idle.wait()
                else:
                    self._keeping = True
                    self._time.wait(left)
                    self._keeping = False
        return None
