"""The filter language of lists of runs.

    state:running optim.lr>1e-3 tag:exp2 name~base excess<0.02 created>2d -tag:old "two words"

Terms stand side by side and all must hold; `-` in front negates one; of values joined by commas one must hold. A term
is a word, which the name, the id or a tag contains, or a field, an operator and a value. `:` and `=` say the same, `!=`
is the negation of `=`, `~` means contains, in either case of ASCII letters. Fields are:

    state tag name id experiment app worker reason priority attempt step tokens    of the run
    created started finished     moments: ISO 8601, UTC unless it says otherwise, or an age: >2d is since two days ago
    archived                     true, false or any; lists leave out what is archived unless this is named
    optim.lr, data.gssm.nodes.0.alpha, any name with dots                          of the config
    min.<metric> max.<metric> last.<metric>, or a bare <metric>, its newest value  of what was measured

What is absent, or not a number where one is compared, matches nothing but negations.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Final, Literal

from nanollama.api.status import RunState
from nanollama.spec.base import Problem, SpecError, did_you_mean

Op = Literal["=", "!=", ">", ">=", "<", "<=", "~"]
Kind = Literal["word", "state", "tag", "text", "number", "time", "flag", "config", "metric"]
Value = str | float | datetime | timedelta | bool

LANGUAGE: Final = __doc__.partition("\n")[2].strip()
"""The rules, for people."""

MAX_CHARS, MAX_TERMS, MAX_VALUES = 2000, 50, 100

FIELDS: Final[dict[str, Kind]] = {
    "state": "state",
    "tag": "tag",
    **dict.fromkeys(("name", "id", "experiment", "app", "worker", "reason"), "text"),
    **dict.fromkeys(("priority", "attempt", "step", "tokens"), "number"),
    **dict.fromkeys(("created", "started", "finished"), "time"),
    "archived": "flag",
}
"""What the run itself has."""

_ORDERS: Final = (">", ">=", "<", "<=")
_OPERATORS: Final[dict[Kind, tuple[str, ...]]] = {
    "state": ("=", "!="),
    "tag": ("=", "!=", "~"),
    "text": ("=", "!=", "~"),
    "number": ("=", "!=", *_ORDERS),
    "metric": ("=", "!=", *_ORDERS),
    "time": _ORDERS,
    "flag": ("=",),
    "config": ("=", "!=", "~", *_ORDERS),
}
_FLAGS: Final[dict[str, tuple[Value, ...]]] = {"true": (True,), "false": (False,), "any": (True, False)}
STATISTICS: Final = ("last", "min", "max")

_FIELD = re.compile(r"([A-Za-z_][\w./-]*?)(>=|<=|!=|[:=><~])")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_BARE = re.compile(r'[^\s,"]+')
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_AGE = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class FilterError(SpecError):
    """A filter that cannot be read; `position` counts characters from 0."""

    def __init__(self, position: int, message: str, remedy: str | None = None) -> None:
        super().__init__([Problem(path="filter", message=f"at character {position + 1}: {message}", remedy=remedy)])
        self.position = position


@dataclass(frozen=True)
class Term:
    """One condition. `name` is the metric's or the config's key; of a metric `statistic` says which value is meant."""

    kind: Kind
    name: str
    op: Op
    values: tuple[Value, ...]
    negated: bool
    position: int
    statistic: str = "last"


@dataclass(frozen=True)
class Order:
    """What a list is sorted by: a field of the run or a metric. What has no value comes last."""

    kind: Kind
    name: str
    descending: bool
    statistic: str = "last"


def parse_filter(text: str) -> tuple[Term, ...]:
    """The conditions of a filter.

    Raises:
        FilterError: with the position of the first thing that cannot be read, and what may have been meant.
    """
    if len(text) > MAX_CHARS:
        raise FilterError(MAX_CHARS, f"a filter has at most {MAX_CHARS:,} characters, this one {len(text):,}")
    if "\x00" in text:
        raise FilterError(text.index("\x00"), "there is a NUL, which no text has")
    terms: list[Term] = []
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        if len(terms) == MAX_TERMS:
            raise FilterError(at, f"a filter has at most {MAX_TERMS} terms")
        term, at = _term(text, at)
        terms.append(term)
        if at < len(text) and not text[at].isspace():
            raise FilterError(at, f"expected a space before {text[at]!r}", "put spaces between terms")
    return tuple(terms)


def parse_order(text: str) -> Order:
    """What `sort=` asks for: a field or a metric, with `-` in front for the largest first.

    Raises:
        SpecError: a key that nothing can be sorted by.
    """
    name = text.removeprefix("-")
    kind, key, statistic = _resolve(name)
    if kind in ("tag", "flag", "config") or not re.fullmatch(r"[A-Za-z_][\w./-]{0,199}", name):
        fields = ", ".join(field for field, kind in FIELDS.items() if kind not in ("tag", "flag"))
        remedy = f"sort by {fields}, or by a metric"
        raise SpecError([Problem(path="sort", message=f"runs cannot be sorted by {name[:60]!r}", remedy=remedy)])
    return Order(kind, key, text.startswith("-"), statistic)


def _term(text: str, at: int) -> tuple[Term, int]:
    start = at
    negated = text[at] == "-"
    at += negated
    if at == len(text) or text[at].isspace():
        raise FilterError(start, "there is nothing after '-'", "write -tag:old, or -word")
    match = _FIELD.match(text, at)
    if match is None:
        if text[at] in ":=!<>~,":
            raise FilterError(at, f"there is no field before {text[at]!r}", "write field:value, or quote the word")
        word, at = _value(text, at)
        return Term("word", "", "~", (word,), negated, start), at
    name, operator = match.group(1), match.group(2)
    kind, key, statistic = _resolve(name)
    op = "=" if operator == ":" else operator
    if op not in _OPERATORS[kind]:
        allowed = " ".join(_OPERATORS[kind])
        raise FilterError(match.start(2), f"{name} cannot be compared by {operator!r}", f"use one of {allowed}")
    words: list[Value] = []
    at = match.end()
    while True:
        where = at
        word, at = _value(text, at)
        words += _flags(name, word, where) if kind == "flag" else [_typed(kind, name, op, word, where)]
        if len(words) > MAX_VALUES:
            raise FilterError(where, f"a term has at most {MAX_VALUES} values")
        if at == len(text) or text[at] != ",":
            break
        at += 1
    found: Op = op  # type: ignore[assignment] # one of the operators, by the pattern
    return Term(kind, key, found, tuple(words), negated, start, statistic), at


def _resolve(name: str) -> tuple[Kind, str, str]:
    """Kind, key and statistic of a field."""
    if name in FIELDS:
        return FIELDS[name], name, "last"
    first, _, rest = name.partition(".")
    if first in STATISTICS and rest:
        return "metric", rest, first
    return ("config" if rest else "metric"), name, "last"


def _value(text: str, at: int) -> tuple[str, int]:
    if at < len(text) and text[at] == '"':
        quoted = _QUOTED.match(text, at)
        if quoted is None:
            raise FilterError(at, "the quotation does not end", 'add a "')
        return re.sub(r"\\(.)", r"\1", quoted.group(1), flags=re.DOTALL), quoted.end()
    bare = _BARE.match(text, at)
    if bare is None:
        raise FilterError(at, "a value is missing", 'write one, in "quotes" if it has spaces or commas')
    return bare.group(), bare.end()


def _typed(kind: Kind, name: str, op: str, word: str, at: int) -> Value:
    if kind == "state":
        known = [state.value.lower() for state in RunState]
        if word.lower() not in known:
            raise FilterError(at, f"{word[:60]!r} is not a state", did_you_mean(word.lower(), known))
        return word.upper()
    if kind == "time":
        return _moment(name, word, at)
    if kind in ("number", "metric") or (kind == "config" and op in _ORDERS):
        number = as_number(word)
        if number is None:
            known = sorted(FIELDS)
            remedy = did_you_mean(name, known) if kind == "metric" else "write a number such as 1e-3"
            raise FilterError(at, f"{name} is compared with a number, found {word[:60]!r}", remedy)
        return number
    return word


def _flags(name: str, word: str, at: int) -> tuple[Value, ...]:
    if word.lower() not in _FLAGS:
        raise FilterError(
            at, f"{name} is {', '.join(_FLAGS)}, found {word[:60]!r}", did_you_mean(word.lower(), list(_FLAGS))
        )
    return _FLAGS[word.lower()]


def as_number(word: str) -> float | None:
    """The finite number that a word writes, or None."""
    number = float(word) if _NUMBER.fullmatch(word) else math.inf
    return number if math.isfinite(number) else None


def _moment(name: str, word: str, at: int) -> datetime | timedelta:
    age = _AGE.fullmatch(word)
    if age is not None:
        return timedelta(**{_UNITS[age.group(2)]: float(age.group(1))})
    try:
        moment = datetime.fromisoformat(word.replace("Z", "+00:00"))
        return moment.replace(tzinfo=moment.tzinfo or timezone.utc).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        remedy = "write an age such as 30m, 6h, 2d or 1w, or a date such as 2026-01-31"
        raise FilterError(at, f"{name} is compared with a moment, found {word[:60]!r}", remedy) from None
