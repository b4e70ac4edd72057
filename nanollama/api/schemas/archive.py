"""Runs and experiments that came from archives."""

from __future__ import annotations

from pydantic import Field

from nanollama.api.schemas.base import Response


class ImportReply(Response):
    """What an import has added."""

    experiments: list[str] = Field(description="ids of those that are new")
    runs: list[str] = Field(description="ids of those that are new")
    skipped: list[str] = Field(description="ids of runs and experiments that were there already, with the same content")
