"""Byte streams of attempts."""

from __future__ import annotations

from pydantic import Field

from nanollama.api.schemas.base import Response


class StreamInfo(Response):
    """A byte stream of an attempt."""

    attempt_id: str
    name: str
    length: int


class LogTail(Response):
    """The end of a text stream."""

    attempt: int
    name: str
    offset: int = Field(description="byte offset of the first byte of `text`")
    length: int = Field(description="bytes stored so far")
    text: str
    streams: list[str] = Field(default=[], description="names of the text streams that the attempt has")
