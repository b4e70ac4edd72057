"""Server-sent events as a client reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Message:
    """One message of a stream: event, progress, log or end."""

    kind: str
    data: dict[str, Any]
    id: str | None = None


def read_messages(lines: Iterable[str]) -> Iterator[Message]:
    """The messages in the lines of a stream; a message that is cut off is left out."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            if name:
                fields[name] = value.removeprefix(" ")
        elif fields:
            if "data" in fields:
                yield Message(fields.get("event", "message"), json.loads(fields["data"]), fields.get("id"))
            fields = {}
