"""Queries on tokens."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from backend.tables import Attempt, Token, Worker


class TokenRepository:
    """Tokens, of which only digests are known."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, token: Token) -> None:
        """Insert a token."""
        self._session.add(token)
        self._session.flush()

    def get(self, token_id: str) -> Token | None:
        """One token."""
        return self._session.get(Token, token_id)

    def by_digest(self, digest: str) -> Token | None:
        """The token with that digest."""
        return self._session.scalars(select(Token).where(Token.digest == digest)).one_or_none()

    def all(self) -> list[Token]:
        """Every token, newest first."""
        return list(self._session.scalars(select(Token).order_by(Token.id.desc())))

    def valid(self, now: datetime) -> list[Token]:
        """Tokens that are neither revoked nor expired."""
        alive = or_(Token.expires_at.is_(None), Token.expires_at > now)
        return list(self._session.scalars(select(Token).where(Token.revoked_at.is_(None), alive)))

    def touch(self, token_id: str, now: datetime) -> None:
        """Note that a token was used."""
        self._session.execute(update(Token).where(Token.id == token_id).values(last_used_at=now))

    def worker(self, worker_id: str) -> Worker | None:
        """The worker with that id."""
        return self._session.get(Worker, worker_id)

    def holder(self, attempt_id: str) -> tuple[str | None, str | None] | None:
        """Pool that an attempt was leased to, and the token with which its holder registered; None without attempt."""
        query = (
            select(Attempt.pool, Worker.token_id)
            .outerjoin(Worker, Worker.id == Attempt.worker_id)
            .where(Attempt.id == attempt_id)
        )
        row = self._session.execute(query).one_or_none()
        return None if row is None else (row[0], row[1])
