"""The run directory of a training config, and the attempts in it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nanollama.spec.base import Problem, SpecError
from nanollama.spec.cluster import LauncherSpec
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.identity import essence, training_hash
from nanollama.spec.load import load_config
from nanollama.spec.monitor import OrchestrationSpec
from nanollama.spec.provenance import write_provenance
from nanollama.spec.rundir import (
    CONFIG,
    LOCK,
    MANIFEST,
    METRICS,
    RESULT,
    STOPPED,
    Manifest,
    Result,
    Stopped,
    write_atomic,
)

RUNS = Path("runs")


def run_directory(launcher: LauncherSpec, orchestration: OrchestrationSpec) -> Path:
    """Where a run that nobody else has placed is kept: log_dir, or runs/<name>."""
    log_dir = launcher.log_dir or orchestration.log_dir
    return Path(log_dir) if log_dir else RUNS / orchestration.name


def placed_by(launcher: LauncherSpec) -> str:
    """The key that would move the run directory: the one that has placed it, or the one to place it with."""
    return "launcher.log_dir" if launcher.log_dir else "orchestration.log_dir"


def finished_result(run_dir: Path, spec: ExperimentSpec) -> Result | None:
    """The result of this config in the run directory, if its newest attempt has one. Nothing is written.

    Raises:
        SpecError: the directory holds a run with another config.
    """
    newest = max(_attempts(run_dir), key=lambda path: int(path.name), default=None)
    if newest is None or not (newest / CONFIG).exists():
        return None
    _check_same_run(run_dir, load_config(ExperimentSpec, [f"config={newest / CONFIG}"]), spec)
    return read_result(newest)


def origin_problems(checkpoint: Path, spec: ExperimentSpec) -> list[Problem]:
    """Why a checkpoint, which has been verified, is not one of this config: the keys that differ."""
    manifest = Manifest.model_validate_json((checkpoint / MANIFEST).read_bytes())
    if manifest.config_hash == training_hash(spec):
        return []
    remedy = "choose another run directory, or restore the key"
    try:
        stored = load_config(ExperimentSpec, [f"config={checkpoint / CONFIG}"])
        problems = _difference_problems(stored, spec, f"{checkpoint} was written with", remedy)
    except SpecError:
        problems = []
    message = f"{checkpoint} was written with another config, or by another version"
    return problems or [Problem(path="checkpoints", message=message, remedy="choose another run directory")]


def create_attempt(run_dir: Path, config: str, *, placed_by: str = "orchestration.log_dir") -> Path:
    """Create the directory of the next attempt, with the YAML of its config in it.

    Args:
        run_dir: of the run.
        config: YAML text.
        placed_by: the key to blame when the directory cannot be used.

    Raises:
        SpecError: the directory cannot be written to; then nothing has been created.
    """
    number = max((int(path.name) for path in _attempts(run_dir)), default=0) + 1
    attempt_dir = run_dir / str(number)
    try:
        attempt_dir.mkdir(parents=True)
    except OSError as error:
        raise _unwritable(run_dir, error, placed_by) from None
    try:
        write_atomic(attempt_dir / CONFIG, config.encode())
        write_provenance(attempt_dir)
    except OSError as error:
        discard_attempt(attempt_dir)
        raise _unwritable(run_dir, error, placed_by) from None
    return attempt_dir


@contextmanager
def only_run(run_dir: Path, *, placed_by: str = "orchestration.log_dir") -> Iterator[None]:
    """Within it no other process may hold the run directory likewise; the end of the process lets go of it too.

    A file system without locks keeps nobody out.

    Raises:
        SpecError: another process holds it, or it cannot be written to.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _unwritable(run_dir, error, placed_by) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(handle)
            message = f"a run is under way in {run_dir.absolute()}"
            raise SpecError(
                [Problem(path=placed_by, message=message, remedy="wait for its end, or choose another")]
            ) from None
    try:
        yield
    finally:
        os.close(handle)


def check_idle(run_dir: Path, *, placed_by: str = "orchestration.log_dir") -> None:
    """Nothing is created.

    Raises:
        SpecError: a process holds the run directory by `only_run`.
    """
    if (run_dir / LOCK).exists():
        with only_run(run_dir, placed_by=placed_by):
            pass


def discard_attempt(attempt_dir: Path) -> None:
    """Undo `create_attempt` after a start that failed before anything could run."""
    shutil.rmtree(attempt_dir)
    if not any(attempt_dir.parent.iterdir()):
        attempt_dir.parent.rmdir()


def claim_attempt(attempt_dir: Path) -> Path:
    """Make sure that an attempt directory that somebody else has chosen exists and is unused; return it.

    Raises:
        SpecError: it cannot be written to, or an attempt has run in it before.
    """
    if (attempt_dir / METRICS).exists():
        message = f"{attempt_dir} holds an attempt that has been started before"
        remedy = "give every attempt a new directory beside it"
        raise SpecError([Problem(path="attempt_dir", message=message, remedy=remedy)])
    try:
        (attempt_dir / METRICS).mkdir(parents=True)
    except OSError as error:
        message = f"cannot write to {attempt_dir}: {error.strerror}"
        raise SpecError([Problem(path="attempt_dir", message=message, remedy="choose another")]) from None
    return attempt_dir


def read_result(attempt_dir: Path) -> Result | None:
    """The result of an attempt; None before it has finished."""
    try:
        return Result.model_validate_json((attempt_dir / RESULT).read_bytes())
    except FileNotFoundError:
        return None


def write_result(attempt_dir: Path, result: Result) -> None:
    """Declare the attempt finished."""
    write_atomic(attempt_dir / RESULT, result.model_dump_json(indent=2).encode())


def read_stopped(attempt_dir: Path) -> Stopped | None:
    """How an attempt ended early on purpose; None when it did not, or not yet."""
    try:
        return Stopped.model_validate_json((attempt_dir / STOPPED).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def write_stopped(attempt_dir: Path, stopped: Stopped) -> None:
    """Declare the attempt ended early on purpose."""
    write_atomic(attempt_dir / STOPPED, stopped.model_dump_json(indent=2).encode())


def _unwritable(run_dir: Path, error: OSError, placed_by: str) -> SpecError:
    message = f"cannot write to the run directory {run_dir.absolute()}: {error.strerror}"
    return SpecError([Problem(path=placed_by, message=message, remedy="choose another")])


def _attempts(run_dir: Path) -> list[Path]:
    if not run_dir.is_dir():
        return []
    return [path for path in run_dir.iterdir() if path.name.isdecimal() and path.is_dir()]


def _check_same_run(run_dir: Path, stored: ExperimentSpec, spec: ExperimentSpec) -> None:
    key = placed_by(spec.launcher)
    place = key if spec.launcher.log_dir or spec.orchestration.log_dir else f"orchestration.name or {key}"
    remedy = f"choose another {place}, or restore the key"
    problems = _difference_problems(stored, spec, f"{run_dir} holds a run with", remedy)
    if problems:
        raise SpecError(problems)


def _difference_problems(stored: ExperimentSpec, spec: ExperimentSpec, other: str, remedy: str) -> list[Problem]:
    """The first keys in which what is learnt differs; `other` introduces the stored value."""
    old, new = (essence(config.model_dump(mode="json")) for config in (stored, spec))
    return [
        Problem(path=path, message=f"is {_short(ours)}, but {other} {_short(theirs)}", remedy=remedy)
        for path, theirs, ours in islice(_differences(old, new), 3)
    ]


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Paths at which two configs differ, with both values, in the order of the new one."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*new, *old]):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (old_item, new_item) in enumerate(zip(old, new, strict=True)):
            yield from _differences(old_item, new_item, f"{path}.{i}")
    elif old != new:
        yield path, old, new


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:20]}...{text[-37:]}"  # of paths it is the end that differs
