"""What the service logs, as lines for people or as JSON for programs; each with the request that it belongs to."""

from __future__ import annotations

import json
import logging
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Any

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the request that is being answered, in its threads as well."""


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, request_id, the fields of the record, the traceback."""

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102 - the interface of logging
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": request_id.get(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps({key: value for key, value in line.items() if value is not None}, ensure_ascii=False)


class TextLines(logging.Formatter):
    """A line for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(name)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102 - the interface of logging
        fields = {"request_id": request_id.get()} | getattr(record, "fields", {})
        shown = " ".join(f"{key}={value}" for key, value in fields.items() if value is not None)
        head, newline, rest = super().format(record).partition("\n")
        return f"{head} {shown}".rstrip() + newline + rest


def configure(level: str, form: str) -> None:
    """Log to standard error from now on, uvicorn's own lines included."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler])
