"""Access tokens."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, Field

from nanollama.api.schemas.base import Label, Request, Response
from nanollama.api.scopes import POOL_PREFIX, check_scope

ScopeName = Annotated[
    str,
    AfterValidator(check_scope),
    Field(max_length=len(POOL_PREFIX) + 500, description="read, submit, admin or worker:<pool>", examples=["read"]),
]


class TokenCreate(Request):
    """A token to make."""

    name: Label = Field(max_length=200, examples=["notebook"], description="whom or what it is for")
    scopes: list[ScopeName] = Field(min_length=1, max_length=32)
    expires_in_days: float | None = Field(default=None, gt=0, le=36_500, description="never when absent")


class Token(Response):
    """A token without its secret, which nobody can show again."""

    id: str
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = Field(default=None, description="to the minute")


class NewToken(Token):
    """A new token with its secret, which is shown this once."""

    secret: str
