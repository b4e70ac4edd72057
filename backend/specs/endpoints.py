"""Templates and validation."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from backend.auth.access import needs
from backend.deps import ContextDep, error_responses
from backend.specs import service
from backend.specs.estimate import Estimator
from backend.specs.templates import templates
from nanollama.api.errors import InvalidRequest
from nanollama.api.schemas import Estimate, SpecInput, Template, Validation
from nanollama.api.scopes import READ
from nanollama.commands.graph import graph_of
from nanollama.spec.base import SpecError
from nanollama.spec.drawing import draw_graph

router = APIRouter(tags=["specs"])

SVG = "image/svg+xml"
PICTURE: dict[str, Any] = {"content": {SVG: {"schema": {"type": "string"}}}, "description": "the picture"}


@router.get("/templates", summary="Configs that ship with the project", responses=error_responses())
def list_templates() -> list[Template]:
    """Training configs to start from, by name; then the sweeps, whose names begin with `sweeps/`."""
    return templates()


@router.post("/specs/validate", summary="Check a config", responses=error_responses(413))
@needs(READ)
def validate_spec(context: ContextDep, body: SpecInput) -> Validation:
    """Every problem of a config at once, with line and column when it is YAML. Nothing is stored.

    An invalid config is a successful answer: look at `valid`. A valid one comes with the names of its runs and an
    estimate of what they cost: sizes are counted, hours are guessed from past runs that are like them.
    """

    def estimate(sweep: service.Sweep) -> Estimate | None:
        with context.database.read() as session:
            return Estimator(session).estimate(sweep)

    return service.validate_spec(body, estimate)


@router.post(
    "/specs/graph",
    summary="Picture of a draft's graph",
    response_class=Response,
    responses={**error_responses(413), 200: PICTURE},
)
@needs(READ)
def draw_draft(body: SpecInput) -> Response:
    """An SVG of the graph in a config of any kind, whatever else is right or wrong in it. Nothing is stored."""
    try:
        picture = draw_graph(graph_of(service.read_document(body)))
    except SpecError as error:
        raise InvalidRequest("there is no graph that can be drawn", service.readable(error.problems)) from None
    return Response(picture, media_type=SVG)
