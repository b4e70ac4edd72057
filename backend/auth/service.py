"""Tokens: made, recognised, revoked.

A token is 256 random bits, so its digest is a plain SHA-256. A slow, salted hash protects secrets that people choose,
because those can be guessed; these cannot, and each request would pay for it.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from backend.auth.repository import TokenRepository
from backend.ids import new_id
from backend.tables import Token
from nanollama.api import schemas
from nanollama.api.errors import Forbidden, NotFound, Unauthorized
from nanollama.api.scopes import ADMIN, POOL_PREFIX, allows

PREFIX = "n2n_"
SECRET_BYTES = 32
USED_SECONDS = 60  # `last_used_at` is at most this old while a token is in use


@dataclass(frozen=True)
class Principal:
    """Who calls. Without an id it is anyone who reaches a service that asks for no tokens."""

    token_id: str | None
    name: str
    scopes: tuple[str, ...]

    @property
    def unlimited(self) -> bool:
        """Whether everything is allowed."""
        return ADMIN in self.scopes

    def require(self, needed: str) -> None:
        """Let only callers with that scope pass. Raises Forbidden."""
        if not allows(self.scopes, needed):
            held = ", ".join(self.scopes)
            detail = f"this needs the scope '{needed}', and the token '{self.name}' has {held}; use another token"
            raise Forbidden(detail)


ANYONE = Principal(None, "anyone on this machine", (ADMIN,))


class TokenService:
    """Tokens, as of one moment."""

    def __init__(self, session: Session, now: datetime) -> None:
        self._now = now
        self._tokens = TokenRepository(session)

    def create(self, given: schemas.TokenCreate) -> schemas.NewToken:
        """Make a token; its secret is in this answer and nowhere else."""
        secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        days = given.expires_in_days
        row = Token(
            id=new_id("t", self._now),
            name=given.name,
            digest=digest(secret),
            scopes=list(dict.fromkeys(given.scopes)),
            created_at=self._now,
            expires_at=None if days is None else self._now + timedelta(days=days),
        )
        self._tokens.add(row)
        return schemas.NewToken(**dict(token_view(row)), secret=secret)

    def all(self) -> list[schemas.Token]:
        """Every token, newest first, without secrets."""
        return [token_view(row) for row in self._tokens.all()]

    def revoke(self, token_id: str) -> schemas.Token:
        """Let a token be good for nothing from now on; repeating it changes nothing. Raises NotFound."""
        row = self._tokens.get(token_id)
        if row is None:
            raise NotFound(f"there is no token '{token_id}'")
        row.revoked_at = row.revoked_at or self._now
        return token_view(row)

    def recognise(self, secret: str) -> tuple[Principal, bool]:
        """Whose token it is, and whether its use is to be noted. Raises Unauthorized."""
        row = self._tokens.by_digest(digest(secret))
        if row is None:
            raise Unauthorized("this token is unknown; make one with `n2n token create`")
        if row.revoked_at is not None:
            raise Unauthorized(f"the token '{row.name}' was revoked; ask for a new one")
        if row.expires_at is not None and row.expires_at <= self._now:
            raise Unauthorized(f"the token '{row.name}' has expired; ask for a new one")
        stale = row.last_used_at is None or self._now - row.last_used_at >= timedelta(seconds=USED_SECONDS)
        return Principal(row.id, row.name, tuple(row.scopes)), stale

    def used(self, principal: Principal) -> None:
        """Note that a token was used."""
        assert principal.token_id is not None
        self._tokens.touch(principal.token_id, self._now)

    def has_admin(self) -> bool:
        """Whether somebody could make further tokens."""
        return any(ADMIN in row.scopes for row in self._tokens.valid(self._now))

    # -- what workers may touch --------------------------------------------------------------------------------------

    def check_registration(self, principal: Principal, worker_id: str, pool: str) -> None:
        """Let a token register workers of its own pools, and under an id that no other pool has. Raises Forbidden."""
        principal.require(POOL_PREFIX + pool)
        row = self._tokens.worker(worker_id)
        if row is not None:
            principal.require(POOL_PREFIX + row.pool)

    def check_worker(self, principal: Principal, worker_id: str) -> None:
        """Let a token speak for the workers that registered with it. Raises Forbidden."""
        row = self._tokens.worker(worker_id)
        if row is not None and row.token_id != principal.token_id:
            detail = f"the worker '{worker_id}' was registered with another token; register it with this one first"
            raise Forbidden(detail)

    def check_attempt(self, principal: Principal, attempt_id: str) -> None:
        """Let a token touch what its own workers have leased. Raises Forbidden."""
        holder = self._tokens.holder(attempt_id)
        if holder is None:
            return
        pool, token_id = holder
        if pool is None or token_id != principal.token_id or not allows(principal.scopes, POOL_PREFIX + pool):
            raise Forbidden(f"the attempt '{attempt_id}' is not leased by a worker that registered with this token")


def digest(secret: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def token_view(row: Token) -> schemas.Token:
    """A token as the wire shows it."""
    return schemas.Token(
        id=row.id,
        name=row.name,
        scopes=row.scopes,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )
