"""Column types that behave the same on SQLite and Postgres."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timezone
from typing import Any

from pydantic import BaseModel
from sqlalchemy import JSON, BigInteger, DateTime, Integer, String
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

from nanollama.spec.rundir import encode_number

BIGINT_MAX = 2**63 - 1

BigInt = BigInteger()
BigSerial = BigInteger().with_variant(Integer(), "sqlite")  # only INTEGER PRIMARY KEY numbers itself on SQLite
Json = JSON()  # not JSONB: the order of a config's keys survives


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time. SQLite has no time zones: it gets UTC without one."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To the database; a naive time is our bug."""
        if value is None:
            return None
        assert value.tzinfo is not None, "naive time"
        value = value.astimezone(timezone.utc)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """From the database."""
        if value is None:
            return None
        return value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value.astimezone(timezone.utc)


class Words(TypeDecorator[str]):
    """Bounded text. What a peer wrote is clipped and mended rather than refused; people's input is checked before."""

    impl = String
    cache_ok = True

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """To the database, without NUL and lone surrogates, which Postgres cannot store."""
        if value is None:
            return None
        text = clean_text(value)
        return text if len(text) <= self.length else text[: self.length - 1] + "…"


def clean_text(text: str) -> str:
    """The text with NUL and lone surrogates replaced: it can be stored and sent everywhere."""
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def dump_json(value: Any) -> str:
    """JSON for a column: non-finite numbers as words, text that every database and client accepts."""
    return json.dumps(clean_data(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_digest(model: BaseModel) -> str:
    """SHA-256 of a request's content: equal requests have equal digests."""
    return hashlib.sha256(dump_json(model.model_dump()).encode()).hexdigest()


def clean_data(value: Any) -> Any:
    """Plain data with non-finite numbers as words, keys as text, and text as `clean_text` makes it."""
    if isinstance(value, float):
        return encode_number(value)
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {clean_text(str(key)): clean_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean_data(item) for item in value]
    return value
