"""Progress of a run for the person who started it: a live bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

LINE_PERIOD = 10.0
"""Seconds between two progress lines where there is no terminal."""

log = logging.getLogger(__name__)


class ProgressDisplay:
    """Shows how far a run is, on standard error."""

    def __init__(self, steps: int, level: str) -> None:
        self._steps = steps
        self._next_line = 0.0
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._handler = logging.StreamHandler(sys.stderr)
        self._handler.setLevel(level)
        if sys.stderr.isatty():
            self._handler.setLevel(logging.WARNING)
            columns = [BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}")]
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("", total=steps)
            self._bar.start()
        logging.getLogger("nanollama").addHandler(self._handler)

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Show the metrics of a step."""
        numbers = "  ".join(f"{name} {values[name]:.4f}" for name in ("loss", "bound", "excess") if name in values)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, description=numbers)
        if time.monotonic() >= self._next_line or step == self._steps:
            self._next_line = time.monotonic() + LINE_PERIOD
            log.info("step %d of %d  %s", step, self._steps, numbers)

    def close(self) -> None:
        """Leave the terminal as it was found."""
        if self._bar is not None:
            self._bar.stop()
        logging.getLogger("nanollama").removeHandler(self._handler)
