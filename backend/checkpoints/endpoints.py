"""Checkpoints of a run: list, pin, delete, download."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path
from fastapi.responses import StreamingResponse

from backend.auth.access import PrincipalDep
from backend.checkpoints.commands import CheckpointCommands
from backend.checkpoints.files import OUT_OF_REACH, Archive, find_files, pieces, refusals
from backend.checkpoints.repository import CheckpointRepository
from backend.columns import BIGINT_MAX
from backend.deps import Context, ContextDep, RunId, error_responses
from backend.evaluations.lines import EVALUATED
from backend.evaluations.repository import EvaluationRepository
from backend.runs.service import RunService
from backend.tables import Checkpoint as Row
from nanollama.api.errors import ApiError, Conflict, NotFound
from nanollama.api.schemas import Checkpoint, CheckpointFile, CommandKind
from nanollama.spec.checkpoint_folder import CheckpointFolder

router = APIRouter(prefix="/runs/{run_id}/checkpoints", tags=["runs"])

Step = Annotated[int, Path(ge=0, le=BIGINT_MAX, description="of the checkpoint")]


@router.get("", summary="Checkpoints of a run", responses=error_responses(404))
def list_checkpoints(context: ContextDep, run_id: RunId) -> list[Checkpoint]:
    """What training reported, by step, with what its evaluation has found; removed ones too."""
    with context.database.read() as session:
        RunService(session).require(run_id)
        rows = CheckpointRepository(session).of_run(run_id)
        values = EvaluationRepository(session).values_of_run(run_id)
    return [_view(context, row, values.get(row.step)) for row in rows]


@router.put("/{step}/pin", summary="Pin a checkpoint", responses=error_responses(404, 409))
def pin_checkpoint(context: ContextDep, principal: PrincipalDep, run_id: RunId, step: Step) -> Checkpoint:
    """Training will not remove it; repeating it changes nothing.

    Where the service does not reach the files, a worker of the run's pool does it at its next sync, and `pending` says
    so until then. It takes the place of a `delete` that is pending.
    """
    return _change(context, principal.name, run_id, step, "pin")


@router.delete("/{step}/pin", summary="Unpin a checkpoint", responses=error_responses(404, 409))
def unpin_checkpoint(context: ContextDep, principal: PrincipalDep, run_id: RunId, step: Step) -> Checkpoint:
    """Training may remove it again; by a worker where the service does not reach the files."""
    return _change(context, principal.name, run_id, step, "unpin")


@router.delete("/{step}", summary="Delete a checkpoint", responses=error_responses(404, 409))
def delete_checkpoint(context: ContextDep, principal: PrincipalDep, run_id: RunId, step: Step) -> Checkpoint:
    """Remove the files of a run that has ended; a pinned one is kept. By a worker where the service can't reach them.

    While it is pending, pinning or unpinning takes it back, and a run that is retried keeps it until it has ended.
    """
    return _change(context, principal.name, run_id, step, "delete")


@router.get("/{step}/files", summary="Files of a checkpoint", responses=error_responses(404, 409))
def list_files(context: ContextDep, run_id: RunId, step: Step) -> list[CheckpointFile]:
    """Name and size of each, where the service reaches them."""
    files = _reached(context, _row(context, run_id, step))
    return [CheckpointFile(name=name, size_bytes=size) for name, size in files.names()]


def _binary(media_type: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {media_type: {"schema": {"type": "string", "format": "binary"}}}}}


@router.get(
    "/{step}/files/{name}",
    summary="Download a file of a checkpoint",
    response_class=StreamingResponse,
    responses=error_responses(404, 409) | _binary("application/octet-stream"),
)
def download_file(
    context: ContextDep,
    run_id: RunId,
    step: Step,
    name: Annotated[str, Path(max_length=255, description="of the file", examples=["model.pt"])],
) -> StreamingResponse:
    """Its bytes, unread by the service."""
    files = _reached(context, _row(context, run_id, step))
    with refusals():
        file, size = files.open(name)
    return StreamingResponse(pieces(file), media_type="application/octet-stream", headers={"Content-Length": str(size)})


@router.get(
    "/{step}/archive",
    summary="Download a checkpoint",
    response_class=StreamingResponse,
    responses=error_responses(404, 409) | _binary("application/x-tar"),
)
def download_archive(context: ContextDep, run_id: RunId, step: Step) -> StreamingResponse:
    """All of its files as an uncompressed tar file, where the service reaches them.

    They lie in a folder named by the step: `orchestration.checkpoint.start_from` takes it as it is unpacked.
    """
    row = _row(context, run_id, step)
    archive = Archive(_reached(context, row))
    headers = {
        "Content-Length": str(archive.size),
        "Content-Disposition": f'attachment; filename="{row.run_id}-{row.step}.tar"',
    }
    return StreamingResponse(iter(archive), media_type="application/x-tar", headers=headers)


def _change(context: Context, who: str, run_id: str, step: int, kind: CommandKind) -> Checkpoint:
    """Pin, unpin or delete: here and now, or by a worker."""
    row = _row(context, run_id, step)
    files = _files(context, row)
    if files is not None:
        if kind == "delete":
            with context.database.read() as session:
                CheckpointCommands(session, context.clock()).check_ended(run_id)
        with refusals():
            _act(files, kind, who)
    with context.database.write() as session:
        locked = CheckpointRepository(session).lock(run_id, step)
        assert locked is not None, "rows of checkpoints stay"
        commands = CheckpointCommands(session, context.clock())
        if files is None:
            commands.ask(locked, kind, who)
        else:
            locked.pending = locked.command_id = locked.command_by = None
            commands.done(locked, kind, who)
        values = EvaluationRepository(session).values_of_run(run_id).get(step)
    context.notifier.notify()
    return _view(context, locked, values)


def _act(files: CheckpointFolder, kind: CommandKind, who: str) -> None:
    if kind == "pin":
        files.pin(who)
    elif kind == "unpin":
        files.unpin()
    else:
        files.delete()


def _row(context: Context, run_id: str, step: int) -> Row:
    """Raises NotFound."""
    with context.database.read() as session:
        RunService(session).require(run_id)
        row = CheckpointRepository(session).get(run_id, step)
    if row is None or row.removed:
        raise NotFound(f"run '{run_id}' has no checkpoint at step {step}")
    return row


def _files(context: Context, row: Row) -> CheckpointFolder | None:
    """None where the service does not reach them. Raises Conflict, NotFound."""
    return find_files(context.settings.run_roots, row.run_id, row.step, row.path)


def _reached(context: Context, row: Row) -> CheckpointFolder:
    """Raises Conflict, NotFound."""
    files = _files(context, row)
    if files is None:
        raise Conflict(OUT_OF_REACH)
    return files


def _view(context: Context, row: Row, values: dict[str, Any] | None) -> Checkpoint:
    pinned = row.pinned
    if not row.removed:
        try:
            files = _files(context, row)
            pinned = row.pinned if files is None else files.pinned
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
        pinned=None if row.removed else pinned,
        pending=row.pending,
        evaluation_loss=(values or {}).get(f"{EVALUATED}loss"),
        evaluation_excess=(values or {}).get(f"{EVALUATED}excess"),
    )
