"""Evaluations of a run."""

from __future__ import annotations

from fastapi import APIRouter

from backend.deps import ContextDep, RunId, error_responses
from backend.evaluations.lines import EVALUATED, MEANS, PROBE
from backend.evaluations.repository import EvaluationRepository
from backend.revalidation import Revalidated
from backend.runs.service import RunService
from backend.tables import Evaluation as Row
from nanollama.api.schemas import ByPosition, Evaluation

router = APIRouter(prefix="/runs/{run_id}/evaluations", tags=["runs"])


@router.get("", summary="Evaluations of a run", responses=error_responses(404), dependencies=[Revalidated])
def list_evaluations(context: ContextDep, run_id: RunId) -> list[Evaluation]:
    """What the learner was worth on held-out sequences, by step: of the steps that the newest attempt has not undone.

    Nats per token. Nothing is listed where `evaluation.period` is 0, and for runs of versions before this list.
    """
    with context.database.read() as session:
        RunService(session).require(run_id)
        return [_view(row) for row in EvaluationRepository(session).of_run(run_id)]


def _view(row: Row) -> Evaluation:
    probes = {key.removeprefix(PROBE): value for key, value in row.values.items() if key.startswith(PROBE)}
    return Evaluation(
        step=row.step,
        attempt=row.attempt,
        at=row.at,
        **{name: row.values.get(f"{EVALUATED}{name}") for name in MEANS},
        by_position=None if row.by_position is None else ByPosition.model_validate(row.by_position),
        probes=probes or None,
    )
