"""Where the time of a training step goes. On a GPU it is the GPU's own time, and nobody waits for it."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

import torch

PHASES = ("data", "model", "optimizer", "monitor")
"""Parts of a step: waiting for the batch; forward and backward; clipping, agreement of the ranks and update; all else,
which is bounds, lines, checkpoints and evaluations."""


@dataclass
class StepTime:
    """Seconds of one step by phase; their sum is the time from the end of the update before to the end of its own."""

    step: int
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return sum(self.seconds.values())


class Stopwatch:
    """Splits the time into laps without gaps between them: each lap ends where the next begins."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._last = self._now()
        self._laps: deque[tuple[str, float | torch.cuda.Event, float | torch.cuda.Event, int | None]] = deque()
        self._current: dict[str, float] = {}
        self._finished: list[StepTime] = []

    def lap(self, phase: str, *, ends: int | None = None) -> None:
        """What has happened since the lap before was of this phase.

        Args:
            phase: one of PHASES.
            ends: the step that is finished with this lap, if one is.
        """
        now = self._now()
        self._laps.append((phase, self._last, now, ends))
        self._last = now

    def finished(self) -> list[StepTime]:
        """Steps that have been finished, on the GPU too, since the last call."""
        while self._laps:
            phase, begin, end, ends = self._laps[0]
            if isinstance(begin, float):
                assert isinstance(end, float)
                seconds = end - begin
            else:
                assert not isinstance(end, float)
                if not end.query():  # type: ignore[no-untyped-call] # as torch left it
                    break
                seconds = begin.elapsed_time(end) / 1e3
            self._laps.popleft()
            self._current[phase] = self._current.get(phase, 0.0) + seconds
            if ends is not None:
                self._finished.append(StepTime(ends, self._current))
                self._current = {}
        found, self._finished = self._finished, []
        return found

    def restart(self) -> None:
        """Forget what has happened until now."""
        self._laps.clear()
        self._current, self._finished = {}, []
        self._last = self._now()

    def _now(self) -> float | torch.cuda.Event:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call] # as torch left it
        event.record()
        return event
