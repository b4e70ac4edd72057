from __future__ import annotations

import math
import random
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert

from backend.database import Database
from backend.ids import new_id
from backend.runs.params import leaf, leaves
from backend.runs.service import RunService, Wanted
from backend.tables import Experiment, Param, Run, RunMetric
from nanollama.api.errors import InvalidRequest
from nanollama.api.filters import Term, as_number, parse_filter
from nanollama.api.status import RunState
from tests.support.service import Caller

NOW = datetime(2026, 1, 10, tzinfo=timezone.utc)
NAMES = ["base", "Base 2", "100%", "a_b", "a\\b", "it's", 'say "x"', "x,y", "emb_dim=128,seed=3"]
TAGS = ["exp2", "old", "a b", "%", "'; DROP TABLE runs; --"]
NUMBERS = [0, 1, 2.5, -3, 1e-3, 2**60]
SCALARS = [*NUMBERS, "adam", "SGD", "1", "", True, None, "%"]
METRICS = ["loss", "excess", "a/b"]


def experiment_row(name: str) -> dict[str, Any]:
    return {
        "id": new_id("e", NOW), "name": name, "notes": "", "tags": [], "created_at": NOW, "priority": 0,
        "resources": {}, "num_runs": 1,
    }  # fmt: skip


def run_row(experiment_id: str, position: int, draw: random.Random) -> dict[str, Any]:
    name, tags, run_id = draw.choice(NAMES), draw.sample(TAGS, draw.randint(0, 3)), new_id("r", NOW)
    started = NOW - timedelta(hours=draw.randint(1, 99)) if draw.random() < 0.7 else None
    config = {"optim": {"lr": draw.choice(SCALARS), "kind": "adam"}, "nodes": [{"alpha": draw.choice(SCALARS)}]}
    if draw.random() < 0.3:
        config["extra"] = {"deep": draw.choice(SCALARS)}
    return {
        "id": run_id, "experiment_id": experiment_id, "position": position, "name": name, "params": {}, "tags": tags,
        "search": "\n".join([name, run_id, *tags]).lower(), "priority": draw.randint(-1, 1), "app": "gssm",
        "config": config, "config_hash": "", "training_hash": "", "retries": 0, "counted_from": 1,
        "state": draw.choice(list(RunState)), "reason": draw.choice([None, "why", "a % sign"]),
        "cancel_requested": False, "attempt": draw.randint(1, 3), "worker": draw.choice([None, "w1"]),
        "created_at": NOW - timedelta(hours=draw.randint(0, 99)), "started_at": started, "total_steps": 9,
        "step": draw.choice([0, 5, 10]), "tokens": 0, "latest": {},
    }  # fmt: skip


def fill(database: Database, count: int = 80, seed: int = 0) -> list[dict[str, Any]]:
    """Random runs in a few experiments, with `metrics`: last, min and max by key."""
    draw = random.Random(seed)
    filled: list[dict[str, Any]] = []
    with database.write() as session:
        for number in range(count // 20):
            experiment = experiment_row(f"e{number}")
            rows = [run_row(experiment["id"], i, draw) for i in range(20)]
            session.execute(insert(Experiment), [experiment])
            session.execute(insert(Run), rows)
            RunService(session)._runs.add_params(experiment["id"], [(row["id"], row["config"]) for row in rows])
            filled += rows
        for row in filled:
            row["metrics"] = {}
            for key in draw.sample(METRICS, draw.randint(0, 3)):
                last = draw.choice([0.01, 0.02, 0.5, math.nan, math.inf])
                row["metrics"][key] = {"last": last, "min": 0.01, "max": draw.choice([0.5, 2.0])}
                values = {name: None if math.isnan(value) else value for name, value in row["metrics"][key].items()}
                session.execute(insert(RunMetric).values(run_id=row["id"], key=key, last_step=1, **values))
    return filled


COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    "~": lambda a, b: b.lower() in a.lower(),
}
ATTRIBUTES = {
    "experiment": "experiment_id",
    "created": "created_at",
    "started": "started_at",
    "finished": "finished_at",
}


def naive_one(term: Term, value: Any, run: dict[str, Any]) -> bool:
    op = "=" if term.op == "!=" else term.op
    compare = COMPARE[op]
    if isinstance(value, timedelta):
        value = NOW - value
    if term.kind == "word":
        return value.lower() in run["search"]
    if term.kind == "tag":
        return any(compare(tag, value) for tag in run["tags"])
    if term.kind == "metric":
        found = run["metrics"].get(term.name, {}).get(term.statistic)
        return found is not None and compare(found, value)
    if term.kind == "config":
        if term.name not in leaves(run["config"]):
            return False
        number, text = leaves(run["config"])[term.name]
        if op in (">", ">=", "<", "<="):
            return number is not None and compare(number, value)
        wanted = as_number(value)
        return compare(text, value) or (op == "=" and wanted is not None and number == wanted)
    found = run.get(ATTRIBUTES.get(term.name, term.name))
    return found is not None and compare(found, value)


def naive(terms: tuple[Term, ...], run: dict[str, Any]) -> bool:
    return all(
        any(naive_one(term, value, run) for value in term.values) is (term.negated is (term.op == "!="))
        for term in terms
    )


def listed(database: Database, text: str, sort: str | None = None, limit: int = 500, cursor: str | None = None) -> Any:
    with database.read() as session:
        return RunService(session).page(Wanted([], None, None, text, sort, limit, cursor), NOW)


words = st.sampled_from([*NAMES, *TAGS, "adam", "ADAM", "1", "1.0", "0.001", "true", "null", "e", "\\", "_", "w1"])
quoted = words.map(lambda word: '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"')
numbers = st.sampled_from(["0", "1", "1e-3", "0.02", "2.5", "-3", "5", "1152921504606846976"])
orders = st.sampled_from([">", ">=", "<", "<=", ":", "=", "!="])
texts = st.sampled_from([":", "=", "!=", "~"])
states = st.sampled_from(["queued", "RUNNING", "failed"])
moments = st.sampled_from(["2d", "1.5h", "2026-01-08", "2026-01-09T12:00Z", "99w"])
text_fields = st.sampled_from(["name", "tag", "worker", "reason", "optim.lr", "optim.kind", "extra.deep"])
number_fields = st.sampled_from(
    ["optim.lr", "nodes.0.alpha", "excess", "min.loss", "max.a/b", "last.nothing", "step", "priority"]
)
moment_fields = st.sampled_from(["created", "started", "finished"])
term = st.one_of(
    quoted,
    st.tuples(text_fields, texts, quoted),
    st.tuples(number_fields, orders, numbers),
    st.tuples(st.just("state"), st.sampled_from([":", "!="]), st.tuples(states, st.just(","), states).map("".join)),
    st.tuples(moment_fields, st.sampled_from([">", ">=", "<", "<="]), moments),
).map("".join)
terms = st.lists(st.tuples(st.sampled_from(["", "-"]), term).map("".join), max_size=4).map(" ".join)


def test_filters_find_what_a_naive_evaluation_finds(database: Database) -> None:
    runs = fill(database)

    @settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
    @given(terms)
    def check(text: str) -> None:
        parsed = parse_filter(text)
        page = listed(database, text)
        assert [run.id for run in page.items] == [r["id"] for r in reversed(runs) if naive(parsed, r)]
        assert sum(page.counts.values()) == len(page.items)

    check()


@pytest.mark.parametrize("sort", [None, "excess", "-excess", "max.loss", "name", "-name", "state", "started", "-step"])
def test_pages_hold_while_runs_are_added(database: Database, sort: str | None) -> None:
    runs = fill(database)
    whole = [run.id for run in listed(database, "", sort).items]
    assert sorted(whole) == sorted(run["id"] for run in runs)
    seen: list[str] = []
    cursor, pages = None, 0
    while pages == 0 or cursor is not None:
        page = listed(database, "", sort, 7, cursor)
        seen += [run.id for run in page.items]
        cursor, pages = page.next_cursor, pages + 1
        if pages == 3:
            fill(database, 20, seed=7)
    assert [run_id for run_id in seen if run_id in set(whole)] == whole
    assert len(seen) == len(set(seen))


def test_orders_put_what_is_absent_last(database: Database) -> None:
    runs = {run["id"]: run["metrics"].get("excess", {}).get("last", math.nan) for run in fill(database)}
    for sort, sign in (("excess", 1), ("-excess", -1)):
        values = [runs[run.id] for run in listed(database, "", sort).items]
        known = [value for value in values if not math.isnan(value)]
        assert known == sorted(known, key=lambda value: sign * value)
        assert all(math.isnan(value) for value in values[len(known) :])


def test_cursors_of_another_list_are_refused(database: Database) -> None:
    fill(database)
    cursor = listed(database, "", "excess", 5).next_cursor
    for sort, wrong in (("loss", cursor), (None, cursor), ("excess", "x"), ("excess", "W10"), ("-excess", cursor)):
        with pytest.raises(InvalidRequest, match="is not a cursor"):
            listed(database, "", sort, 5, wrong)


def test_runs_that_agree_share_their_rows(database: Database) -> None:
    fill(database, 20)
    with database.read() as session:
        rows = session.query(Param).all()
    assert [row.key for row in rows if row.run_id is None] == ["optim.kind"]
    assert "optim.lr" in {row.key for row in rows if row.run_id is not None}


def test_leaves() -> None:
    config = {"a": [{"b": 1}, True], "c": {"d": None, "e": "x"}, "f": 10**400, "g": {}}
    assert leaves(config) == {
        "a.0.b": (1.0, "1"), "a.1": (None, "true"), "c.d": (None, "null"), "c.e": (None, "x"),
        "f": (None, str(10**400)),
    }  # fmt: skip
    assert leaf(math.inf) == (None, "Infinity")


def test_over_http(caller: Caller) -> None:
    run_id = caller.submit(tags=["exp2"])
    found = caller.get("/runs", filter="optim.steps=100 tag:exp2 -state:failed data.gssm.nodes.0.alpha<1", sort="-step")
    assert [run["id"] for run in found["items"]] == [run_id]
    assert caller.get("/runs", filter="optim.steps>100")["items"] == []
    reply = caller.http.get("/runs", params={"filter": "stat:running"})
    assert reply.status_code == 422
    (problem,) = reply.json()["problems"]
    assert problem["path"] == "filter"
    assert problem["remedy"] == "did you mean 'state'?"
    assert caller.http.get("/runs", params={"sort": "tag"}).json()["problems"][0]["path"] == "sort"
