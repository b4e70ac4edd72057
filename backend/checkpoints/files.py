"""Files of checkpoints, where the service reaches them: below the run roots that it was told of, and nowhere else.

What a worker reports is not trusted: a path counts only if it is the one that the contract gives the run's checkpoint
below such a root, with no link on the way. Nothing is ever loaded, only passed on.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from nanollama.api.errors import Conflict, NotFound
from nanollama.spec.rundir import CHECKPOINTS, PINNED, checkpoint_name, write_atomic

PIECE = 1 << 20


class CheckpointFiles:
    """The directory of a run's checkpoint.

    Args:
        roots: run roots that the service may touch, absolute.
        run_id: whose checkpoint.
        step: which.
        reported: path that the worker reported.

    Raises:
        Conflict: it lies elsewhere, or cannot be reached from here.
        NotFound: its files are gone.
    """

    def __init__(self, roots: Sequence[Path], run_id: str, step: int, reported: str) -> None:
        inner = Path(run_id, CHECKPOINTS, checkpoint_name(step))
        root = next((root for root in roots if Path(reported) == root / inner), None)
        if root is None:
            raise Conflict(
                "the service does not reach the files of this checkpoint; start it with --run-roots, the folder that "
                "the worker has, on a file system that both share"
            )
        try:
            found = (root / inner).resolve(strict=True)
        except FileNotFoundError:
            raise NotFound(f"the files of checkpoint {step} of run '{run_id}' are gone") from None
        except (OSError, RuntimeError) as error:
            raise Conflict(f"the files of this checkpoint cannot be read: {error}") from None
        if found != root.resolve() / inner or not found.is_dir():
            raise Conflict("the path of this checkpoint leads out of its run: it is left alone")
        self._folder = found

    @property
    def pinned(self) -> bool:
        """Whether training may not remove it."""
        return os.path.lexists(self._folder / PINNED)

    def pin(self, who: str) -> None:
        """Forbid training to remove it; repeating it changes nothing."""
        if not self.pinned:
            write_atomic(self._folder / PINNED, f"pinned by {who}\n".encode())

    def unpin(self) -> None:
        """Allow training to remove it."""
        (self._folder / PINNED).unlink(missing_ok=True)

    def names(self) -> list[tuple[str, int]]:
        """Name and size of each plain file."""
        with os.scandir(self._folder) as entries:
            return sorted(
                (entry.name, entry.stat(follow_symlinks=False).st_size)
                for entry in entries
                if entry.is_file(follow_symlinks=False)
            )

    def open(self, name: str) -> tuple[BinaryIO, int]:
        """A plain file, opened, and its size. Raises NotFound."""
        if name in ("", ".", "..") or "/" in name or "\x00" in name:
            raise NotFound(f"there is no file '{name[:100]}' in this checkpoint")
        try:
            handle = os.open(self._folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            raise NotFound(f"there is no file '{name[:100]}' in this checkpoint") from None
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            os.close(handle)
            raise NotFound(f"there is no file '{name[:100]}' in this checkpoint")
        return os.fdopen(handle, "rb"), status.st_size

    def delete(self) -> None:
        """Remove it: at once for readers of the directory, links in it as links. Raises Conflict if it is pinned."""
        if self.pinned:
            raise Conflict("this checkpoint is pinned; unpin it first")
        doomed = self._folder.with_name(f".deleted-{secrets.token_hex(8)}")
        self._folder.rename(doomed)
        shutil.rmtree(doomed)


def pieces(file: BinaryIO) -> Iterator[bytes]:
    """The bytes of a file, which is closed at the end."""
    with file:
        while piece := file.read(PIECE):
            yield piece
