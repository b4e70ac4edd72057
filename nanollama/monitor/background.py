"""One job at a time beside the training loop."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """Runs jobs in order, at most one at a time, in a thread of its own or, if not wanted, at once.

    The thread does not keep the process alive: who has started jobs calls `drain` before the end.
    """

    def __init__(self, *, asynchronous: bool) -> None:
        self.asynchronous = asynchronous
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Run the job after the one before.

        Raises:
            BaseException: what the job before has raised, or this one when jobs are run at once.
        """
        self.drain()
        if not self.asynchronous:
            job()
            return
        self._thread = threading.Thread(target=self._run, args=(job,), name="checkpoints", daemon=True)
        self._thread.start()

    def drain(self) -> None:
        """Wait for the job under way.

        Raises:
            BaseException: what it has raised.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - it is raised again where it is waited for
            self._error = error
