"""The container of an archive: a gzipped tar file of plain files, written and read as a stream.

The reader takes nothing but what the writer makes: a header block in the ustar format for each file, of type file. Tar
has much more to offer - links, long names, sparse files - and each of those is a way to surprise whoever reads it.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from typing import IO

from nanollama.api.errors import InvalidRequest, TooLarge
from nanollama.spec.base import Problem

PIECE = 1 << 20
MAX_MEMBERS = 500_000
SMALLER = "export the runs one by one, and import each"
"""What to do about an archive that is too large."""

_BLOCK = tarfile.BLOCKSIZE
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*){0,5}")


def refusal(message: str, *, path: str = "archive", remedy: str | None = None) -> InvalidRequest:
    """The error for an archive that cannot be read."""
    return InvalidRequest(message, [Problem(path=path, message=message, remedy=remedy)])


class ArchiveWriter:
    """Writes files one after another and remembers their digests. Use as a context manager."""

    def __init__(self, file: IO[bytes]) -> None:
        self._gzip = gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0)
        self.digests: list[tuple[str, int, str]] = []

    def __enter__(self) -> ArchiveWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._gzip.close()

    def add(self, name: str, size: int, pieces: Iterable[bytes]) -> None:
        """Write a file of that size."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o644
        self._gzip.write(info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))
        digest, written = hashlib.sha256(), 0
        for piece in pieces:
            digest.update(piece)
            written += len(piece)
            self._gzip.write(piece)
        assert written == size, f"{name}: {written} bytes, announced were {size}"
        self._gzip.write(bytes(-size % _BLOCK))
        self.digests.append((name, size, digest.hexdigest()))

    def finish(self) -> None:
        """Write the end of the tar file."""
        self._gzip.write(bytes(2 * _BLOCK))


class Member:
    """A file of an archive that is being read; its bytes are there until the next one is asked for."""

    def __init__(self, name: str, size: int, source: _Source) -> None:
        self.name = name
        self.size = size
        self._source = source
        self._left = size
        self._digest = hashlib.sha256()

    def pieces(self) -> Iterator[bytes]:
        """Its bytes."""
        while self._left:
            piece = self._source.exactly(min(PIECE, self._left))
            self._left -= len(piece)
            self._digest.update(piece)
            yield piece

    def read(self, limit: int) -> bytes:
        """All of it. Raises InvalidRequest when it has more bytes than that."""
        if self.size > limit:
            raise refusal(f"{self.name} has {self.size:,} bytes, and {limit:,} are allowed")
        return b"".join(self.pieces())

    def sha256(self) -> str:
        """The digest of its bytes, which are read to the end."""
        for _ in self.pieces():
            pass
        return self._digest.hexdigest()


def read_members(file: IO[bytes], max_bytes: int) -> Iterator[Member]:
    """The files of an archive, in order.

    Args:
        file: at its start.
        max_bytes: of the unpacked archive; whatever a small file unpacks to, more is never read.

    Raises:
        InvalidRequest: it is no such archive, or it is cut off.
        TooLarge: it has more bytes or files than are allowed.
    """
    with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
        source = _Source(unpacked, max_bytes)
        names: set[str] = set()
        while True:
            block = source.exactly(_BLOCK)
            if not any(block):
                if any(source.exactly(_BLOCK)):
                    raise refusal("the archive does not end as a tar file does")
                source.expect_end()
                return
            member = _member(block, source)
            if member.name in names:
                raise refusal(f"the archive holds {member.name} twice")
            names.add(member.name)
            if len(names) > MAX_MEMBERS:
                raise TooLarge(f"the archive holds more than the {MAX_MEMBERS:,} files that are allowed; {SMALLER}")
            yield member
            member.sha256()
            source.exactly(-member.size % _BLOCK)


def _member(block: bytes, source: _Source) -> Member:
    try:
        info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    except (tarfile.HeaderError, ValueError):
        raise refusal("the archive is no tar file that this service has written") from None
    if info.type != tarfile.REGTYPE:
        raise refusal(f"the archive holds {info.name[:100]!r}, which is no plain file")
    if not _NAME.fullmatch(info.name):
        raise refusal(f"the archive holds a file called {info.name[:100]!r}, which is no name of ours")
    if not 0 <= info.size <= source.left:
        raise source.too_large()
    return Member(info.name, info.size, source)


class _Source:
    """Unpacked bytes, as many as are allowed."""

    def __init__(self, unpacked: gzip.GzipFile, max_bytes: int) -> None:
        self._unpacked = unpacked
        self._max_bytes = max_bytes
        self.left = max_bytes

    def too_large(self) -> TooLarge:
        return TooLarge(
            f"unpacked, the archive has more than the {self._max_bytes:,} bytes that are allowed; {SMALLER}"
        )

    def exactly(self, count: int) -> bytes:
        """The next bytes."""
        if count > self.left:
            raise self.too_large()
        data = b""
        while len(data) < count:
            piece = self._next(count - len(data))
            if not piece:
                raise refusal("the archive is cut off", remedy="copy or download it again")
            data += piece
        self.left -= count
        return data

    def expect_end(self) -> None:
        """Nothing may follow."""
        if self._next(1):
            raise refusal("something follows behind the end of the archive")

    def _next(self, count: int) -> bytes:
        try:
            return self._unpacked.read(count)
        except (OSError, EOFError, zlib.error):
            raise refusal(
                "the archive is no gzip file, or it is damaged", remedy="send what an export has answered, unchanged"
            ) from None
