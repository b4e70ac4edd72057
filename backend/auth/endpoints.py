"""Tokens: make, list, revoke."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, status

from backend.auth.access import needs
from backend.auth.service import TokenService
from backend.deps import Context, ContextDep, error_responses
from nanollama.api.errors import Conflict
from nanollama.api.schemas import NewToken, Token, TokenCreate
from nanollama.api.scopes import ADMIN

router = APIRouter(prefix="/tokens", tags=["tokens"])


@router.post("", status_code=status.HTTP_201_CREATED, summary="Make a token", responses=error_responses(409, 413))
@needs(ADMIN)
def create_token(context: ContextDep, body: TokenCreate) -> NewToken:
    """The answer holds the secret, which is shown this once: the service keeps a digest."""
    _check_on(context)
    with context.database.write() as session:
        return TokenService(session, context.clock()).create(body)


@router.get("", summary="List tokens", responses=error_responses())
@needs(ADMIN)
def list_tokens(context: ContextDep) -> list[Token]:
    """Every token, newest first, revoked and expired ones too; never a secret."""
    with context.database.read() as session:
        return TokenService(session, context.clock()).all()


@router.delete("/{token_id}", summary="Revoke a token", responses=error_responses(404, 409))
@needs(ADMIN)
def revoke_token(
    context: ContextDep, token_id: Annotated[str, Path(max_length=32, description="id of the token")]
) -> Token:
    """From the next request on it is good for nothing. Repeating it changes nothing."""
    _check_on(context)
    with context.database.write() as session:
        return TokenService(session, context.clock()).revoke(token_id)


def _check_on(context: Context) -> None:
    """Whoever reaches a service without tokens must not be able to leave one behind for later. Raises Conflict."""
    if not context.settings.tokens:
        raise Conflict(
            "this service asks for no tokens, so it makes none for strangers: serve with --tokens, or use "
            "`python -m backend token` where the database is"
        )
