"""Streams of server-sent events."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response

from backend.columns import BIGINT_MAX
from backend.deps import ContextDep, RunId, error_responses
from backend.live.feed import Feed
from backend.live.logs import LogFeed
from backend.live.sse import MEDIA_TYPE, EventStream
from backend.streams.service import StreamService
from nanollama.api.errors import InvalidRequest
from nanollama.spec.base import Problem

router = APIRouter()

LastId = Annotated[
    str | None, Header(max_length=40, description="`id` of the last message that was seen, as browsers send it")
]


def _stream_docs(example: str) -> dict[int | str, dict[str, Any]]:
    content = {MEDIA_TYPE: {"schema": {"type": "string"}, "example": example}}
    return {200: {"description": "messages, as they come; a comment as heartbeat", "content": content}}


@router.get(
    "/events/stream",
    tags=["runs"],
    summary="Follow runs",
    response_class=Response,
    responses=error_responses(429) | _stream_docs('event: event\nid: 7\ndata: {"run_id":"r1","kind":"transition"}\n\n'),
)
def stream_events(
    context: ContextDep,
    run: Annotated[list[str], Query(max_length=200, description="only these runs; all when absent")] = [],  # noqa: B006
    last_event_id: LastId = None,
) -> Response:
    """Messages `event`: what happened, in order and without loss, from `Last-Event-ID` on or from now.

    Messages `progress`: where running runs are; those have no id.
    """
    after = None if last_event_id is None else _event_id(last_event_id)
    return EventStream(context, Feed(context, after, run).messages())


@router.get(
    "/runs/{run_id}/logs/stream",
    tags=["runs"],
    summary="Follow a log",
    response_class=Response,
    responses=error_responses(404, 429)
    | _stream_docs('event: log\nid: 1-12\ndata: {"name":"stdout.log","text":"step 1\\n","offset":0}\n\n'),
)
def stream_log(
    *,
    context: ContextDep,
    run_id: RunId,
    attempt: Annotated[int | None, Query(ge=1, le=2**31 - 1, description="number; the newest when absent")] = None,
    stream: Annotated[
        str | None, Query(max_length=64, description="logs/rank<k>.log or stdout.log; rank 0's when absent")
    ] = None,
    tail_bytes: Annotated[int, Query(ge=0, le=4 << 20, description="how much of what is there is sent")] = 65536,
    last_event_id: LastId = None,
) -> Response:
    """Messages `log`: text as it comes; then `end`, once the attempt has ended and every byte was sent."""
    number, start = (attempt, None) if last_event_id is None else _place(last_event_id)
    with context.database.read() as session:
        service = StreamService(session, context.clock(), context.settings.max_stream_bytes)
        number = service.piece(run_id, number, name=stream, start=start, tail_bytes=tail_bytes).number
    feed = LogFeed(context, run_id, number, name=stream, start=start, tail_bytes=tail_bytes)
    return EventStream(context, feed.messages())


def _event_id(text: str) -> int:
    if not re.fullmatch(r"\d{1,19}", text) or int(text) > BIGINT_MAX:
        raise _no_id(text)
    return int(text)


def _place(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,9})-(\d{1,18})", text)
    if match is None:
        raise _no_id(text)
    return int(match.group(1)), int(match.group(2))


def _no_id(text: str) -> InvalidRequest:
    message = f"{text!r} is not the id of a message of this stream; leave the header out to begin anew"
    return InvalidRequest(message, [Problem(path="last-event-id", message=message)])
