"""What a training loop talks to: it writes the attempt's files and keeps the run's checkpoints."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from nanollama.monitor.attempt import training_hash, write_result, write_stopped
from nanollama.monitor.checkpoint import Checkpoints
from nanollama.monitor.console import ProgressDisplay
from nanollama.monitor.logger import JsonLines, close_log, open_log
from nanollama.monitor.preemption import stop_requested
from nanollama.monitor.summary import describe
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.rundir import (
    EVENTS,
    EXIT_INTERRUPTED,
    LOGS,
    EventKind,
    EventLine,
    Result,
    Stopped,
    metrics_file,
)

log = logging.getLogger(__name__)


class Monitor:
    """Files of an attempt while it runs. Use as a context manager: leaving it closes them, after an error too.

    Metrics are means over all ranks and events concern the whole run, so rank 0 alone writes both; on other ranks
    there is a log file, and every other method does nothing.

    Args:
        spec: the config.
        attempt_dir: directory of the attempt, inside the run directory; nothing has been written to it but the config.
        rank: number of this process among the ranks of the run.
    """

    def __init__(self, spec: ExperimentSpec, attempt_dir: Path, rank: int) -> None:
        self.attempt_dir = attempt_dir
        self._run_dir = attempt_dir.parent
        self._first = rank == 0
        self._last_line = (time.monotonic(), 0)
        self._log = open_log(attempt_dir / LOGS / f"rank{rank}.log", spec.orchestration.logging.level)
        if self._first:
            self._metrics = JsonLines(metrics_file(attempt_dir, rank))
            self._events = JsonLines(attempt_dir / EVENTS)
            self._display = ProgressDisplay(spec.optim.steps, spec.orchestration.logging.level)
            keep_only = spec.orchestration.checkpoint.keep_only
            self._checkpoints = Checkpoints(self._run_dir, config_hash=training_hash(spec), keep_only=keep_only)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:  # into the file only: the console shows it when the program ends
            self._log.handle(
                log.makeRecord(log.name, logging.ERROR, __file__, 0, "ended by an error", (), _info(error))
            )
        if self._first:
            self._display.close()
            self._metrics.close()
            self._events.close()
        close_log(self._log)

    def newest_checkpoint(self) -> Path | None:
        """The newest valid checkpoint of the run, for all ranks to load; a damaged one is skipped with a warning.

        Raises:
            SpecError: it belongs to another config.
        """
        if not self._first:
            return None
        path, skipped = self._checkpoints.newest_valid()
        for reason in skipped:
            self.warn(reason)
        return path

    def started(self, step: int, tokens: int, checkpoint: Path | None) -> None:
        """Training starts now, from the checkpoint if there is one."""
        self._last_line = (time.monotonic(), tokens)
        if checkpoint is None:
            self._event("started", step)
            log.info("training starts; everything is kept in %s", self.attempt_dir)
        else:
            self._event("resumed", step, path=str(checkpoint.relative_to(self._run_dir)))
            log.info("training continues after step %d; everything is kept in %s", step, self.attempt_dir)

    def metrics(self, step: int, tokens: int, values: Mapping[str, float]) -> None:
        """Append a metric line, with the speed since the line before.

        Args:
            step: optimizer steps done.
            tokens: tokens trained on since the start of the run.
            values: means over all ranks.
        """
        if not self._first:
            return
        now = time.monotonic()
        since, tokens_before = self._last_line
        speed = (tokens - tokens_before) / max(now - since, 1e-9)
        self._last_line = (now, tokens)
        self._metrics.write({"step": step, "tokens": tokens, "time": time.time(), **values, "tokens_per_second": speed})
        self._display.update(step, values)

    def save(self, step: int, contents: Mapping[str, Any]) -> None:
        """Write a checkpoint of this step and remove those that are too many.

        Args:
            step: optimizer steps done.
            contents: by file name, what torch.save can write.

        Raises:
            OSError: the disk is full or gone; the checkpoints before are untouched.
        """
        if not self._first:
            return
        saved = self._checkpoints.save(step, contents)
        place = str(saved.path.relative_to(self._run_dir))
        self._event("checkpoint_saved", step, path=place, size_bytes=saved.size_bytes, digest=saved.digest)
        log.info("checkpoint of step %d saved (%.1f MB)", step, saved.size_bytes / 1e6)
        for removed in self._checkpoints.prune():
            self._event("checkpoint_removed", int(removed.name), path=str(removed.relative_to(self._run_dir)))

    def stop_requested(self) -> bool:
        """Whether the run is asked to save and stop; False on ranks that have no say."""
        return self._first and stop_requested(self.attempt_dir)

    def warn(self, message: str, step: int = 0) -> None:
        """Tell the user about something that did not go as asked."""
        self._event("warning", step, message=message)
        if self._first:
            log.warning(message)

    def preempted(self, step: int) -> None:
        """The run stops before its end, as requested; a checkpoint of this step has been saved."""
        message = f"stopped after step {step}, as requested; the next attempt continues from there"
        self._event("preempted", step, message=message)
        log.info(message)
        if self._first:
            write_stopped(self.attempt_dir, Stopped(exit_code=EXIT_INTERRUPTED, step=step, message=message))

    def finished(self, result: Result) -> None:
        """The run has reached its end. The result is the last thing that is written."""
        self._event("finished", result.step)
        log.info("finished: %s", describe(result))
        if self._first:
            write_result(self.attempt_dir, result)

    def _event(self, kind: EventKind, step: int, **fields: Any) -> None:
        if self._first:
            record = EventLine(seq=0, kind=kind, step=step, time=time.time(), **fields)
            self._events.write(record.model_dump(exclude={"seq"}, exclude_none=True))


def _info(error: BaseException) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    return type(error), error, error.__traceback__
