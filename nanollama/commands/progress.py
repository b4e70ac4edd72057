"""Progress in the terminal: a live bar, or a line now and then where there is no terminal."""

from __future__ import annotations

import math
import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from nanollama.api import schemas
from nanollama.api.status import RunState
from nanollama.commands.output import plain

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


def counted(experiment: schemas.Experiment) -> str:
    """How many runs are in each state that there are, in words."""
    order = {state: count for state in RunState if (count := experiment.counts.get(state, 0))}
    return "  ".join(f"{count:,} {state.value.lower()}" for state, count in order.items()) or "no runs"


class LiveBar:
    """Context manager: a bar that is drawn anew, or lines where the output is no terminal."""

    def __init__(self, console: Console, unit: str) -> None:
        self._console = console
        self._unit = unit
        self._bar = Progress(
            TextColumn("{task.description:>9}"),
            BarColumn(bar_width=10),
            TextColumn(unit + " {task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[summary]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("queued", total=1, summary="")
        self._said = ("", "", 0.0)

    def __enter__(self) -> LiveBar:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()

    def show(self, state: str, done: int, total: int, text: str) -> None:
        """Show where it is now. A new state is always said, another text every few seconds."""
        text = plain(text)
        self._bar.update(self._task, description=state, completed=done, total=total, summary=escape(text))
        before, line, at = self._said
        now = time.monotonic()
        if not self._console.is_terminal and (state != before or (text != line and now - at >= LINE_SECONDS)):
            self._console.print(f"{state:>9}  {self._unit} {done}/{total}  {text}", soft_wrap=True)
            self._said = (state, text, now)

    def show_run(self, run: schemas.Run) -> None:
        """Show where a run is."""
        self.show(run.state.value.lower(), run.progress.step, run.progress.total_steps, summary(run))

    def show_experiment(self, experiment: schemas.Experiment) -> None:
        """Show how many runs of an experiment have ended, and how many are in each state."""
        ended = num_ended(experiment)
        state = "done" if ended == experiment.num_runs else "paused" if experiment.paused_since else "running"
        self.show(state, ended, experiment.num_runs, counted(experiment))


def num_ended(experiment: schemas.Experiment) -> int:
    """Runs of an experiment that have ended."""
    return sum(count for state, count in experiment.counts.items() if state.terminal)
