"""Queries on runs, attempts and events."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import and_, func, insert, or_, select, update
from sqlalchemy.orm import Session, aliased, selectinload, undefer
from sqlalchemy.sql import ColumnElement

from backend.runs.filtering import Page, condition
from backend.runs.params import add_params
from backend.tables import Attempt, Event, Experiment, ReusedRun, Run
from nanollama.api.filters import Term
from nanollama.api.status import RunState

AT_ONCE = 500  # values in one IN list
MAX_POSITION = 2**31 - 1


class RunRepository:
    """Runs and their attempts."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add_many(self, rows: Sequence[dict[str, Any]]) -> None:
        """Insert runs."""
        self._session.execute(insert(Run), rows)

    def succeeded(self, hashes: Sequence[str]) -> dict[str, str]:
        """By training hash, the newest run that has succeeded."""
        found: dict[str, str] = {}
        for start in range(0, len(hashes), AT_ONCE):
            query = (
                select(Run.training_hash, func.max(Run.id))
                .where(Run.training_hash.in_(hashes[start : start + AT_ONCE]), Run.state == RunState.SUCCEEDED)
                .group_by(Run.training_hash)
            )
            found |= dict(self._session.execute(query).all())
        return found

    def finished_trainings(self, limit: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Configs and results of the newest training runs that have succeeded."""
        query = (
            select(Run.config, Run.result)
            .where(Run.state == RunState.SUCCEEDED, Run.app == "gssm.train", Run.result.is_not(None))
            .order_by(Run.id.desc())
            .limit(limit)
        )
        return [(config, result) for config, result in self._session.execute(query)]

    def get(self, run_id: str, *, details: bool = False) -> Run | None:
        """One run; `details` loads its config and result too."""
        query = select(Run).where(Run.id == run_id)
        if details:
            query = query.options(undefer(Run.config), undefer(Run.result))
        return self._session.scalars(query).one_or_none()

    def existing(self, run_ids: Sequence[str]) -> set[str]:
        """Those of the ids that are runs'."""
        return set(self._session.scalars(select(Run.id).where(Run.id.in_(run_ids))))

    def lock(self, run_ids: Iterable[str]) -> list[Run]:
        """Runs to be changed, in a fixed order. Lock their attempts first: everyone does."""
        query = select(Run).where(Run.id.in_(list(run_ids))).order_by(Run.id)
        return list(self._session.scalars(query.with_for_update().execution_options(populate_existing=True)))

    def of_experiment(self, experiment_id: str) -> list[Run]:
        """An experiment's own runs, locked, in a fixed order."""
        query = select(Run).where(Run.experiment_id == experiment_id).order_by(Run.id).with_for_update()
        return list(self._session.scalars(query))

    def experiment_names(self, experiment_ids: Collection[str]) -> dict[str, str]:
        """Names of experiments by id."""
        query = select(Experiment.id, Experiment.name).where(Experiment.id.in_(experiment_ids))
        return dict(self._session.execute(query).all())

    def update_many(self, rows: Sequence[dict[str, Any]]) -> None:
        """Set columns of several runs, each row with its `id`."""
        if rows:
            self._session.execute(update(Run), rows)

    def add_params(self, experiment_id: str, configs: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Let the runs of an experiment, given by id and config, be found by what their configs say."""
        add_params(self._session, experiment_id, configs)

    def page(
        self, page: Page, terms: Sequence[Term], now: datetime, *, states: Sequence[RunState], limit: int, **narrow: Any
    ) -> tuple[list[Run], str | None, dict[RunState, int]]:
        """Up to `limit` runs, the cursor of the next page if there is one, and the number that match by state."""
        listing = page.listing(self._matching(terms, now, **narrow), states, limit + 1)
        found, counts = [], {}
        for run_id, value, _, state, number in self._session.execute(listing):
            if run_id is None:
                counts[state] = number
            else:
                found.append((run_id, value))
        ids = [run_id for run_id, _ in found[:limit]]
        query = select(Run).where(Run.id.in_(ids)).options(selectinload(Run.experiment))
        rows = {row.id: row for row in self._session.scalars(query)}
        cursor = page.cursor(*found[limit - 1]) if len(found) > limit else None
        return [rows[run_id] for run_id in ids], cursor, counts

    def ids(
        self,
        terms: Sequence[Term],
        now: datetime,
        *,
        limit: int,
        experiment: str | None = None,
        either: Sequence[Sequence[Term]] = (),
    ) -> list[str]:
        """Ids of up to `limit` runs, newest first, of which one term of each group in `either` holds too."""
        conditions = self._matching(terms, now, experiment=experiment)
        conditions += [or_(*self._matching(group, now)) for group in either]
        return list(self._session.scalars(select(Run.id).where(*conditions).order_by(Run.id.desc()).limit(limit)))

    def counts(
        self, terms: Sequence[Term] = (), now: datetime | None = None, **narrow: str | None
    ) -> dict[RunState, int]:
        """Number of runs by state; states without any are left out."""
        query = select(Run.state, func.count()).where(*self._matching(terms, now, **narrow)).group_by(Run.state)
        return dict(self._session.execute(query).all())

    def counts_of(self, experiment_ids: Collection[str]) -> dict[str, dict[RunState, int]]:
        """By experiment, the number of its runs by state, each reused one counted once."""
        own = select(Run.experiment_id, Run.state, func.count()).where(Run.experiment_id.in_(experiment_ids))
        reused = (
            select(ReusedRun.experiment_id, Run.state, func.count(Run.id.distinct()))
            .join(Run, Run.id == ReusedRun.run_id)
            .where(ReusedRun.experiment_id.in_(experiment_ids))
        )
        counts: dict[str, dict[RunState, int]] = {experiment_id: {} for experiment_id in experiment_ids}
        for query in (own.group_by(Run.experiment_id, Run.state), reused.group_by(ReusedRun.experiment_id, Run.state)):
            for experiment_id, state, number in self._session.execute(query):
                counts[experiment_id][state] = counts[experiment_id].get(state, 0) + number
        return counts

    def first_of(self, experiment_ids: Collection[str], limit: int) -> dict[str, list[Run]]:
        """By experiment, the first of its runs in the order of their positions, reused ones included."""
        found: dict[str, list[tuple[int, Run]]] = {experiment_id: [] for experiment_id in experiment_ids}
        own = select(Run.experiment_id, Run.position, Run).join(
            Experiment, and_(Experiment.id == Run.experiment_id, Run.position <= _last_of(Run, limit))
        )
        reused = (
            select(ReusedRun.experiment_id, ReusedRun.position, Run)
            .join(Run, Run.id == ReusedRun.run_id)
            .join(
                Experiment,
                and_(Experiment.id == ReusedRun.experiment_id, ReusedRun.position <= _last_of(ReusedRun, limit)),
            )
        )
        for query in (own, reused):
            wanted = query.where(Experiment.id.in_(experiment_ids)).options(selectinload(Run.experiment))
            for experiment_id, position, run in self._session.execute(wanted):
                found[experiment_id].append((position, run))
        first = {key: sorted(pairs, key=lambda pair: pair[0])[:limit] for key, pairs in found.items()}
        return {key: [run for _, run in pairs] for key, pairs in first.items()}

    def attempts(self, run_id: str) -> list[Attempt]:
        """Attempts of a run with their provenance, oldest first."""
        query = select(Attempt).where(Attempt.run_id == run_id).order_by(Attempt.number)
        return list(self._session.scalars(query.options(undefer(Attempt.provenance))))

    def set_many(self, run_ids: Sequence[str], **values: Any) -> None:
        """Set the same columns of several runs."""
        self._session.execute(
            update(Run).where(Run.id.in_(run_ids)).values(**values).execution_options(synchronize_session=False)
        )

    def _matching(
        self, terms: Sequence[Term], now: datetime | None, *, search: str | None = None, experiment: str | None = None
    ) -> list[ColumnElement[bool]]:
        conditions: list[ColumnElement[bool]] = []
        if terms:
            assert now is not None, "filters know ages"
            sqlite = self._session.get_bind().dialect.name == "sqlite"
            conditions += [condition(term, now, sqlite=sqlite) for term in terms]
        if search:
            conditions.append(Run.search.contains(search.lower(), autoescape=True))
        if experiment is not None:
            reused = select(ReusedRun.run_id).where(ReusedRun.experiment_id == experiment)
            conditions.append(or_(Run.experiment_id == experiment, Run.id.in_(reused)))
        return conditions


def _last_of(table: type[Run | ReusedRun], limit: int) -> ColumnElement[int]:
    """Position of the last of an experiment's first rows: found by the index, without a look at those behind it."""
    rows = aliased(table)
    last = select(rows.position).where(rows.experiment_id == Experiment.id).order_by(rows.position)
    return func.coalesce(last.offset(limit - 1).limit(1).correlate(Experiment).scalar_subquery(), MAX_POSITION)


class EventRepository:
    """The log of what happened."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(
        self,
        run_id: str,
        kind: str,
        at: datetime,
        *,
        attempt: int | None = None,
        from_state: str | None = None,
        to_state: str | None = None,
        epoch: int | None = None,
        step: int | None = None,
        message: str | None = None,
    ) -> None:
        """Append an event to the log."""
        values = {
            "run_id": run_id,
            "kind": kind,
            "at": at,
            "attempt": attempt,
            "from_state": from_state,
            "to_state": to_state,
            "epoch": epoch,
            "step": step,
            "message": message,
        }
        self._session.execute(insert(Event).values(**values))

    def add_many(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append events to the log, in order."""
        if rows:
            self._session.execute(insert(Event), rows)

    def of_run(self, run_id: str) -> list[Event]:
        """Events of a run, oldest first."""
        return list(self._session.scalars(select(Event).where(Event.run_id == run_id).order_by(Event.id)))
