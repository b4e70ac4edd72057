"""How an attempt ended, from the evidence in its directory: the state to report, and why, in words."""

from __future__ import annotations

import json
import logging
import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from nanollama.api.status import AttemptState
from nanollama.spec.rundir import (
    EXIT_BAD_INPUT,
    EXIT_INTERRUPTED,
    LOGS,
    RESULT,
    STDOUT,
    STOPPED,
    Exit,
    Stopped,
)
from worker.executors.base import Phase, Status

log = logging.getLogger(__name__)

Ending = Literal["cancel", "interrupt"]
"""How this worker is ending an attempt: for good, or so that the next attempt continues."""

_TAIL_BYTES = 65536
_RESULT_BYTES = 10**6
_LINE_CHARS = 500
_RANK_PREFIX = re.compile(r"^\[rank\d+\]:\s?")
_TRACEBACK = "Traceback (most recent call last):"
_SECONDARY = re.compile(r"SignalException|ChildFailedError|Connection (?:reset|closed) by peer")
_ERROR_LINE = re.compile(r"^(?:error|\S*(?:Error|Exception)): ", re.IGNORECASE)


@dataclass(frozen=True)
class Outcome:
    """The terminal transition of an attempt. `exit_code` follows the shell: 128 + n after signal n."""

    to: AttemptState
    reason: str | None = None
    exit_code: int | None = None
    result: dict[str, Any] | None = None


def judge(directory: Path, status: Status, ending: Ending | None) -> Outcome:
    """What became of an attempt that has ended, vanished or been forbidden."""
    if status.phase is Phase.FORBIDDEN:
        if status.forbidder == "cancel":
            return Outcome(AttemptState.CANCELLED, "cancelled before it started")
        return Outcome(AttemptState.VOID, "it was forbidden to start")
    if status.phase is Phase.FAILED_TO_START:
        if status.verdict is not None:
            return Outcome(status.verdict, status.reason)
        return Outcome(AttemptState.FAILED, _join(status.reason, log_reason(directory)))
    stopped = _read_stopped(directory)
    if status.phase is Phase.VANISHED:
        return _ended_by_us(ending) or Outcome(AttemptState.INTERRUPTED, status.reason)
    if status.phase is Phase.JUDGED:
        assert status.verdict is not None
        return _ended_by_us(ending) or Outcome(status.verdict, status.reason)
    assert status.phase is Phase.ENDED
    assert status.exit is not None
    return _judge_end(directory, status.exit, stopped, ending)


def log_reason(directory: Path) -> str | None:
    """The line of the log that says best why the run failed; None when it says nothing."""
    logs = sorted(directory.glob(f"{LOGS}/rank*.log"))
    for path in (directory / STDOUT, *logs):
        lines = [_RANK_PREFIX.sub("", line) for line in _tail(path).splitlines()]
        for found in (_traceback_ends(lines), [line for line in lines if _ERROR_LINE.match(line)]):
            primary = [line for line in found if not _SECONDARY.search(line)]
            if primary:
                return _shorten(primary[-1].removeprefix("error: "))
    last = [line for line in _tail(directory / STDOUT).splitlines() if line.strip()]
    return _shorten(last[-1]) if last else None


def _judge_end(directory: Path, record: Exit, stopped: Stopped | None, ending: Ending | None) -> Outcome:
    """What became of an attempt that has left an account of its end."""
    code = stopped.exit_code if stopped is not None else _shell_code(record)
    if record.exit_code == 0 and stopped is None:
        return _judge_success(directory, ending)
    ours = _ended_by_us(ending, code)
    if ours is not None:
        return ours
    said = stopped.message if stopped is not None else None
    if code == EXIT_INTERRUPTED:
        step = f" after step {stopped.step}" if stopped is not None else ""
        return Outcome(AttemptState.INTERRUPTED, said or f"stopped on request{step}", code)
    if code == EXIT_BAD_INPUT:
        return Outcome(AttemptState.FAILED, _join("bad input", said or log_reason(directory)), code)
    if record.disk_full:
        reason = f"the disk of {directory} was full; the next attempt goes on from the newest checkpoint"
        return Outcome(AttemptState.INTERRUPTED, reason, code)
    if record.terminated:
        return Outcome(AttemptState.INTERRUPTED, "ended from outside (SIGTERM), perhaps by a shutdown", code)
    return Outcome(AttemptState.FAILED, _why_failed(directory, record), code)


def _judge_success(directory: Path, ending: Ending | None) -> Outcome:
    try:
        content = (directory / RESULT).read_bytes()
    except FileNotFoundError:
        reason = "ended without a result: exit code 0, but it wrote no result.json"
        return _ended_by_us(ending, 0) or Outcome(AttemptState.FAILED, reason, 0)
    if len(content) > _RESULT_BYTES:
        reason = f"ended with a result.json of {len(content):,} bytes; {_RESULT_BYTES:,} are taken"
        return Outcome(AttemptState.FAILED, reason, 0)
    try:
        result = json.loads(content)
        from_json(to_json({"result": result}))  # what is nested too deep, or half a surrogate pair, can't be sent
    except (ValueError, RecursionError):
        return Outcome(AttemptState.FAILED, "ended with a result.json that is not JSON", 0)
    if not isinstance(result, dict):
        return Outcome(AttemptState.FAILED, "ended with a result.json that is not an object", 0)
    return Outcome(AttemptState.SUCCEEDED, exit_code=0, result=result)


def _ended_by_us(ending: Ending | None, code: int | None = None) -> Outcome | None:
    if ending == "cancel":
        return Outcome(AttemptState.CANCELLED, "cancelled while it ran", code)
    if ending == "interrupt":
        return Outcome(AttemptState.INTERRUPTED, "stopped because the worker was stopped", code)
    return None


def _why_failed(directory: Path, record: Exit) -> str:
    if record.signal is not None:
        return _in_words(record.signal, record.oom_kills)
    said = log_reason(directory)
    killed = re.search(r"\bended with signal (\d+)\b", said or "")
    if killed:
        return f"a rank was {_in_words(int(killed[1]), record.oom_kills)}"
    return _join(f"exit code {record.exit_code}", said)


def _in_words(number: int, oom_kills: int | None) -> str:
    if number == signal.SIGKILL and oom_kills:
        return "killed by the kernel (SIGKILL): out of memory"
    if number == signal.SIGKILL:
        cause = "probably out of memory, or killed by hand"
        known = "by hand or by another program; the kernel has killed nothing for lack of memory"
        return f"killed (SIGKILL): {cause if oom_kills is None else known}"
    if number not in set(signal.Signals):
        return f"ended by signal {number}"
    name = signal.Signals(number).name
    crashes = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}
    return f"crashed ({name})" if number in crashes else f"ended by a signal ({name})"


def _traceback_ends(lines: list[str]) -> list[str]:
    """The last line of each traceback: the exception and its message."""
    ends, inside = [], False
    for line in lines:
        if line.strip() == _TRACEBACK:
            inside = True
        elif inside and line.strip() and not line.startswith((" ", "\t")):
            ends.append(line)
            inside = False
    return ends


def _tail(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            return file.read(_TAIL_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return ""


def _read_stopped(directory: Path) -> Stopped | None:
    try:
        return Stopped.model_validate_json((directory / STOPPED).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:  # of another program: its exit code is told all the same
        log.warning("%s is passed over: %s", directory / STOPPED, error)
        return None


def _shell_code(record: Exit) -> int | None:
    return record.exit_code if record.signal is None else 128 + record.signal


def _join(*parts: str | None) -> str:
    present: Iterable[str] = (part for part in parts if part)
    return ": ".join(present)


def _shorten(line: str) -> str:
    line = " ".join(line.split())
    return line if len(line) <= _LINE_CHARS else line[: _LINE_CHARS - 1] + "…"
