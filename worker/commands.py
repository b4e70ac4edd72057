"""What people want done with checkpoints that only the workers of a pool reach: pin, unpin, delete.

The service repeats a command until it has heard what became of it, so each may come again: to do it again changes
nothing. Whatever the service says, only checkpoints below the own run root are touched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from nanollama.api.schemas import Command, CommandDone
from nanollama.spec.checkpoint_folder import CheckpointFolder, Gone, Unusable, clear_deleted

log = logging.getLogger(__name__)

_MAX_REASON = 1000


class Commands:
    """The commands of one worker.

    Args:
        run_root: below which the checkpoints lie.
        held: whether this worker holds an attempt of a run, given by its id.
    """

    def __init__(self, run_root: Path, held: Callable[[str], bool]) -> None:
        self._run_root = run_root
        self._held = held
        self._done: dict[str, CommandDone] = {}

    @property
    def done(self) -> list[CommandDone]:
        """What the service is to be told."""
        return list(self._done.values())

    def told(self, reports: Sequence[CommandDone]) -> None:
        """The service has heard of these."""
        for report in reports:
            self._done.pop(report.id, None)

    def carry_out(self, commands: Sequence[Command]) -> None:
        """Do what is asked for, one after another; what cannot be done is reported too."""
        for command in commands:
            problem = self._problem(command)
            what = f"{command.kind} checkpoint {command.step} of run {command.run_id}"
            if problem is None:
                log.info("%s: done, as asked by %s", what, command.by or "the service")
            else:
                log.warning("%s: %s", what, problem)
            report = command.model_dump() | {"problem": problem}
            self._done[command.id] = CommandDone.model_validate(report)

    def _problem(self, command: Command) -> str | None:
        """Do it; why it cannot be done, or None."""
        deletes = command.kind == "delete"
        if deletes and self._held(command.run_id):
            return "the run goes on here, and may continue from it"
        try:
            if deletes:
                clear_deleted(self._run_root, command.run_id, command.step)
            folder = CheckpointFolder(self._run_root, command.run_id, command.step)
            if command.kind == "pin":
                folder.pin(command.by or "request")
            elif command.kind == "unpin":
                folder.unpin()
            else:
                folder.delete()
        except Gone as error:
            return None if deletes else str(error)
        except Unusable as error:
            return str(error)[:_MAX_REASON]
        except OSError as error:
            return f"{error.strerror or error}: {error.filename}"[:_MAX_REASON]
        return None
