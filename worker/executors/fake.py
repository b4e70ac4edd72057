"""An executor without processes, for tests: what a run does and how it ends is told to it."""

from __future__ import annotations

import threading
import time

from nanollama.spec.rundir import STOP_REQUESTED, Exit
from worker.executors.base import Attempt, ExecutorKind, Forbidder, Phase, Refused, Status


class FakeExecutor:
    """Keeps every promise of the interface. It survives the worker, as supervisors do: hand it to the next one.

    Args:
        obedient: whether a run ends when it is told to.
    """

    def __init__(self, *, obedient: bool = True) -> None:
        self.obedient = obedient
        self.starts: dict[str, int] = {}
        """How often code was run, by attempt: never above 1."""
        self.executing: set[str] = set()
        """The attempts of which processes are left."""
        self.refusal: str | None = None
        """Why the next starts are refused."""
        self.statuses: dict[str, Status] = {}
        """The evidence, by attempt."""
        self._lock = threading.Lock()

    @property
    def kind(self) -> ExecutorKind:
        """The name of the executor on the wire."""
        return "fake"

    @property
    def look_seconds(self) -> float:
        """Between two looks: what is looked at is cheap, and somebody waits for it."""
        return 0.25

    def start(self, attempt: Attempt) -> None:
        """The run begins at once.

        Raises:
            Refused: `refusal` is set.
        """
        with self._lock:
            if self.refusal is not None:
                raise Refused(self.refusal)
            if attempt.id in self.statuses:
                return
            attempt.directory.mkdir(parents=True, exist_ok=True)
            self.starts[attempt.id] = self.starts.get(attempt.id, 0) + 1
            self.statuses[attempt.id] = Status(Phase.RUNNING)
            self.executing.add(attempt.id)

    def look(self, attempt: Attempt) -> Status:
        """Where the run is; one that was asked to stop and obeys has stopped."""
        with self._lock:
            status = self.statuses.get(attempt.id, Status(Phase.ABSENT))
        if status.phase is Phase.RUNNING and self.obedient and (attempt.directory / STOP_REQUESTED).exists():
            self.finish(attempt.id, exit_code=1)
            return self.statuses[attempt.id]
        return status

    def look_without_files(self, attempt: Attempt) -> Status:
        """Whether processes are left of it."""
        reason = f"its files are gone from {attempt.directory}"
        return Status(Phase.UNKNOWN if attempt.id in self.executing else Phase.VANISHED, reason=reason)

    def forbid(self, attempt: Attempt, by: Forbidder) -> bool:
        """Forbid the start."""
        with self._lock:
            if attempt.id in self.statuses:
                return False
            self.statuses[attempt.id] = Status(Phase.FORBIDDEN, forbidder=by)
            return True

    def stop(self, attempt: Attempt) -> None:
        """The run ends by SIGTERM if it obeys."""
        if self.obedient:
            self.finish(attempt.id, exit_code=None, signal=15)

    def kill(self, attempt: Attempt) -> None:
        """Nothing of the run is left, no account of its end either."""
        self.vanish(attempt.id)
        self.executing.discard(attempt.id)

    def release(self, attempt: Attempt) -> None:
        """Nothing is kept beside the evidence."""

    def finish(self, attempt_id: str, *, exit_code: int | None = 0, signal: int | None = None) -> None:
        """The run ends; its files are the test's to write, before."""
        self.executing.discard(attempt_id)
        self._end(attempt_id, Status(Phase.ENDED, exit=Exit(exit_code=exit_code, signal=signal, time=time.time())))

    def vanish(self, attempt_id: str) -> None:
        """The run's supervisor is gone without an account; what it supervised is not."""
        self._end(attempt_id, Status(Phase.VANISHED, reason="it has vanished"))

    def _end(self, attempt_id: str, status: Status) -> None:
        with self._lock:
            if self.statuses.get(attempt_id, Status(Phase.ABSENT)).phase is Phase.RUNNING:
                self.statuses[attempt_id] = status
