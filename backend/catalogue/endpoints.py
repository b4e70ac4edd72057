"""True models: list, enter, picture, bound; and files of sequences."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response, status

from backend.auth.access import needs, own_worker
from backend.catalogue.models import AnyWithGraph, TrueModel, model_in
from backend.catalogue.service import CatalogueService
from backend.deps import ContextDep, WorkerId, error_responses
from backend.specs.endpoints import PICTURE, SVG
from backend.specs.service import read_document, read_sweep, refusal
from nanollama.api.schemas import GSSM, Dataset, DatasetReports, GSSMDetail, GSSMPage, SpecInput
from nanollama.api.scopes import WORKER
from nanollama.spec.base import SpecError, parse
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.kinds import model_of

router = APIRouter(tags=["catalogue"])

ContentHash = Annotated[str, Path(max_length=64, description="content hash of the true model")]


@router.get("/gssms", summary="List true models", responses=error_responses())
def list_gssms(
    context: ContextDep,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Annotated[str | None, Query(max_length=64, description="`next_cursor` of the page before")] = None,
) -> GSSMPage:
    """The graphs of configs with the seeds of their kernels, newest first, and what is known of each bound."""
    with context.database.read() as session:
        return CatalogueService(session, context.clock()).page(limit=limit, cursor=cursor)


@router.post("/gssms", summary="Enter a true model", responses=error_responses(413))
def add_gssm(context: ContextDep, body: SpecInput) -> GSSM:
    """Enter the graph and seed of a config of any kind: one of training, of sets, of an entropy, of difficulty.

    Of a config with a grid it is that of the first run. Submitting an experiment enters those of its runs by itself.
    Repeating it is harmless.
    """
    try:
        model = _read_model(body)
    except SpecError as error:
        raise refusal(error) from None
    with context.database.write() as session:
        return CatalogueService(session, context.clock()).add(model)


@router.get("/gssms/{content_hash}", summary="One true model", responses=error_responses(404))
def get_gssm(context: ContextDep, content_hash: ContentHash) -> GSSMDetail:
    """Its graph, its entropy by position once a job has found it, and the newest runs on it."""
    with context.database.read() as session:
        return CatalogueService(session, context.clock()).get(content_hash)


@router.get(
    "/gssms/{content_hash}/graph.svg",
    summary="Picture of a graph",
    response_class=Response,
    responses={**error_responses(404, 409), 200: PICTURE},
)
def draw_gssm(context: ContextDep, content_hash: ContentHash) -> Response:
    """An SVG in the colours of its reader's theme."""
    with context.database.read() as session:
        picture = CatalogueService(session, context.clock()).graph(content_hash)
    return Response(picture, media_type=SVG)


@router.post(
    "/gssms/{content_hash}/bound",
    status_code=status.HTTP_202_ACCEPTED,
    summary="Find the entropy",
    responses=error_responses(404, 409),
)
def compute_bound(context: ContextDep, content_hash: ContentHash) -> GSSM:
    """Queue a job that finds the entropy of the model's sequences, exact where it can be.

    It is computed once: nothing is queued while it is known, or a job is under way. A job that failed is retried, and
    when longer sequences are wanted than were scored, there is a new one. The job is a run of the app gssm.entropy,
    which lists leave out unless their filter names `app`.
    """
    with context.database.write() as session:
        gssm = CatalogueService(session, context.clock()).compute_bound(content_hash)
    context.notifier.notify()
    return gssm


@router.get("/datasets", summary="List files of sequences", responses=error_responses())
def list_datasets(context: ContextDep) -> list[Dataset]:
    """Files that runs read, or that workers have found in the folders that they look through, by path."""
    with context.database.read() as session:
        return CatalogueService(session, context.clock()).datasets()


@router.put(
    "/workers/{worker_id}/datasets",
    summary="Report files of sequences",
    responses=error_responses(404),
    dependencies=[Depends(own_worker)],
)
@needs(WORKER)
def report_datasets(context: ContextDep, worker_id: WorkerId, body: DatasetReports) -> list[Dataset]:
    """Say which files of sequences the workers of a pool can read, in place of what was said before.

    The answer lists the pool's files, those that runs read and that are there no more included.
    """
    with context.database.write() as session:
        return CatalogueService(session, context.clock()).report(worker_id, body)


def _read_model(given: SpecInput) -> TrueModel:
    """The true model of a config. Raises SpecError."""
    document = read_document(given)
    kind = model_of(document.data)
    if kind is ExperimentSpec and "grid" in document.data:
        return model_in(parse(ExperimentSpec, read_sweep(given).runs[0].config))
    spec = document.parse(kind)
    assert isinstance(spec, AnyWithGraph), "every kind has a graph"
    return model_in(spec)
