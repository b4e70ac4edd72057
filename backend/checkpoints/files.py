"""Files of checkpoints, where the service reaches them: below the run roots that it was told of, and nowhere else."""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from nanollama.api.errors import Conflict, NotFound
from nanollama.spec.checkpoint_folder import CheckpointFolder, Gone, Unusable
from nanollama.spec.rundir import CHECKPOINTS, PINNED, checkpoint_name

PIECE = 1 << 20

OUT_OF_REACH = (
    "the service does not reach the files of this checkpoint; start it with --run-roots, the folder that the worker "
    "has, on a file system that both share"
)


def find_files(roots: Sequence[Path], run_id: str, step: int, reported: str) -> CheckpointFolder | None:
    """The directory of a run's checkpoint, if the path that was reported is the contract's below one of the roots.

    Raises:
        Conflict: it cannot be read, or leads elsewhere.
        NotFound: its files are gone.
    """
    inner = Path(run_id, CHECKPOINTS, checkpoint_name(step))
    root = next((root for root in roots if Path(reported) == root / inner), None)
    if root is None:
        return None
    with refusals():
        return CheckpointFolder(root, run_id, step)


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """What the folder refuses, as the API's errors."""
    try:
        yield
    except Gone as error:
        raise NotFound(str(error)) from None
    except Unusable as error:
        raise Conflict(str(error)) from None


def pieces(file: BinaryIO) -> Iterator[bytes]:
    """The bytes of a file, which is closed at the end."""
    with file:
        while piece := file.read(PIECE):
            yield piece


class Archive:
    """A checkpoint as an uncompressed tar file, of the files that are there now; its pin stays behind.

    Its members lie in a folder that is called as training wants it, so that a run can start from what was unpacked.

    Raises:
        Conflict, NotFound: the files cannot be read.
    """

    def __init__(self, folder: CheckpointFolder) -> None:
        self._members: list[tuple[bytes, BinaryIO, int]] = []
        with contextlib.ExitStack() as opened, refusals():
            for name, _ in folder.names():
                if name == PINNED:
                    continue
                file, size = folder.open(name)
                opened.enter_context(file)
                self._members.append((_header(f"{folder.path.name}/{name}", size), file, size))
            opened.pop_all()

    @property
    def size(self) -> int:
        """Of the whole, in bytes."""
        bytes_of_members = sum(len(header) + size + _padding(size) for header, _, size in self._members)
        return bytes_of_members + 2 * tarfile.BLOCKSIZE

    def __iter__(self) -> Iterator[bytes]:
        """The bytes. Raises OSError for a file that has shrunk: the download must not look complete."""
        with contextlib.ExitStack() as opened:
            for _, file, _ in self._members:
                opened.enter_context(file)
            for header, file, size in self._members:
                yield header
                left = size
                while left:
                    piece = file.read(min(PIECE, left))
                    if not piece:
                        raise OSError(f"a file of the checkpoint has lost {left:,} bytes")
                    left -= len(piece)
                    yield piece
                yield bytes(_padding(size))
            yield bytes(2 * tarfile.BLOCKSIZE)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def _padding(size: int) -> int:
    return -size % tarfile.BLOCKSIZE
