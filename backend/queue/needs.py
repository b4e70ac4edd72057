"""What jobs need and workers have. Needs are stored once for all jobs that need the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from backend.database import upsert
from backend.tables import ACTIVE, Attempt, Need, Worker
from nanollama.api.schemas import Resources
from nanollama.api.status import AttemptState
from nanollama.spec.base import hash_data

_AMOUNTS = {"accelerators": "accelerators", "cpus": "CPUs", "memory_gb": "GB of memory"}


@dataclass
class Offer:
    """What a worker has, and how much of it its jobs have left."""

    worker: Worker
    left: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self.left = {name: getattr(self.worker, name) or 0 for name in _AMOUNTS}

    def take(self, need: Mapping[str, Any], times: int = 1) -> None:
        """Give to jobs what they need."""
        for name in _AMOUNTS:
            self.left[name] -= times * need.get(name, 0)

    def why_never(self, need: Mapping[str, Any]) -> str | None:
        """Why the worker could not run such a job even if it were idle; None when it could."""
        executor = need.get("executor", self.worker.executor)
        if executor != self.worker.executor:
            return f"its executor is {self.worker.executor}, not {executor}"
        missing = [label for label in need.get("labels", ()) if label not in self.worker.labels]
        if missing:
            return f"it lacks the label {missing[0]}"
        for name, unit in _AMOUNTS.items():
            has, wanted = getattr(self.worker, name), need.get(name, 0)
            if wanted > (has or 0):
                return f"it has not said how many {unit} it has" if has is None else f"it has {has:g} {unit}"
        return None

    def fits(self, need: Mapping[str, Any]) -> bool:
        """Whether the worker could run one more such job now, slots apart."""
        return self.why_never(need) is None and self.times(need, 1) > 0

    def times(self, need: Mapping[str, Any], limit: int) -> int:
        """How many more such jobs what is left is enough for, at most `limit`."""
        return min([limit, *(int(self.left[name] / need[name]) for name in _AMOUNTS if need.get(name))])


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

    def of_waiting(self) -> dict[str, dict[str, Any]]:
        """What the jobs that wait need, by id."""
        waits = exists().where(Attempt.state == AttemptState.QUEUED, Attempt.needs == Need.id)
        return {need.id: need.content for need in self._session.scalars(select(Need).where(waits))}

    def offer(self, worker: Worker) -> Offer:
        """What a worker has left."""
        return self.offers([worker])[0]

    def offers(self, workers: list[Worker]) -> list[Offer]:
        """What workers have left."""
        offers = {worker.id: Offer(worker) for worker in workers}
        held = (
            select(Attempt.worker_id, Need.content, func.count(Attempt.id))
            .join(Need, Need.id == Attempt.needs)
            .where(Attempt.worker_id.in_(offers), Attempt.state.in_(ACTIVE))
            .group_by(Attempt.worker_id, Need.id)
        )
        for worker_id, content, count in self._session.execute(held):
            offers[worker_id].take(content, count)
        return list(offers.values())
