"""Accelerators of this machine: which run has which, so that no two have the same one."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from worker.executors.base import Busy, Refused
from worker.journal import Journal
from worker.machine import CUDA_VISIBLE_DEVICES

SUPERVISOR = "worker.executors.supervisor"


@dataclass(frozen=True)
class Supervised:
    """A supervisor that executes an attempt on this machine, whoever has started it."""

    pid: int
    attempt_id: str
    directory: Path
    devices: tuple[str, ...]


def find_supervised() -> Iterator[Supervised]:
    """Every live supervisor of this machine that this user may look at."""
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            if SUPERVISOR not in command[:4]:
                continue
            attempt_id, directory = command[command.index(SUPERVISOR) + 1 :][:2]
            listed = process.environ().get(CUDA_VISIBLE_DEVICES, "")
        except (psutil.Error, OSError, ValueError):
            continue
        yield Supervised(process.pid, attempt_id, Path(directory), tuple(listed.split(",")) if listed else ())


class Devices:
    """The accelerators that this worker may give away.

    What has been given is in the journal before a run starts, and in the environment of its supervisor as long as that
    lives: neither a restart of the worker nor a lost journal makes it forget.

    Args:
        names: as CUDA_VISIBLE_DEVICES has them.
        journal: remembers what was given to whom.
    """

    def __init__(self, names: Sequence[str], journal: Journal) -> None:
        self._names = tuple(names)
        self._journal = journal
        self._lock = threading.Lock()
        held = {record.lease.attempt_id for record in journal.held()}
        for attempt_id in journal.assigned().keys() - held:
            journal.unassign(attempt_id)

    def __bool__(self) -> bool:
        return bool(self._names)

    def take(self, attempt_id: str, count: int) -> tuple[str, ...]:
        """Give accelerators to an attempt, the same ones however often it asks.

        Raises:
            Refused: there will never be so many.
            Busy: there are not so many at the moment.
        """
        if count > len(self._names):
            raise Refused(
                f"it wants {count} accelerators, one for each rank, and this worker has {len(self._names)}: start "
                "fewer ranks, or say in the submission how many accelerators a run needs, so that it waits for a "
                "worker that has them"
            )
        with self._lock:
            assigned = self._journal.assigned()
            if attempt_id in assigned:
                return assigned[attempt_id]
            used = {name for names in assigned.values() for name in names}
            if len(self._names) - len(used) >= count > 0:  # looking at every process is for those that may succeed
                used |= {name for run in find_supervised() for name in run.devices}
            free = [name for name in self._names if name not in used]
            if len(free) < count:
                raise Busy(f"it wants {count} accelerators, and {len(free)} of {len(self._names)} are free")
            given = tuple(free[:count])
            self._journal.assign(attempt_id, given)
            return given

    def free(self, attempt_id: str) -> None:
        """Take back what an attempt has; as long as its supervisor lives, nobody else is given it."""
        self._journal.unassign(attempt_id)
