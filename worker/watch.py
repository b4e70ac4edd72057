"""What a worker says of itself: a run root that cannot be used, runs that nobody has told it of."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from worker.root import RootAway

log = logging.getLogger(__name__)

LOOK_SECONDS = 30.0
LOW_BYTES = 10**9
"""Room on the run root below which the worker complains; below a tenth of it, it takes no runs."""

_MAX_PROBLEMS, _MAX_CHARS = 100, 1000

FindStrays = Callable[[Path], Mapping[str, str]]
"""What executes below a run root, in words, by attempt."""


def no_strays(_run_root: Path) -> dict[str, str]:
    """For an executor that cannot look."""
    return {}


class Watch:
    """A task that looks after the run root, and for runs that execute here although the worker does not hold them.

    Such a run was started by an earlier life whose journal has been lost, or is another worker's. It is left alone:
    when its lease has expired, a worker of the pool is given it and finds it by its files.

    Args:
        run_root: where the runs write.
        find_strays: finds what executes below it.
        held: the attempts that the worker holds.
        check: raises OSError where the run root is away though a folder is there.
    """

    def __init__(
        self,
        run_root: Path,
        find_strays: FindStrays,
        held: Callable[[], Collection[str]],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._run_root = run_root
        self._check = check
        self._find_strays = find_strays
        self._held = held
        self._strays: Mapping[str, str] | None = None  # not looked for yet
        self._room: str | None = None
        self.unusable: str | None = None
        """Why no run can be taken; None when one can."""

    @property
    def problems(self) -> list[str]:
        """What people should know."""
        found = [text for text in (self.unusable or self._room, *(self._strays or {}).values()) if text is not None]
        return [_one_line(text) for text in found[:_MAX_PROBLEMS]]

    def step(self) -> float:
        """Look; the seconds until the next look."""
        before = self.problems
        self.unusable, self._room = _look_at(self._run_root, self._check)
        if self._strays is None or self._strays:  # none appear later: what is started from now on is held
            held, found = self._held(), self._find_strays(self._run_root)
            self._strays = {key: text for key, text in found.items() if key not in held}
        for text in self.problems:
            if text not in before:
                log.warning("%s", text)
        for text in before:
            if text not in self.problems:
                log.info("over: %s", text)
        return LOOK_SECONDS


def _one_line(text: str) -> str:
    """As it can be sent, whatever characters a path holds."""
    return " ".join(text.encode(errors="replace").decode().split())[:_MAX_CHARS]


def _look_at(folder: Path, check: Callable[[], None]) -> tuple[str | None, str | None]:
    """Why the folder cannot be used, and what is about to make it so."""
    try:
        check()
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
        status = os.statvfs(folder)
    except RootAway as away:
        return f"takes no runs: {away}", None
    except OSError as error:
        return f"takes no runs: cannot write in the run root {folder}: {error.strerror or error}", None
    left = status.f_bavail * status.f_frsize
    if left < LOW_BYTES // 10:
        return f"takes no runs: the run root {folder} has less than 100 MB left", None
    if left < LOW_BYTES:
        return None, f"the run root {folder} has less than 1 GB left"
    return None, None
