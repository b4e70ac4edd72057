"""Parse the lines of a stream. A line that is not what it should be is counted, and never stops the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import PurePosixPath
from typing import Generic, TypeVar

from pydantic import ValidationError

from backend.columns import BIGINT_MAX
from backend.evaluations.lines import read_by_position
from nanollama.spec.rundir import CHECKPOINTS, EventLine, checkpoint_name

MAX_LINE = 1 << 20
"""A longer line is no record: its bytes are kept as they come."""
LAST_SECOND = 253_402_300_799
"""Of the year 9999."""

LineT = TypeVar("LineT")


@dataclass
class Parsed(Generic[LineT]):
    """Records with the byte offset of their lines, and what was wrong with the other lines."""

    records: list[tuple[int, LineT]] = field(default_factory=list)
    malformed: int = 0
    first: str = ""

    def warning(self, name: str) -> str | None:
        """What to tell people about the malformed lines; None when there are none."""
        if not self.malformed:
            return None
        lines = "a line" if self.malformed == 1 else f"{self.malformed} lines"
        return f"{lines} of {name} could not be read; the first, {self.first}"


def parse_events(data: bytes, offset: int) -> Parsed[EventLine]:
    """Event lines of a piece of a stream that starts at byte `offset` and ends with a whole line."""
    return parse_each(data, offset, _event)


def line_time(seconds: float) -> datetime:
    """The time of a parsed line."""
    return datetime.fromtimestamp(seconds, timezone.utc)


def checkpoint_path(line: EventLine) -> PurePosixPath:
    """Where the line's checkpoint lies, relative to the run directory. ValueError if that is outside."""
    path = PurePosixPath(line.path if line.path is not None else f"{CHECKPOINTS}/{checkpoint_name(line.step)}")
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"the path '{path}' leaves the run directory")
    return path


def parse_each(data: bytes, offset: int, parse: Callable[[bytes], LineT]) -> Parsed[LineT]:
    """Each line by itself; `parse` raises ValueError or OverflowError for one that is no record."""
    parsed: Parsed[LineT] = Parsed()
    for start, line in _lines(data, offset):
        try:
            parsed.records.append((start, parse(line)))
        except (ValueError, OverflowError) as error:
            parsed.malformed += 1
            parsed.first = parsed.first or f"at byte {start}: {_reason(error)}"
    return parsed


def _lines(data: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    for line in data.removesuffix(b"\n").split(b"\n"):
        yield offset, line
        offset += len(line) + 1


def _event(text: bytes) -> EventLine:
    if len(text) > MAX_LINE:
        raise ValueError(f"longer than {MAX_LINE:,} bytes")
    line = EventLine.model_validate_json(text, strict=True)
    check_numbers(line.seq, line.step, line.size_bytes or 0)
    check_time(line.time)
    if line.kind == "checkpoint_saved":
        checkpoint_path(line)
        if line.size_bytes is None or line.digest is None:
            raise ValueError("a saved checkpoint needs size_bytes and digest")
    read_by_position(line)
    return line


def check_numbers(*numbers: int) -> None:
    """ValueError for a number that no column holds."""
    if any(not 0 <= number <= BIGINT_MAX for number in numbers):
        raise ValueError("a number is out of range")


def check_time(seconds: float) -> None:
    """ValueError for a time that no calendar holds."""
    if not (math.isfinite(seconds) and 0 <= seconds <= LAST_SECOND):
        raise ValueError(f"the time {seconds} is out of range")


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"{place}: {first['msg']}" if place else first["msg"]
    return str(error)
