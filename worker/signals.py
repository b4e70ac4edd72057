"""Signals to the worker, waited for in its main thread."""

from __future__ import annotations

import os
import select
import signal
from types import FrameType, TracebackType


class Signals:
    """SIGINT and SIGTERM as bytes in a pipe, to be waited for in the main thread. Use as a context manager.

    The pipe is written to by the interpreter's own handler, whichever thread the kernel has chosen for it. A lock or a
    queue would not do: of two signals in quick succession the second may go to another thread, and a main thread that
    sleeps on a lock then sleeps on.
    """

    def __init__(self) -> None:
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)

    def __enter__(self) -> Signals:
        self._wakeup_before = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, _noted) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)

    def wake(self) -> None:
        """End a wait as a signal would."""
        os.write(self._write_end, b"\0")

    def wait(self, seconds: float | None = None) -> bool:
        """Take one signal, waiting for it up to some seconds or for ever; False when none has come."""
        readable, _, _ = select.select([self._read_end], [], [], seconds)
        return bool(readable and os.read(self._read_end, 1))

    def __del__(self) -> None:
        os.close(self._read_end)
        os.close(self._write_end)


def _noted(_number: int, _frame: FrameType | None) -> None:
    """What the interpreter has written to the pipe is enough."""
