from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanollama.api.filters import FilterError, Order, Term, parse_filter, parse_order
from nanollama.spec.base import SpecError


def test_every_kind_of_term() -> None:
    text = 'state:running,QUEUED optim.lr>1e-3 tag:exp2 name~base excess<0.02 min.a/b>=-2 created>2d -tag:old "a \\"b"'
    assert parse_filter(text) == (
        Term("state", "state", "=", ("RUNNING", "QUEUED"), negated=False, position=0),
        Term("config", "optim.lr", ">", (1e-3,), negated=False, position=21),
        Term("tag", "tag", "=", ("exp2",), negated=False, position=35),
        Term("text", "name", "~", ("base",), negated=False, position=44),
        Term("metric", "excess", "<", (0.02,), negated=False, position=54),
        Term("metric", "a/b", ">=", (-2.0,), negated=False, position=66, statistic="min"),
        Term("time", "created", ">", (timedelta(days=2),), negated=False, position=78),
        Term("tag", "tag", "=", ("old",), negated=True, position=89),
        Term("word", "", "~", ('a "b',), negated=False, position=98),
    )
    (date,) = parse_filter("started<=2026-01-31T12:00+01:00")
    assert date.values == (datetime(2026, 1, 31, 11, tzinfo=timezone.utc),)
    assert parse_filter("  ") == ()
    (term,) = parse_filter('model.kind!="x y",z')
    assert (term.op, term.values) == ("!=", ("x y", "z"))


@pytest.mark.parametrize(
    ("text", "position", "message", "remedy"),
    [
        ("a state:runing", 8, "'runing' is not a state", "did you mean 'running'?"),
        ("stat:running", 5, "stat is compared with a number, found 'running'", "did you mean 'state'?"),
        ("excess<abc", 7, "compared with a number", "known: "),
        ("optim.lr>x", 9, "compared with a number", "1e-3"),
        ("step>1e999", 5, "compared with a number", "1e-3"),
        ("state>running", 5, "state cannot be compared by '>'", "use one of = !="),
        ("created:2d", 7, "cannot be compared", "> >= < <="),
        ("created>soon", 8, "compared with a moment", "2026-01-31"),
        ("name:", 5, "a value is missing", "quotes"),
        ("name:a,", 7, "a value is missing", "quotes"),
        ('x name:"a', 7, "the quotation does not end", '"'),
        ('name:"a"b', 8, "expected a space before 'b'", "spaces"),
        (":a", 0, "there is no field before ':'", "field:value"),
        ("a - b", 2, "nothing after '-'", "-word"),
        ("a\x00", 1, "NUL", None),
        ("x " * 51, 100, "at most 50 terms", None),
        ("tag:" + ",".join("x" * 101), 204, "at most 100 values", None),
        ("x" * 2001, 2000, "at most 2,000 characters", None),
    ],
)
def test_errors_have_a_place_and_a_remedy(text: str, position: int, message: str, remedy: str | None) -> None:
    with pytest.raises(FilterError) as caught:
        parse_filter(text)
    (problem,) = caught.value.problems
    assert caught.value.position == position
    assert problem.path == "filter"
    assert f"at character {position + 1}: " in problem.message
    assert message in problem.message
    assert (remedy or "") in (problem.remedy or "")


@given(st.text(alphabet='ab.-:=!<>~,"\\ \t1e\x00é', max_size=30))
def test_every_text_is_read_or_refused_at_a_place_in_it(text: str) -> None:
    try:
        places = [term.position for term in parse_filter(text)]
    except FilterError as error:
        places = [error.position]
    assert all(0 <= place <= len(text) for place in places)


def test_orders() -> None:
    assert parse_order("-excess") == Order("metric", "excess", descending=True)
    assert parse_order("min.loss") == Order("metric", "loss", descending=False, statistic="min")
    assert parse_order("created") == Order("time", "created", descending=False)
    for wrong in ("tag", "optim.lr", "", "-", "a b", "x" * 250):
        with pytest.raises(SpecError, match="cannot be sorted"):
            parse_order(wrong)
