"""Workers: list, register, sync."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request

from backend.auth.access import PrincipalDep, needs, own_worker
from backend.auth.service import TokenService
from backend.deps import Context, ContextDep, WorkerId, error_responses
from backend.queue.sync import sync_or_wait
from backend.workers.service import WorkerService
from nanollama.api.schemas import SyncReply, SyncRequest, Worker, WorkerRegistration, WorkerTerms
from nanollama.api.scopes import ADMIN, WORKER

router = APIRouter(prefix="/workers", tags=["workers"])


@router.get("", summary="List workers", responses=error_responses())
def list_workers(context: ContextDep) -> list[Worker]:
    """Every worker that has registered, those alive first."""
    with context.database.read() as session:
        return WorkerService(session, context.clock(), context.settings).all()


@router.put("/{worker_id}", summary="Register a worker", responses=error_responses())
@needs(WORKER)
def register_worker(
    context: ContextDep, principal: PrincipalDep, worker_id: WorkerId, body: WorkerRegistration
) -> WorkerTerms:
    """Announce a worker under an id of its own choice, which it keeps across restarts. Repeating it is harmless."""
    with context.database.write() as session:
        if not principal.unlimited:
            TokenService(session, context.clock()).check_registration(principal, worker_id, body.pool)
        service = WorkerService(session, context.clock(), context.settings)
        return service.register(worker_id, body, token_id=principal.token_id)


@router.post(
    "/{worker_id}/sync",
    summary="Heartbeat, leases and cancels",
    responses=error_responses(404),
    dependencies=[Depends(own_worker)],
)
@needs(WORKER)
async def sync_worker(context: ContextDep, worker_id: WorkerId, body: SyncRequest, request: Request) -> SyncReply:
    """Renew the leases that are held and get more, a long poll.

    In this order: leases in `held` are renewed, and what is not the worker's any more is listed as `lost`; leases that
    it does not list are delivered again under a new epoch; attempts of its pool whose lease has expired are adopted;
    queued ones are leased, up to `free_slots` in all; `cancel` lists the held attempts to stop.
    """
    return await sync_or_wait(context, worker_id, body, request.is_disconnected)


@router.post("/{worker_id}/drain", summary="Drain a worker", responses=error_responses(404))
@needs(ADMIN)
def drain_worker(context: ContextDep, worker_id: WorkerId) -> Worker:
    """Let a worker finish what it holds and take nothing more, across its restarts, until it is resumed."""
    return _set_drain(context, worker_id, drain=True)


@router.post("/{worker_id}/resume", summary="Resume a worker", responses=error_responses(404))
@needs(ADMIN)
def resume_worker(context: ContextDep, worker_id: WorkerId) -> Worker:
    """Let a worker that was drained take jobs again."""
    return _set_drain(context, worker_id, drain=False)


def _set_drain(context: Context, worker_id: str, *, drain: bool) -> Worker:
    with context.database.write() as session:
        worker = WorkerService(session, context.clock(), context.settings).set_drain(worker_id, drain)
    context.notifier.notify()
    return worker
