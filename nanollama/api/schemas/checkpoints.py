"""Checkpoints of runs."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from nanollama.api.schemas.base import Response


class Checkpoint(Response):
    """A checkpoint that training reported."""

    step: int
    attempt: int
    path: str = Field(description="absolute, on the worker's file system")
    size_bytes: int
    digest: str
    created_at: datetime
    removed: bool = False
    pinned: bool | None = Field(default=None, description="unknown where the service does not reach the files")


class CheckpointFile(Response):
    """A file of a checkpoint."""

    name: str
    size_bytes: int
