"""What every executor offers: start at most once, look without side effects, forbid, stop, kill."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Protocol

from nanollama.api.status import AttemptState
from nanollama.spec.rundir import Exit

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")

ExecutorKind = Literal["local", "slurm", "fake"]
Forbidder = Literal["cancel", "void"]


class Refused(Exception):
    """An attempt that this worker will not or cannot start; the text is the reason, for people."""


class Busy(Exception):
    """An attempt that cannot be started yet, because other runs use what it needs; the text says what that is."""


@dataclass(frozen=True)
class Attempt:
    """What an executor needs to know. `directory` is the attempt directory, absolute."""

    id: str
    directory: Path
    app: str
    config: dict[str, Any] = field(repr=False)
    experiment: str | None = None


def is_plain_name(text: str) -> bool:
    """Whether a name from the service can name a file: it leads nowhere else."""
    return _PLAIN_NAME.fullmatch(text) is not None


def attempt_directory(run_root: Path, run_id: str, number: int) -> Path:
    """Where an attempt lies: always beneath the run root, whatever the service says.

    Raises:
        Refused: a run id that is not a plain name.
    """
    if not is_plain_name(run_id):
        raise Refused(f"the run id '{run_id}' cannot name a folder")
    return run_root / run_id / str(number)


class Phase(Enum):
    """How far the execution of an attempt has come, by the evidence in its directory."""

    ABSENT = "absent"  # nothing was started, or of what was started nothing is left and no code can have run
    SUBMITTED = "submitted"  # it waits for a scheduler, with `reason`
    STARTING = "starting"
    RUNNING = "running"
    ENDED = "ended"  # with `exit`; nothing executes any more
    VANISHED = "vanished"  # it was started, is not there any more, and left no account of its end
    FORBIDDEN = "forbidden"  # the claim was taken so that no code will ever run
    FAILED_TO_START = "failed_to_start"  # no code has run; it counts as `verdict`, or else as failed
    JUDGED = "judged"  # nothing executes any more, and a scheduler's word on it is `verdict`
    UNKNOWN = "unknown"  # it has run, and nobody can see what has become of it: it comes back, or a person has to say


@dataclass(frozen=True)
class Status:
    """What a look at an attempt found."""

    phase: Phase
    exit: Exit | None = None
    forbidder: Forbidder | None = None
    reason: str | None = None
    verdict: AttemptState | None = None


class Executor(Protocol):
    """Executes attempts. Every method may be called again, also by a later life of the worker."""

    @property
    def kind(self) -> ExecutorKind:
        """The name of the executor on the wire."""

    @property
    def look_seconds(self) -> float:
        """How long to wait between two looks at an attempt that goes on."""

    def start(self, attempt: Attempt) -> None:
        """Start the attempt; however often it is called, code runs once.

        Raises:
            Refused: it cannot be started, now or later.
            Busy: it has to wait for other runs; nothing has been started.
            OSError: it cannot be started at the moment; nothing has been.
        """

    def look(self, attempt: Attempt) -> Status:
        """Where the attempt is."""

    def look_without_files(self, attempt: Attempt) -> Status:
        """Where an attempt that has begun is, when its files are gone while those of others are there."""

    def forbid(self, attempt: Attempt, by: Forbidder) -> bool:
        """Forbid the start. True proves that no code has run or will; False says that somebody else has the claim."""

    def stop(self, attempt: Attempt) -> None:
        """Ask for a prompt end and return at once; what resists is killed after the executor's grace."""

    def kill(self, attempt: Attempt) -> None:
        """End everything that belongs to the attempt; returns when nothing is left."""

    def release(self, attempt: Attempt) -> None:
        """The attempt is over for this worker: drop what is kept of it in memory."""
