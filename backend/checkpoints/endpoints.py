"""Checkpoints of a run."""

from __future__ import annotations

from fastapi import APIRouter

from backend.checkpoints.repository import CheckpointRepository
from backend.deps import ContextDep, RunId, error_responses
from backend.runs.service import RunService
from nanollama.api.schemas import Checkpoint

router = APIRouter(prefix="/runs", tags=["runs"])


@router.get("/{run_id}/checkpoints", summary="Checkpoints of a run", responses=error_responses(404))
def list_checkpoints(context: ContextDep, run_id: RunId) -> list[Checkpoint]:
    """What training reported, by step; removed ones too."""
    with context.database.read() as session:
        RunService(session).require(run_id)
        return [
            Checkpoint(
                step=row.step,
                attempt=row.attempt,
                path=row.path,
                size_bytes=row.size_bytes,
                digest=row.digest,
                created_at=row.created_at,
                removed=row.removed,
            )
            for row in CheckpointRepository(session).of_run(run_id)
        ]
