"""Requests to stop: signals, and a file for those whose signals do not arrive.

A signal is noted and no more: the training loop looks for it between two steps, and the ranks then agree in a
collective on the step after which they stop.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType

from nanollama.spec.rundir import STOP_REQUESTED

REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
INSISTENT = (signal.SIGINT, signal.SIGTERM)
"""Signals of which a second one ends the process at once. SIGUSR1 is a warning that Slurm may give again."""

ECHO_SECONDS = 1.0
"""Under torchrun the second of two signals so close together is the first one again: some senders reach every process
of a job, and torchrun then passes its own on."""

log = logging.getLogger(__name__)


def stop_requested(attempt_dir: Path) -> bool:
    """Whether this attempt is asked to save and end. Only rank 0 looks; the ranks then agree in a collective."""
    return (attempt_dir / STOP_REQUESTED).exists()


class StopSignals:
    """Within it the first SIGINT, SIGTERM or SIGUSR1 is noted, and a second SIGINT or SIGTERM ends the process.

    The second one is acted upon by a thread of its own, so that it works whatever the main thread is waiting for, a
    collective with a rank that is gone for example. It ends the process as SIGKILL does, with exit code 128 + its
    number: every line of the streams is on its way to the disk, a checkpoint that is being written is lost.
    Use as a context manager, in the main thread.
    """

    def __init__(self) -> None:
        self.first: signal.Signals | None = None
        self._echo = ECHO_SECONDS if "TORCHELASTIC_RUN_ID" in os.environ else 0.0

    def __enter__(self) -> StopSignals:
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._wakeup_before = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._handlers_before = {number: signal.signal(number, self._note) for number in REQUESTS}
        self._watcher = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._write_end)
        self._watcher.join()
        os.close(self._read_end)

    def received(self) -> str | None:
        """The name of the first signal that has come; None before."""
        return None if self.first is None else self.first.name

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.first = self.first or signal.Signals(number)

    def _watch(self) -> None:
        noted = False
        insisted_at: float | None = None
        while data := os.read(self._read_end, 256):
            for number in data:
                if number in REQUESTS and not noted:
                    noted = True
                    log.info("%s: the step is finished and saved, then the run stops", signal.Signals(number).name)
                if number in INSISTENT and insisted_at is None:
                    insisted_at = time.monotonic()
                elif number in INSISTENT and insisted_at is not None and time.monotonic() - insisted_at >= self._echo:
                    end_at_once(number)


def end_at_once(number: int) -> None:
    """End this process, whatever it does, as a shell would report the signal."""
    if sys.stderr.isatty():
        os.write(sys.stderr.fileno(), b"\x1b[?25h\n")  # a progress bar hides the cursor
    os.write(2, f"ended at once by a second {signal.Signals(number).name}\n".encode())
    os._exit(128 + number)
