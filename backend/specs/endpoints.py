"""Templates and validation."""

from __future__ import annotations

from fastapi import APIRouter

from backend.auth.access import needs
from backend.deps import error_responses
from backend.specs import service
from nanollama.api.schemas import SpecInput, Template, Validation
from nanollama.api.scopes import READ

router = APIRouter(tags=["specs"])


@router.get("/templates", summary="Configs that ship with the project", responses=error_responses())
def list_templates() -> list[Template]:
    """Training configs to start from, by name."""
    return service.templates()


@router.post("/specs/validate", summary="Check a config", responses=error_responses(413))
@needs(READ)
def validate_spec(body: SpecInput) -> Validation:
    """Every problem of a config at once, with line and column when it is YAML. Nothing is stored.

    An invalid config is a successful answer: look at `valid`.
    """
    return service.validate_spec(body)
