"""Jobs that wait."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from nanollama.api.schemas.base import Response
from nanollama.api.schemas.needs import Resources

Waiting = Literal["queue_paused", "experiment_paused", "no_worker", "draining", "busy", "next"]


class QueueEntry(Response):
    """A job that waits, and why."""

    position: int = Field(description="in the order of claims, from 0: priority, then fair share, then age")
    run_id: str
    run_name: str
    experiment_id: str
    attempt: int
    priority: int
    since: datetime
    resources: Resources
    reason: Waiting
    detail: str = Field(description="the reason in words")


class Queue(Response):
    """Jobs that wait, in the order of claims."""

    paused_since: datetime | None = None
    waiting: int = Field(description="all jobs that wait, whatever was asked for")
    items: list[QueueEntry]
