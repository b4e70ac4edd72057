"""What jobs need of a worker: stored once for all that need the same."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from backend.database import upsert
from backend.tables import Need
from nanollama.api.schemas import Resources
from nanollama.spec.base import hash_data


class NeedRepository:
    """Needs, by the hash of their content."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def put(self, resources: Resources) -> str | None:
        """The id of these needs; None when nothing in particular is needed."""
        content: dict[str, Any] = resources.model_dump(exclude_defaults=True)
        if "labels" in content:
            content["labels"] = sorted(set(content["labels"]))
        if not content:
            return None
        need_id = hash_data(content)
        statement = upsert(self._session, Need).values(id=need_id, content=content)
        self._session.execute(statement.on_conflict_do_nothing())
        return need_id
