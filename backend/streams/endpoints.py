"""Streams: upload by workers, logs for people."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from backend.auth.access import needs, own_attempt
from backend.columns import BIGINT_MAX
from backend.deps import AttemptId, ContextDep, RunId, error_responses
from backend.streams.service import StreamService
from nanollama.api.schemas import LogTail, StreamInfo
from nanollama.api.scopes import WORKER

router = APIRouter()

READ_BYTES = 1 << 20


async def _raw_body(request: Request) -> bytes:
    return await request.body()


_BODY_DOCS = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.put(
    "/attempts/{attempt_id}/streams/{name:path}",
    tags=["attempts"],
    summary="Append to a stream",
    responses=error_responses(404, 409, 413, 416),
    openapi_extra=_BODY_DOCS,
    dependencies=[Depends(own_attempt)],
)
@needs(WORKER)
def put_stream(
    *,
    context: ContextDep,
    attempt_id: AttemptId,
    name: Annotated[str, Path(description="metrics/rank<k>.jsonl, events.jsonl, logs/rank<k>.log or stdout.log")],
    offset: Annotated[int, Query(ge=0, le=BIGINT_MAX, description="where the body stands in the worker's file")],
    epoch: Annotated[int, Query(ge=0, description="of the lease")],
    data: Annotated[bytes, Depends(_raw_body)],
) -> StreamInfo:
    """Bytes that the server has are ignored, so that a repetition is harmless; a gap is answered with 416.

    Of metrics and events only whole lines are taken, and their content in the same transaction: go on from the answered
    `length`.
    """
    with context.database.write() as session:
        return StreamService(session, context.clock(), context.settings.max_stream_bytes).put(
            attempt_id, name, epoch=epoch, offset=offset, data=data
        )


@router.get(
    "/attempts/{attempt_id}/streams", tags=["attempts"], summary="Streams of an attempt", responses=error_responses(404)
)
def list_streams(context: ContextDep, attempt_id: AttemptId) -> list[StreamInfo]:
    """Name and length of each that has bytes."""
    with context.database.read() as session:
        return StreamService(session, context.clock(), context.settings.max_stream_bytes).of_attempt(attempt_id)


@router.get(
    "/attempts/{attempt_id}/streams/{name:path}",
    tags=["attempts"],
    summary="Read a stream",
    response_class=Response,
    responses=error_responses(404)
    | {200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}},
)
def read_stream(
    *,
    context: ContextDep,
    attempt_id: AttemptId,
    name: Annotated[str, Path(description="metrics/rank<k>.jsonl, events.jsonl, logs/rank<k>.log or stdout.log")],
    offset: Annotated[int, Query(ge=0, le=BIGINT_MAX, description="of the first byte")] = 0,
    limit: Annotated[int, Query(ge=1, le=READ_BYTES, description="bytes at most")] = READ_BYTES,
) -> Response:
    """Its bytes as they are stored. The header `X-Stream-Length` says how many the worker has sent.

    Nothing is there behind the end, and behind the limit on what is kept of a stream.
    """
    with context.database.read() as session:
        service = StreamService(session, context.clock(), context.settings.max_stream_bytes)
        data, length = service.read(attempt_id, name, offset, limit)
    return Response(data, media_type="application/octet-stream", headers={"X-Stream-Length": str(length)})


@router.get("/runs/{run_id}/logs", tags=["runs"], summary="The end of a log", responses=error_responses(404))
def read_log(
    context: ContextDep,
    run_id: RunId,
    attempt: Annotated[int | None, Query(ge=1, le=2**31 - 1, description="number; the newest when absent")] = None,
    stream: Annotated[
        str | None, Query(max_length=64, description="logs/rank<k>.log or stdout.log; rank 0's when absent")
    ] = None,
    tail_bytes: Annotated[int, Query(ge=1, le=4 << 20)] = 65536,
) -> LogTail:
    """The last bytes of a log as text. Without `stream`: rank 0's log if it has any, otherwise standard output."""
    with context.database.read() as session:
        return StreamService(session, context.clock(), context.settings.max_stream_bytes).tail(
            run_id, number=attempt, name=stream, max_bytes=tail_bytes
        )
