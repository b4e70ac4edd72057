"""What people want done with checkpoints that only the workers of a pool reach: pin, unpin, delete.

The service repeats a command until it has heard what became of it, so each may come again: one that waits or is done
already is not done twice, and to do one again of which the service has heard changes nothing. Whatever the service
says, only checkpoints below the own run root are touched.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from nanollama.api.schemas import Command, CommandDone
from nanollama.spec.checkpoint_folder import CheckpointFolder, Gone, Unusable, clear_deleted

log = logging.getLogger(__name__)

_MAX_REASON = 1000
_IDLE_SECONDS = 3600.0


class Commands:
    """The commands of one worker: a task for the crew, as a deletion may take longer than a lease.

    Args:
        run_root: below which the checkpoints lie.
        held: whether this worker holds an attempt of a run, given by its id.
        wake: called when there is something to do.
    """

    def __init__(
        self, run_root: Path, held: Callable[[str], bool], wake: Callable[[Commands], None] = lambda _commands: None
    ) -> None:
        self._run_root = run_root
        self._held = held
        self._wake = wake
        self._lock = threading.Lock()
        self._waiting: deque[Command] = deque()  # in the order in which they came; the first may be under way
        self._done: dict[str, CommandDone] = {}
        self._deleting: str | None = None

    @property
    def done(self) -> list[CommandDone]:
        """What the service is to be told."""
        with self._lock:
            return list(self._done.values())

    @property
    def under_way(self) -> bool:
        """Whether some are not done yet."""
        return bool(self._waiting)

    def told(self, reports: Sequence[CommandDone]) -> None:
        """The service has heard of these."""
        with self._lock:
            for report in reports:
                self._done.pop(report.id, None)

    def take(self, commands: Sequence[Command]) -> None:
        """Have done what is asked for, one after another; what waits, or is done and not told yet, is known."""
        with self._lock:
            known = {command.id for command in self._waiting} | self._done.keys()
            new = [command for command in commands if command.id not in known]
            self._waiting += new
        if new:
            self._wake(self)

    def is_deleting(self, run_id: str) -> bool:
        """Whether a checkpoint of a run is being deleted: a start has to wait, or it might continue from it."""
        return self._deleting == run_id

    def step(self) -> float:
        """Do all that waits; what cannot be done is reported too. The seconds until the next step."""
        while self._waiting:
            command = self._waiting[0]
            problem = self._problem(command)
            what = f"{command.kind} checkpoint {command.step} of run {command.run_id}"
            if problem is None:
                log.info("%s: done, as asked by %s", what, command.by or "the service")
            else:
                log.warning("%s: %s", what, problem)
            report = CommandDone.model_validate(command.model_dump() | {"problem": problem})
            with self._lock:
                self._done[command.id] = report
                self._waiting.popleft()
        return _IDLE_SECONDS

    def _problem(self, command: Command) -> str | None:
        """Do it; why it cannot be done, or None."""
        deletes = command.kind == "delete"
        try:
            if deletes:
                return self._delete(command)
            folder = CheckpointFolder(self._run_root, command.run_id, command.step)
            if command.kind == "pin":
                folder.pin(command.by or "request")
            else:
                folder.unpin()
        except Gone as error:
            return None if deletes else str(error)
        except Unusable as error:
            return str(error)[:_MAX_REASON]
        except OSError as error:
            return f"{error.strerror or error}: {error.filename}"[:_MAX_REASON]
        return None

    def _delete(self, command: Command) -> str | None:
        """Delete a checkpoint, unless its run is held; whoever takes the run meanwhile waits with its start."""
        self._deleting = command.run_id  # first: a run that is taken after the question waits
        try:
            if self._held(command.run_id):
                return "the run goes on here, and may continue from it"
            clear_deleted(self._run_root, command.run_id, command.step)
            CheckpointFolder(self._run_root, command.run_id, command.step).delete()
        finally:
            self._deleting = None
        return None
