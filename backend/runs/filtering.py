"""Filters and orders as SQL. Whatever people write is a bound value; names of columns come from here."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    Boolean,
    CompoundSelect,
    Integer,
    and_,
    cast,
    false,
    func,
    not_,
    null,
    or_,
    select,
    type_coerce,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql import ColumnElement
from sqlalchemy.sql.operators import ge, gt, le, lt

from backend.ids import is_id
from backend.tables import Param, Run, RunMetric
from nanollama.api.errors import InvalidRequest
from nanollama.api.filters import Order, Term, Value, as_number
from nanollama.api.status import RunState
from nanollama.spec.base import Problem

_COLUMNS: dict[str, Any] = {
    "name": Run.name,
    "id": Run.id,
    "experiment": Run.experiment_id,
    "app": Run.app,
    "worker": Run.worker,
    "reason": Run.reason,
    "priority": Run.priority,
    "attempt": Run.attempt,
    "step": Run.step,
    "tokens": Run.tokens,
    "created": Run.created_at,
    "started": Run.started_at,
    "finished": Run.finished_at,
    "state": Run.state,
    "archived": Run.archived,
}
_STATISTICS = {"last": RunMetric.last, "min": RunMetric.min, "max": RunMetric.max}
_ORDERS: dict[str, Callable[[Any, Any], Any]] = {">": gt, ">=": ge, "<": lt, "<=": le}


def condition(term: Term, now: datetime, *, sqlite: bool) -> ColumnElement[bool]:
    """What a term says of a run."""
    held = or_(*(_compare(term, value, now, sqlite=sqlite) for value in term.values))
    if term.negated is (term.op == "!="):
        return held
    return not_(func.coalesce(held, false(), type_=Boolean()))


def _compare(term: Term, value: Value, now: datetime, *, sqlite: bool) -> ColumnElement[bool]:
    op = "=" if term.op == "!=" else term.op
    if isinstance(value, timedelta):
        value = _before(now, value)
    if term.kind == "word":
        return Run.search.contains(str(value).lower(), autoescape=True)
    if term.kind == "state":
        return Run.state == RunState(value)
    if term.kind == "tag":
        return _has_tag(op, str(value), sqlite=sqlite)
    if term.kind == "config":
        return _config(term.name, op, value)
    if term.kind == "metric":
        column = _STATISTICS[term.statistic]
        return Run.id.in_(select(RunMetric.run_id).where(RunMetric.key == term.name, _holds(column, op, value)))
    return _holds(_COLUMNS[term.name], op, value)


def _holds(column: Any, op: str, value: Value) -> ColumnElement[bool]:
    if op == "~":
        found: ColumnElement[bool] = column.icontains(value, autoescape=True)
    elif op == "=":
        found = column == value
    else:
        found = _ORDERS[op](column, value)
    return found


def _has_tag(op: str, value: str, *, sqlite: bool) -> ColumnElement[bool]:
    if op == "=" and not sqlite:  # several times as fast as to unfold each list
        has: ColumnElement[bool] = cast(Run.tags, JSONB).contains([value])
        return has
    function = func.json_each if sqlite else func.json_array_elements_text
    tag = function(Run.tags).table_valued("value", name="tag").c.value
    return select(1).where(_holds(tag, op, value)).correlate(Run).exists()


def _config(key: str, op: str, value: Value) -> ColumnElement[bool]:
    number = as_number(value) if isinstance(value, str) else value
    if op in _ORDERS:
        held = _holds(Param.number, op, value)
    else:
        held = _holds(Param.text, op, value)
        if op == "=" and number is not None:
            held = or_(Param.number == number, held)
    own = select(Param.run_id).where(Param.key == key, Param.run_id.is_not(None), held)
    shared = select(Param.experiment_id).where(Param.key == key, Param.run_id.is_(None), held)
    return or_(Run.id.in_(own), Run.experiment_id.in_(shared))


def _before(now: datetime, age: timedelta) -> datetime:
    try:
        return now - age
    except OverflowError:
        return datetime.min.replace(tzinfo=now.tzinfo)


# -- orders ------------------------------------------------------------------------------------------------------------


class Page:
    """A place in a list that is sorted by a value, then by id, newest first; what has no value comes last.

    Args:
        order: what the list is sorted by; the newest first when absent.
        cursor: `next_cursor` of the page before.

    Raises:
        InvalidRequest: a cursor that is none of this order.
    """

    def __init__(self, order: Order | None, cursor: str | None, *, sqlite: bool) -> None:
        self._order = order
        self._after = None if cursor is None else _read_cursor(cursor, order)
        self._value: Any = None
        if order is not None:
            self._value = _COLUMNS[order.name] if order.kind != "metric" else _STATISTICS[order.statistic]
            if order.kind in ("text", "state") and not sqlite:
                self._value = self._value.collate("C")  # the order of SQLite, and the index's

    def listing(
        self, conditions: Sequence[ColumnElement[bool]], states: Sequence[RunState], limit: int
    ) -> CompoundSelect[Any]:
        """One statement, in which what matches is found once, with two kinds of rows.

        Up to `limit` runs in one of the states: id, the value that it is sorted by, its place, nothing, nothing. And
        over all that match: nothing, nothing, nothing, state, number of runs.
        """
        value = Run.id if self._order is None else self._value
        query = select(Run.id.label("id"), Run.state.label("state"), value.label("value")).where(*conditions)
        if self._order is not None and self._order.kind == "metric":
            query = query.outerjoin(RunMetric, and_(RunMetric.run_id == Run.id, RunMetric.key == self._order.name))
        matched = query.cte("matched").c
        page = select(matched.id, matched.value)
        if states:
            page = page.where(matched.state.in_(states))
        if self._after is not None:
            page = page.where(self._beyond(matched, *self._after))
        found = page.order_by(*self._sorted(matched)).limit(limit).subquery("page").c
        place = func.row_number().over(order_by=self._sorted(found)).label("place")
        state, number = type_coerce(null(), Run.state.type), type_coerce(null(), Integer())
        return union_all(
            select(found.id, found.value, place, state.label("state"), number.label("number")),
            select(null(), null(), null(), matched.state, func.count()).group_by(matched.state),
        ).order_by("place")

    def cursor(self, run_id: str, value: Any) -> str:
        """The place behind a run."""
        if self._order is None:
            return run_id
        if isinstance(value, datetime):
            value = value.isoformat()
        if isinstance(value, RunState):
            value = value.value
        plain = json.dumps([_name(self._order), run_id, value], separators=(",", ":"))
        return base64.urlsafe_b64encode(plain.encode()).decode().rstrip("=")

    def _sorted(self, columns: Any) -> list[ColumnElement[Any]]:
        newest: ColumnElement[Any] = columns.id.desc()
        if self._order is None:
            return [newest]
        direction = columns.value.desc() if self._order.descending else columns.value.asc()
        return [columns.value.is_(None), direction, newest]

    def _beyond(self, columns: Any, value: Any, run_id: str) -> ColumnElement[bool]:
        older: ColumnElement[bool] = columns.id < run_id
        if self._order is None:
            return older
        if value is None:
            return and_(columns.value.is_(None), older)
        further = columns.value < value if self._order.descending else columns.value > value
        return or_(further, and_(columns.value == value, older), columns.value.is_(None))


def _name(order: Order) -> str:
    return f"{'-' if order.descending else ''}{order.statistic}.{order.kind}.{order.name}"


def _read_cursor(cursor: str, order: Order | None) -> tuple[Any, str]:
    if order is None:
        if is_id("r", cursor):
            return None, cursor
        raise _no_cursor(cursor)
    try:
        name, run_id, value = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if name != _name(order) or not is_id("r", run_id):
            raise _no_cursor(cursor)
        return _checked(order, value), run_id
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise _no_cursor(cursor) from None


def _checked(order: Order, value: Any) -> Any:
    """The value that a cursor holds, which comes from outside. Raises ValueError."""
    if value is None:
        return None
    if order.kind == "time":
        return datetime.fromisoformat(value)
    if order.kind == "state":
        return RunState(value)
    if order.kind == "text":
        if not isinstance(value, str) or "\x00" in value:
            raise ValueError(value)
        return value.encode().decode()
    number = float(value)
    whole = isinstance(value, int) and order.kind == "number"
    if isinstance(value, bool) or not isinstance(value, int | float) or (whole and abs(value) >= 2**63):
        raise ValueError(value)
    return value if whole else number


def _no_cursor(cursor: str) -> InvalidRequest:
    message = f"{cursor[:60]!r} is not a cursor of this list; give `next_cursor` of the page before, or none"
    return InvalidRequest(message, [Problem(path="cursor", message=message)])
