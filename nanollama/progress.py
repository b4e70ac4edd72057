"""A run's progress in the terminal: a live bar, or a line now and then where there is no terminal."""

from __future__ import annotations

import math
import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from nanollama.api import schemas

LINE_SECONDS = 5.0


def nats(value: float | None) -> str:
    """A loss, bound or excess with four digits, or a dash."""
    if value is None:
        return "–"
    return f"{value:.4f}" if math.isfinite(value) else str(value)


def summary(run: schemas.Run) -> str:
    """Loss, bound and excess of the newest metric line, in nats per token."""
    p = run.progress
    if p.loss is None:
        return run.reason or "" if run.state.terminal else "waiting for the first step"
    if p.bound is None:
        return f"loss {nats(p.loss)} nats/token, no bound"
    return f"loss {nats(p.loss)}  bound {nats(p.bound)}  excess {nats(p.excess)}"


class RunProgress:
    """Context manager that shows a run whenever `update` is called."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description:>9}"),
            BarColumn(bar_width=10),
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[summary]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("queued", total=1, summary="")
        self._said = ("", "", 0.0)

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()

    def update(self, run: schemas.Run) -> None:
        """Show where the run is now."""
        state, p, text = run.state.value.lower(), run.progress, escape(summary(run))
        self._bar.update(self._task, description=state, completed=p.step, total=p.total_steps, summary=text)
        before, line, at = self._said
        now = time.monotonic()
        if not self._console.is_terminal and (state != before or (text != line and now - at >= LINE_SECONDS)):
            self._console.print(f"{state:>9}  step {p.step}/{p.total_steps}  {text}", soft_wrap=True)
            self._said = (state, text, now)
