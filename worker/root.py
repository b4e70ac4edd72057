"""The run root, known by a file in it: where the file is missing, its file system is away.

A file system that is not mounted leaves an empty folder, or none. Without the file every run would look as if somebody
had removed it, and a start would go into the folder below, where nobody finds it later.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from nanollama.spec.files import write_atomic
from worker.journal import Journal

ROOT_MARK = ".n2n-root"


class RootAway(OSError):
    """The run root is out of sight: nothing follows from what is not there."""


class RunRoot:
    """A run root that is marked the first time, and has to have its mark from then on.

    Args:
        path: the folder.
        journal: remembers that it has been marked.
    """

    def __init__(self, path: Path, journal: Journal) -> None:
        self.path = path
        self._journal = journal
        self._known = journal.knows_root(path)

    def check(self) -> None:
        """Do nothing where the run root is there.

        Raises:
            RootAway: its mark is missing.
            OSError: it cannot be looked at, or, the first time, marked.
        """
        mark = self.path / ROOT_MARK
        try:
            mark.stat()
        except FileNotFoundError:
            if self._known:
                remedy = f"mount it again; if nothing but {ROOT_MARK} was removed from it, make that file again"
                raise RootAway(f"the run root {self.path} is away: {ROOT_MARK} is missing in it - {remedy}") from None
            write_atomic(mark, f"{uuid.uuid4().hex}\n".encode())
        if not self._known:
            self._journal.remember_root(self.path)
            self._known = True
