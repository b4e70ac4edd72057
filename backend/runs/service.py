"""What people see of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from backend.runs.filtering import Page
from backend.runs.repository import EventRepository, RunRepository
from backend.tables import Attempt, Event, Run
from nanollama.api import schemas
from nanollama.api.errors import InvalidRequest, NotFound
from nanollama.api.filters import Term, parse_filter, parse_order
from nanollama.api.status import RunState
from nanollama.spec.base import SpecError

UNLESS_NAMED = parse_filter("archived:false app!=gssm.entropy")
"""What lists show of all runs, unless the filter names the field itself."""


@dataclass(frozen=True)
class Wanted:
    """Which runs a list shows, in which order, and from where on."""

    states: Sequence[RunState]
    search: str | None
    experiment: str | None
    filter: str | None
    sort: str | None
    limit: int
    cursor: str | None


class RunService:
    """Reads of runs, attempts and events."""

    def __init__(self, session: Session) -> None:
        self._sqlite = session.get_bind().dialect.name == "sqlite"
        self._runs = RunRepository(session)
        self._events = EventRepository(session)

    def page(self, wanted: Wanted, now: datetime) -> schemas.RunPage:
        """A page of runs, and the counts by state over all runs that match, whatever `states` says.

        Raises:
            InvalidRequest: a filter, an order or a cursor that cannot be read.
        """
        terms = _terms(wanted.filter)
        try:
            order = None if wanted.sort is None else parse_order(wanted.sort)
        except SpecError as error:
            raise _unreadable(error) from None
        place = Page(order, wanted.cursor, sqlite=self._sqlite)
        narrow = {"search": wanted.search, "experiment": wanted.experiment}
        rows, cursor, counts = self._runs.page(place, terms, now, states=wanted.states, limit=wanted.limit, **narrow)
        return schemas.RunPage(items=[run_view(row) for row in rows], next_cursor=cursor, counts=counts)

    def select(
        self, selection: schemas.RunSelection, now: datetime, limit: int, either: Sequence[Sequence[Term]] = ()
    ) -> tuple[list[str], bool]:
        """Ids of selected runs, newest first where they are filtered; whether the filter matches more than `limit`.

        Args:
            selection: by ids, or by a filter and an experiment.
            now: the moment.
            limit: how many by a filter.
            either: of each group one term must hold for a run that is filtered: those that the change is for, so that
                a repetition finds the next ones.

        Raises:
            InvalidRequest: a filter that cannot be read.
        """
        if selection.ids is not None:
            return list(dict.fromkeys(selection.ids)), False
        terms = _terms(selection.filter)
        found = self._runs.ids(terms, now, limit=limit + 1, experiment=selection.experiment, either=either)
        return found[:limit], len(found) > limit

    def detail(self, run_id: str) -> schemas.RunDetail:
        """One run with config and result. Raises NotFound."""
        row = self.require_whole(run_id)
        return schemas.RunDetail(**dict(run_view(row)), config=row.config, result=row.result)

    def require(self, run_id: str) -> Run:
        """The row of a run. Raises NotFound."""
        row = self._runs.get(run_id)
        if row is None:
            raise no_run(run_id)
        return row

    def require_whole(self, run_id: str) -> Run:
        """As require, with config and result."""
        row = self._runs.get(run_id, details=True)
        if row is None:
            raise no_run(run_id)
        return row

    def attempts(self, run_id: str) -> list[schemas.Attempt]:
        """Attempts, oldest first. Raises NotFound."""
        self.require(run_id)
        return [
            attempt_view(row).model_copy(update={"provenance": row.provenance}) for row in self._runs.attempts(run_id)
        ]

    def events(self, run_id: str) -> list[schemas.Event]:
        """Events, oldest first. Raises NotFound."""
        self.require(run_id)
        return [event_view(row) for row in self._events.of_run(run_id)]


def _terms(text: str | None) -> list[Term]:
    """The conditions of a filter, and those that hold unless it names their field."""
    try:
        terms = parse_filter(text or "")
    except SpecError as error:
        raise _unreadable(error) from None
    named = {term.name for term in terms if term.kind in ("flag", "text")}
    return [*terms, *(term for term in UNLESS_NAMED if term.name not in named)]


def _unreadable(error: SpecError) -> InvalidRequest:
    return InvalidRequest(f"the request is invalid: {error.problems[0]}", error.problems)


def no_run(run_id: str) -> NotFound:
    """The error for a run that does not exist."""
    return NotFound(f"there is no run '{run_id}'")


def run_view(row: Run) -> schemas.Run:
    """A run as the wire shows it."""
    return schemas.Run(
        id=row.id,
        experiment_id=row.experiment_id,
        experiment=row.experiment.name,
        name=row.name,
        params=row.params,
        state=row.state,
        reason=row.reason,
        cancel_requested=row.cancel_requested,
        unknown_since=row.unknown_since,
        attempt=row.attempt,
        priority=row.priority,
        retries=row.retries,
        max_interruptions=row.max_interruptions,
        tags=row.tags,
        notes=row.notes,
        archived=row.archived,
        config_hash=row.config_hash,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        progress=progress_view(row),
        worker=row.worker,
    )


def progress_view(row: Run) -> schemas.Progress:
    """Where a run is."""
    return schemas.Progress(
        step=row.step,
        total_steps=row.total_steps,
        tokens=row.tokens,
        loss=row.latest.get("loss"),
        bound=row.latest.get("bound"),
        excess=row.latest.get("excess"),
        tokens_per_second=row.latest.get("tokens_per_second"),
        updated_at=row.progress_at,
    )


def attempt_view(row: Attempt) -> schemas.Attempt:
    """An attempt as the wire shows it."""
    return schemas.Attempt(
        id=row.id,
        run_id=row.run_id,
        number=row.number,
        state=row.state,
        epoch=row.epoch,
        reason=row.reason,
        exit_code=row.exit_code,
        worker_id=row.worker_id,
        attempt_dir=row.attempt_dir,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


def event_view(row: Event) -> schemas.Event:
    """An event as the wire shows it."""
    return schemas.Event(
        id=row.id,
        attempt=row.attempt,
        kind=row.kind,
        at=row.at,
        from_state=row.from_state,
        to_state=row.to_state,
        step=row.step,
        message=row.message,
    )
