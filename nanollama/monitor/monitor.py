"""What a training loop talks to: it writes the attempt's files and keeps the run's checkpoints."""

from __future__ import annotations

import errno
import logging
import math
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from nanollama.monitor.attempt import write_result, write_stopped
from nanollama.monitor.background import Background
from nanollama.monitor.checkpoint import Checkpoints, snapshot
from nanollama.monitor.console import ProgressDisplay
from nanollama.monitor.evaluation import Evaluation, write_evaluation
from nanollama.monitor.hardware import memory_in_use
from nanollama.monitor.logger import JsonLines, close_log, open_log
from nanollama.monitor.mirrors import Mirrors
from nanollama.monitor.preemption import stop_requested
from nanollama.monitor.profiler import Load, Profiler
from nanollama.monitor.stopwatch import PHASES, StepTime, Stopwatch
from nanollama.monitor.summary import describe
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.identity import training_hash
from nanollama.spec.rundir import (
    CONFIG,
    EVENTS,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    LOGS,
    STOP_REQUESTED,
    STOPPED,
    EventKind,
    EventLine,
    Result,
    Stopped,
    metrics_file,
)
from nanollama.spec.yaml_text import dump_yaml

log = logging.getLogger(__name__)

CPU = torch.device("cpu")


class Monitor:
    """Files of an attempt while it runs. Use as a context manager: leaving it closes them, after an error too.

    Rank 0 writes the metrics, which are means over all ranks, and events, which concern the whole run. Other ranks
    write a log and metric lines of their own, with what may differ between ranks; all else they leave to rank 0.

    Args:
        spec: the config.
        attempt_dir: directory of the attempt, inside the run directory; nothing has been written to it but the config.
        rank: number of this process among the ranks of the run.
        device: where this rank computes.
    """

    def __init__(self, spec: ExperimentSpec, attempt_dir: Path, rank: int, device: torch.device = CPU) -> None:
        self.attempt_dir = attempt_dir
        self._run_dir = attempt_dir.parent
        self._first = rank == 0
        self._last_line = (time.monotonic(), 0)
        self._log = open_log(attempt_dir / LOGS / f"rank{rank}.log", spec.orchestration.logging.level)
        self._device = device
        self._watch = Stopwatch(device)
        self._times: list[StepTime] = []  # of the steps since the last line
        self._load = Load(0, 0)
        self._profiler = Profiler(spec.orchestration.profiler, attempt_dir, rank, device)
        self._metrics = JsonLines(metrics_file(attempt_dir, rank))
        if self._first:
            self._events = JsonLines(attempt_dir / EVENTS)
            self._display = ProgressDisplay(spec.optim.steps, spec.orchestration.logging.level)
            keep = spec.orchestration.checkpoint
            self._checkpoints = Checkpoints(
                self._run_dir,
                config_hash=training_hash(spec),
                keep_last=keep.keep_last,
                keep_best=keep.keep_best,
                keep_every=keep.keep_every,
            )
            self._config = dump_yaml(spec).encode()
            self._saving = Background(asynchronous=keep.asynchronous)
            self._newest: Path | None = None  # whole checkpoint, as far as this attempt knows
            self._save_problem = ""
            self._mirrors = Mirrors(spec, attempt_dir, self.warn)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:  # into the file only: the console shows it when the program ends
            self._log.handle(
                log.makeRecord(log.name, logging.ERROR, __file__, 0, "ended by an error", (), _info(error))
            )
        try:
            self._profiled(self._profiler.close())
            if self._first:
                self._display.close()
                self._mirrors.close()
                self._saving.drain()
        finally:
            for stream in (self._metrics, self._events) if self._first else (self._metrics,):
                try:
                    stream.close()
                except OSError as failure:
                    print(f"error: the last lines of {stream.path} are lost: {failure.strerror}", file=sys.stderr)
            close_log(self._log)

    def newest_checkpoint(self) -> Path | None:
        """The newest valid checkpoint of the run, for all ranks to load; a damaged one is skipped with a warning.

        Raises:
            SpecError: there are checkpoints, and all are damaged.
        """
        if not self._first:
            return None
        self._newest, skipped = self._checkpoints.newest_valid()
        for reason in skipped:
            self.warn(reason)
        return self._newest

    def started(
        self,
        step: int,
        tokens: int,
        checkpoint: Path | None,
        load: Load | None = None,
        *,
        origin: Path | None = None,
    ) -> None:
        """Training starts now, from the checkpoint if there is one.

        Args:
            step: optimizer steps done.
            tokens: tokens trained on since the start of the run.
            checkpoint: that has been loaded.
            load: what each step asks of this rank.
            origin: checkpoint of another run that has been loaded instead.
        """
        self._load = load or self._load
        self._last_line = (time.monotonic(), tokens)
        self._watch.restart()
        if origin is not None:
            message = f"from the checkpoint {origin} of another run, after step {step}"
            self._event("started", step, message=message)
            log.info("training starts %s; everything is kept in %s", message, self.attempt_dir)
        elif checkpoint is None:
            self._event("started", step)
            log.info("training starts; everything is kept in %s", self.attempt_dir)
        else:
            self._event("resumed", step, path=str(checkpoint.relative_to(self._run_dir)))
            log.info("training continues after step %d; everything is kept in %s", step, self.attempt_dir)

    def begin_step(self) -> None:
        """A step begins; since the update before all time has been spent on bounds, lines, checkpoints and the like."""
        self._watch.lap("monitor")
        self._profiled(self._profiler.begin_step())

    def lap(self, phase: str) -> None:
        """A phase of the step has ended, one of those of Stopwatch."""
        self._watch.lap(phase)

    def end_update(self, step: int) -> None:
        """The last phase of this step has ended, its update."""
        self._watch.lap("optimizer", ends=step)
        if self._profiler.wants_steps:
            self._collect()

    def metrics(self, step: int, tokens: int, values: Mapping[str, float], own_loss: float = math.nan) -> None:
        """Append a metric line, with speed, work and memory, and the seconds of a step by phase since the line before.

        Args:
            step: optimizer steps done.
            tokens: tokens trained on since the start of the run.
            values: means over all ranks.
            own_loss: of this rank; other ranks than the first write it in the place of the means.
        """
        now = time.monotonic()
        since, tokens_before = self._last_line
        self._last_line = (now, tokens)
        line: dict[str, float] = {"loss": own_loss}
        if self._first:
            line = {**values, "tokens_per_second": (tokens - tokens_before) / max(now - since, 1e-9)}
            line["flops"] = tokens * self._load.flops_per_token
        line["memory"] = memory_in_use(self._device)
        self._collect()
        for phase in PHASES if self._times else ():
            line[f"time_{phase}"] = sum(each.seconds.get(phase, 0.0) for each in self._times) / len(self._times)
        self._times = []
        self._metrics.write({"step": step, "tokens": tokens, "time": time.time(), **line})
        if self._first:
            self._display.update(step, values)
            self._mirrors.write(step, line)

    def save(self, step: int, contents: Mapping[str, Any]) -> None:
        """Write a checkpoint of this step and remove those that are too many, while training goes on if so configured.

        It waits for the checkpoint before, if that is still being written. One that cannot be written is a warning: the
        checkpoints before are untouched, and the next one is tried again.

        Args:
            step: optimizer steps done.
            contents: by file name, what torch.save can write. The tensors may change after the call.
        """
        if not self._first:
            return
        self._saving.drain()  # before there are two copies of the state beside the state itself
        if self._saving.asynchronous:
            contents = snapshot(contents)
        self._saving.start(partial(self._save, step, {CONFIG: self._config, **contents}))

    def evaluated(self, step: int, tokens: int, found: Evaluation) -> None:
        """Write an evaluation down: a metric line of its own, its file, an event, and the score of its step.

        The time that it took does not count as training time.

        Args:
            step: optimizer steps done.
            tokens: tokens trained on since the start of the run.
            found: the same on every rank.
        """
        if not self._first:
            return
        last, tokens_before = self._last_line
        self._last_line = (last + found.seconds, tokens_before)
        values = found.metrics()
        self._metrics.write({"step": step, "tokens": tokens, "time": time.time(), **values})
        self._mirrors.write(step, values)
        place = None
        try:
            place = str(write_evaluation(self._run_dir, step, found.record()).relative_to(self._run_dir))
            self.note_score(step, found.score)
        except OSError as error:
            self.warn(f"the evaluation of step {step} could not be kept in a file: {error.strerror}", step)
        shipped = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._event(
            "evaluated", step, path=place, message=str(found), values=shipped, by_position=found.shipped_curves()
        )
        log.info("step %d evaluated: %s", step, found)

    def note_score(self, step: int, score: float) -> None:
        """Remember how good the learner of this step is, lower is better, for the choice of the best checkpoints."""
        if self._first:
            self._checkpoints.note_score(step, score)

    def stop_requested(self) -> str | None:
        """What asks the run to save and stop; None on ranks that have no say."""
        return f"the file {STOP_REQUESTED}" if self._first and stop_requested(self.attempt_dir) else None

    def warn(self, message: str, step: int = 0) -> None:
        """Tell the user about something that did not go as asked."""
        self._event("warning", step, message=message)
        if self._first:
            log.warning(message)

    def preempted(self, step: int, asked: str = "") -> int:
        """The run stops before its end, as requested; a checkpoint of this step is on its way. Returns the exit code.

        Args:
            step: optimizer steps done.
            asked: who has requested it.
        """
        if not self._first:
            return EXIT_INTERRUPTED
        self._saving.drain()
        message = (
            f"stopped after step {step}, as requested{f' by {asked}' if asked else ''}; the next attempt continues "
        )
        message += "from there" if self._saved(step) else f"after {self._last_good()}, as this step could not be saved"
        self._event("preempted", step, message=message)
        log.info(message)
        write_stopped(self.attempt_dir, Stopped(exit_code=EXIT_INTERRUPTED, step=step, message=message))
        return EXIT_INTERRUPTED

    def finished(self, result: Result) -> int:
        """The run has reached its end. The result is the last thing that is written. Returns the exit code.

        Without its last checkpoint or its last lines a run is not finished: it has failed, and can be continued from
        the checkpoint before.
        """
        if not self._first:
            return 0
        self._saving.drain()
        problem = "" if self._saved(result.step) else f"the last checkpoint could not be saved ({self._save_problem})"
        if not problem:
            self._event("finished", result.step)
        try:
            self._metrics.flush()
            self._events.flush()
        except OSError as error:
            problem = problem or f"the last lines of the streams could not be written ({error.strerror})"
        if problem:
            advice = f"mend that and start the run again: it continues after {self._last_good()}"
            return self.failed(result.step, f"all steps are done, but {problem}; {advice}")
        log.info("finished: %s", describe(result))
        write_result(self.attempt_dir, result)
        return 0

    def failed(self, step: int, message: str, exit_code: int = EXIT_FAILED) -> int:
        """The run cannot go on, for a reason that its user can understand. Returns the exit code.

        It may be called on one rank alone: any rank says why on standard error, rank 0 also leaves a record.
        """
        self._log.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, "%s", (message,), None))
        if self._first:
            self._display.close()
            self._saving.drain()
            self._event("failed", step, message=message)
            try:
                write_stopped(self.attempt_dir, Stopped(exit_code=exit_code, step=step, message=message))
            except OSError:  # the disk may be what has failed: the exit code and the line below say it all the same
                log.exception("no %s", STOPPED)
        print(f"error: {message}", file=sys.stderr)
        return exit_code

    def diverged(self, step: int, message: str) -> int:
        """The run fails because a number is not finite: `failed`, and the checkpoint to go back to is named."""
        self._saving.drain()
        return self.failed(step, f"{message}; the last good checkpoint is {self._last_good()}")

    def _save(self, step: int, contents: Mapping[str, Any]) -> None:
        """Body of `save`, in a thread of its own perhaps."""
        try:
            saved = self._checkpoints.save(step, contents)
        except OSError as error:
            self._save_problem = error.strerror or str(error)
            self.warn(self._save_failure(step, error), step)
            return
        self._newest = saved.path
        place = str(saved.path.relative_to(self._run_dir))
        self._event("checkpoint_saved", step, path=place, size_bytes=saved.size_bytes, digest=saved.digest)
        log.info("checkpoint of step %d saved (%.1f MB)", step, saved.size_bytes / 1e6)
        try:
            for removed in self._checkpoints.prune():
                self._event("checkpoint_removed", int(removed.name), path=str(removed.relative_to(self._run_dir)))
        except OSError as error:
            self.warn(f"an old checkpoint cannot be removed: {error.strerror}: {error.filename}", step)

    def _save_failure(self, step: int, error: OSError) -> str:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = f"make room in {self._run_dir}" if full else f"look at the disk and the permissions of {self._run_dir}"
        if full:
            remedy += ", or keep fewer checkpoints with orchestration.checkpoint.keep_last"
        message = f"the checkpoint of step {step} could not be saved: {self._save_problem}; training goes on"
        return f"{message}, and the next one is tried again - {remedy}"

    def _saved(self, step: int) -> bool:
        return self._newest is not None and int(self._newest.name) == step

    def _last_good(self) -> str:
        """The checkpoint that a next attempt starts from, in words."""
        if self._newest is None:
            return "none: it starts anew"
        return f"step {int(self._newest.name)} ({self._newest.relative_to(self._run_dir)})"

    def _collect(self) -> None:
        """Take over the steps that have been measured."""
        times = self._watch.finished()
        self._times += times
        self._profiled(self._profiler.record(times, self._load))

    def _profiled(self, path: Path | None) -> None:
        """A profile is complete, if there is a path."""
        if path is not None:
            place = str(path.relative_to(self._run_dir))
            self._event("profiled", 0, path=place)
            log.info("profile written: %s", place)

    def _event(self, kind: EventKind, step: int, **fields: Any) -> None:
        if self._first:
            record = EventLine(seq=0, kind=kind, step=step, time=time.time(), **fields)
            self._events.write(record.model_dump(exclude={"seq"}, exclude_none=True))


def _info(error: BaseException) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    return type(error), error, error.__traceback__
