"""Statements on attempts as the queue's entries: claim, adopt, renew, lock."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, and_, func, insert, or_, select, true, update
from sqlalchemy.orm import Session, undefer
from sqlalchemy.sql import ColumnElement

from backend.tables import ACTIVE, Attempt, Experiment, Run, Transition, Worker
from nanollama.api.status import AttemptState

CHUNK = 500  # ids in one statement
SPARE = 100  # more candidates than are wanted, for those that other claims have locked


@dataclass(frozen=True)
class Holding:
    """An attempt that a worker holds, as the queue knows it."""

    attempt_id: str
    epoch: int
    cancel_requested: bool
    cancel_told: bool


class AttemptRepository:
    """Attempts. Whoever changes several rows locks attempts first, then runs, each in order of id."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._sqlite = session.get_bind().dialect.name == "sqlite"

    def add_many(self, rows: Sequence[dict[str, Any]]) -> None:
        """Insert attempts."""
        self._session.execute(insert(Attempt), rows)

    def get(self, attempt_id: str) -> Attempt | None:
        """One attempt."""
        return self._session.get(Attempt, attempt_id)

    def lock(self, attempt_id: str) -> Attempt | None:
        """The attempt, which nobody else changes until the transaction ends."""
        return self._locked(select(Attempt).where(Attempt.id == attempt_id))

    def lock_newest(self, run_id: str) -> Attempt | None:
        """The newest attempt of a run, locked."""
        return self._locked(select(Attempt).where(Attempt.run_id == run_id).order_by(Attempt.number.desc()).limit(1))

    def lock_newest_of(self, run_ids: Sequence[str]) -> list[Attempt]:
        """The newest attempt of each of some runs, locked in order of id."""
        query = (
            select(Attempt)
            .join(Run, and_(Run.id == Attempt.run_id, Run.attempt == Attempt.number))
            .where(Run.id.in_(run_ids))
            .order_by(Attempt.id)
            .with_for_update(of=Attempt)
            .execution_options(populate_existing=True)
        )
        return list(self._session.scalars(query))

    def prioritise(self, run_ids: Sequence[str], priority: int) -> None:
        """Change the priority of attempts that wait."""
        self._session.execute(
            update(Attempt)
            .where(Attempt.run_id.in_(run_ids), Attempt.state == AttemptState.QUEUED)
            .values(priority=priority)
            .execution_options(synchronize_session=False)
        )

    def number(self, run_id: str, number: int) -> Attempt | None:
        """The attempt of a run with that number."""
        query = select(Attempt).where(Attempt.run_id == run_id, Attempt.number == number)
        return self._session.scalars(query).one_or_none()

    # -- what was done already ---------------------------------------------------------------------------------------

    def transition(self, transition_id: str) -> Transition | None:
        """The report with that id, if it was carried out."""
        return self._session.get(Transition, transition_id)

    def add_transition(self, transition: Transition) -> None:
        """Remember a report that was carried out."""
        self._session.add(transition)
        self._session.flush()

    # -- leases ------------------------------------------------------------------------------------------------------

    def claim(
        self, worker: Worker, limit: int, expires: datetime, needs: Collection[str] = ()
    ) -> list[tuple[str, str | None]]:
        """Lease up to `limit` queued attempts to a worker, in one statement; their ids and what they need.

        Args:
            worker: who gets them.
            limit: how many at most.
            expires: the end of the leases.
            needs: those that the worker can meet; attempts without any are among the candidates in any case.
        """
        chosen = _next_in_line(limit, _claimable(worker, needs))
        return self._lease(worker, chosen, expires, state=AttemptState.LEASED)

    def adopt(self, worker: Worker, now: datetime, expires: datetime, longest: timedelta) -> list[str]:
        """Lease to a worker the attempts of its pool whose lease has expired, in one statement; their ids.

        No lease is given for longer than `longest`.
        """
        chosen = select(Attempt.id).where(*_adoptable(worker, now, longest)).order_by(Attempt.id)
        return [attempt_id for attempt_id, _ in self._lease(worker, chosen, expires)]

    def redeliver(self, worker: Worker, attempt_ids: Sequence[str], expires: datetime) -> list[str]:
        """Lease to a worker anew what it holds but does not know of; their ids."""
        ids = []
        for chunk in _chunks(attempt_ids):
            leased = self._lease(worker, select(Attempt.id).where(Attempt.id.in_(chunk)), expires)
            ids += [attempt_id for attempt_id, _ in leased]
        return ids

    def renew(self, attempt_ids: Sequence[str], expires: datetime) -> None:
        """Extend leases."""
        for chunk in _chunks(attempt_ids):
            self._set(chunk, lease_expires_at=expires)

    def told_to_cancel(self, attempt_ids: Sequence[str]) -> None:
        """Note that the holders have been told."""
        for chunk in _chunks(attempt_ids):
            self._set(chunk, cancel_told_epoch=Attempt.epoch)

    def extend_all(self, executor: str, expires: datetime) -> None:
        """Let no lease of the workers with that executor end before `expires`."""
        workers = select(Worker.id).where(Worker.executor == executor)
        self._session.execute(
            update(Attempt)
            .where(Attempt.state.in_(ACTIVE), Attempt.worker_id.in_(workers), Attempt.lease_expires_at < expires)
            .values(lease_expires_at=expires)
            .execution_options(synchronize_session=False)
        )

    def held_by(self, worker_id: str) -> list[Holding]:
        """What a worker holds, locked until the transaction ends."""
        query = (
            select(Attempt.id, Attempt.epoch, Run.cancel_requested, Attempt.cancel_told_epoch)
            .join(Run, Run.id == Attempt.run_id)
            .where(Attempt.worker_id == worker_id, Attempt.state.in_(ACTIVE))
            .order_by(Attempt.id)
            .with_for_update(of=Attempt)
        )
        return [Holding(i, epoch, asked, told == epoch) for i, epoch, asked, told in self._session.execute(query)]

    def leased(self, attempt_ids: Iterable[str]) -> list[tuple[Attempt, Run]]:
        """Attempts with their runs and configs, by age of the run."""
        found: list[tuple[Attempt, Run]] = []
        for chunk in _chunks(list(attempt_ids)):
            query = (
                select(Attempt, Run)
                .join(Run, Run.id == Attempt.run_id)
                .where(Attempt.id.in_(chunk))
                .options(undefer(Run.config))
                .execution_options(populate_existing=True)
            )
            found += [(attempt, run) for attempt, run in self._session.execute(query)]
        return sorted(found, key=lambda pair: pair[0].run_id)

    # -- looks that lock nothing -------------------------------------------------------------------------------------

    def any_claimable(self, worker: Worker, needs: Collection[str]) -> bool:
        """Whether an attempt waits that the worker could claim."""
        return self._any(*_claimable(worker, needs))

    def in_line(self, offset: int, limit: int) -> list[tuple[Attempt, Run]]:
        """Attempts that wait, in the order in which a worker that could run all would claim them."""
        line = _line((Attempt.state == AttemptState.QUEUED,)).offset(offset).limit(limit).cte("line")
        query = (
            select(Attempt, Run)
            .join(line, line.c.id == Attempt.id)
            .join(Run, Run.id == Attempt.run_id)
            .order_by(line.c.priority.desc(), line.c.turn, line.c.run_id)
        )
        return [(attempt, run) for attempt, run in self._session.execute(query)]

    def count_queued(self) -> int:
        """Number of attempts that wait."""
        query = select(func.count()).select_from(Attempt).where(Attempt.state == AttemptState.QUEUED)
        return self._session.scalar(query) or 0

    def count_ended(self, run_id: str, state: AttemptState, since: int) -> int:
        """Number of attempts of a run, from number `since` on, that ended in a state."""
        query = select(func.count()).select_from(Attempt)
        return (
            self._session.scalar(query.where(Attempt.run_id == run_id, Attempt.state == state, Attempt.number >= since))
            or 0
        )

    def any_adoptable(self, worker: Worker, now: datetime, longest: timedelta) -> bool:
        """Whether the worker could adopt an attempt, where no lease is given for longer than `longest`."""
        return self._any(*_adoptable(worker, now, longest))

    def any_untold_cancel(self, worker_id: str) -> bool:
        """Whether the worker holds an attempt that it should cancel and has not been told about."""
        query = (
            select(true())
            .select_from(Attempt)
            .join(Run, Run.id == Attempt.run_id)
            .where(Attempt.worker_id == worker_id, Attempt.state.in_(ACTIVE), Run.cancel_requested)
            .where(func.coalesce(Attempt.cancel_told_epoch, -1) != Attempt.epoch)
            .limit(1)
        )
        return self._session.scalar(query) is not None

    def count_held(self, worker_id: str) -> int:
        """Number of attempts that a worker holds."""
        query = select(func.count()).where(Attempt.worker_id == worker_id, Attempt.state.in_(ACTIVE))
        return self._session.scalar(query) or 0

    def count_active(self) -> int:
        """Number of attempts that are leased."""
        return self._session.scalar(select(func.count()).select_from(Attempt).where(Attempt.state.in_(ACTIVE))) or 0

    # ----------------------------------------------------------------------------------------------------------------

    def _locked(self, query: Select[Attempt]) -> Attempt | None:
        query = query.with_for_update().execution_options(populate_existing=True)
        return self._session.scalars(query).one_or_none()

    def _any(self, *conditions: ColumnElement[bool]) -> bool:
        return self._session.scalar(select(true()).select_from(Attempt).where(*conditions).limit(1)) is not None

    def _set(self, attempt_ids: Sequence[str], **values: Any) -> None:
        self._session.execute(
            update(Attempt)
            .where(Attempt.id.in_(attempt_ids))
            .values(**values)
            .execution_options(synchronize_session=False)
        )

    def _lease(
        self, worker: Worker, chosen: Select[str], expires: datetime, **values: Any
    ) -> list[tuple[str, str | None]]:
        """Give the chosen attempts to a worker under a new epoch, in one statement that no other claim overlaps."""
        statement = update(Attempt).values(
            epoch=Attempt.epoch + 1,
            worker_id=worker.id,
            pool=worker.pool,
            lease_expires_at=expires,
            cancel_told_epoch=None,
            **values,
        )
        if self._sqlite:
            statement = statement.where(Attempt.id.in_(chosen))
        else:
            # in a CTE: as a subquery the planner may run it more than once and lock more rows than the limit
            picked = chosen.with_for_update(of=Attempt, skip_locked=True).cte("picked")
            statement = statement.where(Attempt.id == picked.c.id)
        statement = statement.returning(Attempt.id, Attempt.needs).execution_options(synchronize_session=False)
        return [(attempt_id, need) for attempt_id, need in self._session.execute(statement)]


def _claimable(worker: Worker, needs: Collection[str]) -> tuple[ColumnElement[bool], ...]:
    """Attempts that wait, that their experiment has not been paused for, and that the worker can run."""
    paused = select(Experiment.id).where(Experiment.paused_since.is_not(None))
    return (
        Attempt.state == AttemptState.QUEUED,
        or_(Attempt.needs.is_(None), Attempt.needs.in_(needs)),
        or_(Attempt.pool.is_(None), Attempt.pool == worker.pool),
        Attempt.experiment_id.not_in(paused),
    )


def _line(conditions: tuple[ColumnElement[bool], ...]) -> Select[Any]:
    """Attempts by priority, then fair share between experiments, then age of the run.

    Fair share: the k-th waiting attempt of an experiment takes its turn as if k-1 more of it were active already.
    """
    busy = (
        select(Attempt.experiment_id, func.count().label("number"))
        .where(Attempt.state.in_(ACTIVE))
        .group_by(Attempt.experiment_id)
        .cte("busy")
    )
    place = func.row_number().over(
        partition_by=Attempt.experiment_id, order_by=(Attempt.priority.desc(), Attempt.run_id)
    )
    turn = (func.coalesce(busy.c.number, 0) + place).label("turn")
    return (
        select(Attempt.id, Attempt.priority, Attempt.run_id, turn)
        .outerjoin(busy, busy.c.experiment_id == Attempt.experiment_id)
        .where(*conditions)
        .order_by(Attempt.priority.desc(), turn, Attempt.run_id)
    )


def _next_in_line(limit: int, conditions: tuple[ColumnElement[bool], ...]) -> Select[str]:
    """The ids of the first in the line of attempts that meet the conditions."""
    # computed once: a planner that has no statistics yet would do it again for each row
    line = _line(conditions).limit(limit + SPARE).cte("candidates").prefix_with("MATERIALIZED", dialect="postgresql")
    return (
        select(Attempt.id)
        .join(line, line.c.id == Attempt.id)
        .where(Attempt.state == AttemptState.QUEUED)
        .order_by(line.c.priority.desc(), line.c.turn, line.c.run_id)
        .limit(limit)
    )


def _adoptable(worker: Worker, now: datetime, longest: timedelta) -> tuple[ColumnElement[bool], ...]:
    """Leases that have expired, or that end later than any that is given now: the clock has been put back."""
    return (
        Attempt.state.in_(ACTIVE),
        Attempt.pool == worker.pool,
        Attempt.worker_id != worker.id,
        or_(Attempt.lease_expires_at < now, Attempt.lease_expires_at > now + 2 * longest),
    )


def _chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), CHUNK):
        yield ids[start : start + CHUNK]
