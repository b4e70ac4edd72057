"""Checkpoints of a run: list, pin, delete, download."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import StreamingResponse

from backend.auth.access import PrincipalDep
from backend.checkpoints.files import CheckpointFiles, pieces
from backend.checkpoints.repository import CheckpointRepository
from backend.columns import BIGINT_MAX
from backend.deps import Context, ContextDep, RunId, error_responses
from backend.runs.service import RunService
from backend.tables import Checkpoint as Row
from nanollama.api.errors import ApiError, Conflict, NotFound
from nanollama.api.schemas import Checkpoint, CheckpointFile

router = APIRouter(prefix="/runs/{run_id}/checkpoints", tags=["runs"])

Step = Annotated[int, Path(ge=0, le=BIGINT_MAX, description="of the checkpoint")]


@router.get("", summary="Checkpoints of a run", responses=error_responses(404))
def list_checkpoints(context: ContextDep, run_id: RunId) -> list[Checkpoint]:
    """What training reported, by step; removed ones too."""
    with context.database.read() as session:
        RunService(session).require(run_id)
        rows = CheckpointRepository(session).of_run(run_id)
    return [_view(context, row) for row in rows]


@router.put("/{step}/pin", summary="Pin a checkpoint", responses=error_responses(404, 409))
def pin_checkpoint(context: ContextDep, principal: PrincipalDep, run_id: RunId, step: Step) -> Checkpoint:
    """Training will not remove it. Possible where the service reaches the files; repeating it changes nothing."""
    row = _row(context, run_id, step)
    _files(context, row).pin(principal.name)
    return _view(context, row)


@router.delete("/{step}/pin", summary="Unpin a checkpoint", responses=error_responses(404, 409))
def unpin_checkpoint(context: ContextDep, run_id: RunId, step: Step) -> Checkpoint:
    """Training may remove it again."""
    row = _row(context, run_id, step)
    _files(context, row).unpin()
    return _view(context, row)


@router.delete("/{step}", summary="Delete a checkpoint", responses=error_responses(404, 409))
def delete_checkpoint(context: ContextDep, run_id: RunId, step: Step) -> Checkpoint:
    """Remove the files of a run that has ended; a pinned one is kept."""
    row = _row(context, run_id, step)
    with context.database.read() as session:
        if not RunService(session).require(run_id).state.terminal:
            raise Conflict("the run has not ended, and may go on from this checkpoint; cancel it first")
    _files(context, row).delete()
    with context.database.write() as session:
        CheckpointRepository(session).remove(run_id, step)
    return _view(context, _row(context, run_id, step, removed=True))


@router.get("/{step}/files", summary="Files of a checkpoint", responses=error_responses(404, 409))
def list_files(context: ContextDep, run_id: RunId, step: Step) -> list[CheckpointFile]:
    """Name and size of each, where the service reaches them."""
    files = _files(context, _row(context, run_id, step))
    return [CheckpointFile(name=name, size_bytes=size) for name, size in files.names()]


@router.get(
    "/{step}/files/{name}",
    summary="Download a file of a checkpoint",
    response_class=StreamingResponse,
    responses=error_responses(404, 409)
    | {200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}},
)
def download_file(
    context: ContextDep,
    run_id: RunId,
    step: Step,
    name: Annotated[str, Path(max_length=255, description="of the file", examples=["model.pt"])],
) -> StreamingResponse:
    """Its bytes, unread by the service."""
    file, size = _files(context, _row(context, run_id, step)).open(name)
    return StreamingResponse(pieces(file), media_type="application/octet-stream", headers={"Content-Length": str(size)})


def _row(context: Context, run_id: str, step: int, *, removed: bool = False) -> Row:
    """Raises NotFound."""
    with context.database.read() as session:
        RunService(session).require(run_id)
        row = CheckpointRepository(session).get(run_id, step)
    if row is None or (row.removed and not removed):
        raise NotFound(f"run '{run_id}' has no checkpoint at step {step}")
    return row


def _files(context: Context, row: Row) -> CheckpointFiles:
    return CheckpointFiles(context.settings.run_roots, row.run_id, row.step, row.path)


def _view(context: Context, row: Row) -> Checkpoint:
    pinned = None
    if context.settings.run_roots and not row.removed:
        try:
            pinned = _files(context, row).pinned
        except ApiError:
            pinned = None
    return Checkpoint(
        step=row.step,
        attempt=row.attempt,
        path=row.path,
        size_bytes=row.size_bytes,
        digest=row.digest,
        created_at=row.created_at,
        removed=row.removed,
        pinned=pinned,
    )
