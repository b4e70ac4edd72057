"""Export of runs and experiments, and import."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from typing import IO, Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from backend.archive import importing
from backend.archive.export import Exporter
from backend.checkpoints.files import pieces
from backend.deps import Context, ContextDep, ExperimentId, RunId, error_responses
from nanollama.api.schemas import ImportReply

router = APIRouter()

MEDIA_TYPE = "application/gzip"
IMPORT = "/import"

_BYTES = {"schema": {"type": "string", "format": "binary"}}
_ANSWER: dict[int | str, dict[str, Any]] = {200: {"content": {MEDIA_TYPE: _BYTES}}}
_BODY = {"requestBody": {"required": True, "content": {"application/octet-stream": _BYTES}}}


@router.get(
    "/runs/{run_id}/export",
    tags=["runs"],
    summary="Export a run",
    response_class=StreamingResponse,
    responses=error_responses(404, 409) | _ANSWER,
)
def export_run(context: ContextDep, run_id: RunId) -> StreamingResponse:
    """All that the service has of a run as one .tar.gz: config, attempts, events, metrics, logs, evaluations.

    The files of its checkpoints stay where they are. POST /import adds it to another service.
    """
    return _export(context, run_id, lambda exporter, file: exporter.export_run(run_id, file))


@router.get(
    "/experiments/{experiment_id}/export",
    tags=["experiments"],
    summary="Export an experiment",
    response_class=StreamingResponse,
    responses=error_responses(404, 409) | _ANSWER,
)
def export_experiment(context: ContextDep, experiment_id: ExperimentId) -> StreamingResponse:
    """An experiment with its runs, as one .tar.gz; those of others that it reuses come with their experiments."""
    return _export(context, experiment_id, lambda exporter, file: exporter.export_experiment(experiment_id, file))


def _export(context: Context, name: str, write: Callable[[Exporter, IO[bytes]], None]) -> StreamingResponse:
    """Written to a file first: no connection to the database waits for whoever downloads it."""
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(tempfile.TemporaryFile())
        with context.database.read() as session:
            write(Exporter(session, context.clock(), context.settings.max_stream_bytes), file)
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        opened.pop_all()
    headers = {"Content-Length": str(size), "Content-Disposition": f'attachment; filename="{name}.tar.gz"'}
    return StreamingResponse(pieces(file), media_type=MEDIA_TYPE, headers=headers)


@router.post(
    IMPORT,
    tags=["experiments"],
    summary="Import runs",
    responses=error_responses(409, 413),
    openapi_extra=_BODY,
)
async def import_archive(context: ContextDep, request: Request) -> ImportReply:
    """Add what an export has written, all of it or nothing: every digest is checked before anything is stored.

    Ids stay what they were. What is here already with the same content is passed over; with other content it is a
    conflict, and nothing is added. Runs that had not ended count as cancelled, and each has an event `imported`.
    """
    with tempfile.TemporaryFile() as file:
        async for piece in request.stream():
            await run_in_threadpool(file.write, piece)
        reply = await run_in_threadpool(
            importing.import_archive, context.database, context.settings, context.clock, file
        )
    context.notifier.notify()
    return reply
