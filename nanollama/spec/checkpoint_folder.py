"""The directory of a run's checkpoint, for those who look after it from outside: service and worker.

What the other side says is not trusted: a checkpoint lies where the contract puts it below a run root, with no link on
the way, or it is left alone. Nothing is ever loaded, only passed on.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import BinaryIO

from nanollama.spec.rundir import CHECKPOINTS, PINNED, checkpoint_name, write_atomic


class Unusable(Exception):
    """A checkpoint that is left alone; the message says why."""


class Gone(Exception):
    """There is no such checkpoint any more, or no such file in it."""


class CheckpointFolder:
    """A checkpoint of a run below a run root.

    Args:
        root: run root, absolute.
        run_id: whose checkpoint.
        step: which.

    Raises:
        Unusable: it cannot be read, or its path leads elsewhere.
        Gone: it is not there.
    """

    def __init__(self, root: Path, run_id: str, step: int) -> None:
        if run_id in ("", ".", "..") or "/" in run_id or "\x00" in run_id or step < 0:
            raise Unusable(f"'{run_id[:100]}' is not the id of a run")
        inner = Path(run_id, CHECKPOINTS, checkpoint_name(step))
        try:
            resolved = root.resolve()
            found = (root / inner).resolve(strict=True)
        except FileNotFoundError:
            raise Gone(f"the files of checkpoint {step} of run '{run_id}' are gone") from None
        except (OSError, RuntimeError) as error:
            raise Unusable(f"the files of this checkpoint cannot be read: {error}") from None
        if found != resolved / inner or not found.is_dir():
            raise Unusable("the path of this checkpoint leads out of its run: it is left alone")
        self.path = found

    @property
    def pinned(self) -> bool:
        """Whether training may not remove it."""
        return os.path.lexists(self.path / PINNED)

    def pin(self, who: str) -> None:
        """Forbid training to remove it; repeating it changes nothing."""
        if not self.pinned:
            write_atomic(self.path / PINNED, f"pinned by {who}\n".encode())

    def unpin(self) -> None:
        """Allow training to remove it."""
        (self.path / PINNED).unlink(missing_ok=True)

    def names(self) -> list[tuple[str, int]]:
        """Name and size of each plain file."""
        with os.scandir(self.path) as entries:
            return sorted(
                (entry.name, entry.stat(follow_symlinks=False).st_size)
                for entry in entries
                if entry.is_file(follow_symlinks=False)
            )

    def open(self, name: str) -> tuple[BinaryIO, int]:
        """A plain file, opened, and its size. Raises Gone."""
        missing = Gone(f"there is no file '{name[:100]}' in this checkpoint")
        if name in ("", ".", "..") or "/" in name or "\x00" in name:
            raise missing
        try:
            handle = os.open(self.path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            raise missing from None
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            os.close(handle)
            raise missing
        return os.fdopen(handle, "rb"), status.st_size

    def delete(self) -> None:
        """Remove it: at once for readers of the directory, links in it as links. Raises Unusable if it is pinned."""
        if self.pinned:
            raise Unusable("this checkpoint is pinned; unpin it first")
        doomed = self.path.with_name(f".{self.path.name}.deleted")
        if os.path.lexists(doomed):  # of a removal that was cut short
            shutil.rmtree(doomed)
        self.path.rename(doomed)
        shutil.rmtree(doomed)


def clear_deleted(root: Path, run_id: str, step: int) -> None:
    """Finish a removal that was cut short after the checkpoint had vanished.

    Raises:
        Unusable: the path leads elsewhere.
    """
    checkpoints = root.resolve() / run_id / CHECKPOINTS
    doomed = checkpoints / f".{checkpoint_name(step)}.deleted"
    if "/" in run_id or not os.path.lexists(doomed):
        return
    if checkpoints.resolve() != checkpoints:
        raise Unusable("the path of this checkpoint leads out of its run: it is left alone")
    shutil.rmtree(doomed)
