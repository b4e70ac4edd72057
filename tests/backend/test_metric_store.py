from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from backend.database import Database
from backend.ids import new_id
from backend.metrics import blocks, codec, reader, store
from backend.metrics.lines import join, parse_metrics
from backend.metrics.points import Points, candidates, summarise
from backend.metrics.reader import Curve, SeriesReader, View
from backend.metrics.repository import MetricRepository
from backend.metrics.service import summary
from backend.metrics.store import MetricStore
from backend.metrics.thin import thin
from backend.tables import Attempt, Experiment, MetricBlock, Run, RunMetric
from nanollama.api.errors import InvalidRequest
from nanollama.api.status import AttemptState, RunState
from nanollama.spec.rundir import encode_line

KEYS = ("a", "b", "flops")
values = st.one_of(st.floats(width=32), st.floats(), st.integers(-(2**70), 2**70))
views = st.builds(
    View,
    axis=st.sampled_from(["step", "tokens", "flops", "time", "relative_time"]),
    low=st.one_of(st.just(-math.inf), st.floats(-10, 60)),
    high=st.one_of(st.just(math.inf), st.floats(20, 99)),
    max_points=st.integers(5, 40),
    spacing=st.sampled_from(["linear", "log"]),
)
CAP = 1 << 30


@dataclass(frozen=True)
class Logged:
    """A line of the model."""

    step: int
    tokens: int
    time: float
    values: dict[str, float]


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Lines of an attempt: mostly in order, in several layouts, some in another notation, some none at all."""
    step = draw(st.integers(0, 40))
    lines = []
    for seq in range(draw(st.integers(0, 60))):
        step = max(0, step + draw(st.sampled_from([1, 1, 1, 1, 2, 5, 0, -3])))
        keys = draw(st.sampled_from([KEYS, ("a", "flops"), ("b", "a"), ("a",), ()]))
        line = {"seq": seq, "step": step, "tokens": draw(st.integers(0, 99)), "time": draw(st.floats(0, 1e9))}
        line |= {key: draw(values) for key in keys}
        shape = draw(st.sampled_from(["ours"] * 12 + ["spaces", "garbage"]))
        ours = encode_line(line)
        lines.append(ours if shape == "ours" else ours.replace(b",", b" , ") if shape == "spaces" else b'{"seq":[1]}\n')
    return lines


def model_lines(lines: list[bytes]) -> list[Logged]:
    records = [json.loads(line) for line in lines if b"[" not in line]
    return [
        Logged(r["step"], r["tokens"], r["time"], {key: float(r[key]) for key in KEYS if key in r}) for r in records
    ]


def surviving(attempts: list[list[Logged]]) -> list[Logged]:
    kept: list[Logged] = []
    limit = math.inf
    for lines in reversed(attempts):
        kept = [line for line in lines if line.step < limit] + kept
        limit = min([limit, *(line.step for line in lines)])
    return kept


def model_series(lines: list[Logged], key: str) -> list[Logged]:
    by_step = {line.step: line for line in lines if key in line.values}
    return [by_step[step] for step in sorted(by_step)]


def same(left: float, right: float) -> bool:
    return left == right or (math.isnan(left) and math.isnan(right))


def x_of(line: Logged, axis: str, origin: float) -> float:
    if axis == "flops":
        return line.values.get("flops", math.nan)
    return line.time - origin if axis == "relative_time" else float(getattr(line, axis))


def check_curve(curve: Curve | None, expected: list[Logged], key: str, view: View) -> None:
    assert (curve is None) == (not expected)
    if curve is None:
        return
    points = curve.points
    by_step = {line.step: line for line in expected}
    for step, tokens, time, value in zip(points.step, points.tokens, points.time, points.value, strict=True):
        line = by_step[step]
        assert (tokens, time) == (line.tokens, line.time)
        assert same(value, line.values[key])
    steps = points.step.tolist()
    assert steps == sorted(set(steps))
    assert len(steps) <= view.max_points
    if len(expected) <= view.max_points:
        assert steps == list(by_step)
    assert (steps[0], steps[-1]) == (expected[0].step, expected[-1].step)
    logged = [line.values[key] for line in expected]
    numbers = [value for value in logged if not math.isnan(value)]
    shown = points.value[~np.isnan(points.value)]
    assert bool(np.isnan(points.value).any()) == (len(numbers) < len(logged))
    found = summary(curve)
    if numbers:
        assert (shown.min(), shown.max()) == (min(numbers), max(numbers))
        assert (found["min"], found["max"]) == (min(numbers), max(numbers))
    assert found["count"] == len(logged)
    assert same(found["last"], logged[-1])
    if all(math.isfinite(value) and abs(value) < 1e100 for value in logged):
        scale = max(map(abs, logged))
        assert found["mean"] == pytest.approx(math.fsum(logged) / len(logged), rel=1e-9, abs=1e-9 * scale)


def check_values(rows: list[RunMetric], kept: list[Logged]) -> None:
    series = {key: model_series(kept, key) for key in KEYS}
    assert {row.key for row in rows} == {key for key, lines in series.items() if lines}
    for row in rows:
        by_step = {line.step: line.values[row.key] for line in series[row.key]}
        numbers = [value for value in by_step.values() if not math.isnan(value)]
        assert row.last_step == max(by_step)
        assert same(math.nan if row.last is None else row.last, by_step[row.last_step])
        assert (row.min, row.max) == ((min(numbers), max(numbers)) if numbers else (None, None))
        for best, step in ((row.min, row.min_step), (row.max, row.max_step)):
            assert best is None or (step is not None and by_step[step] == best)


def new_run(database: Database, attempts: int = 3) -> tuple[str, list[Attempt]]:
    """A run with attempts that nobody leases."""
    now = datetime(2026, 1, 1, tzinfo=timezone.utc)
    run_id = new_id("r", now)
    made = [
        Attempt(
            id=new_id("a", now), run_id=run_id, experiment_id=run_id, number=number, priority=0,
            state=AttemptState.RUNNING, epoch=1, new_checkpoints=0, created_at=now,
        )
        for number in range(1, attempts + 1)
    ]  # fmt: skip
    with database.write() as session:
        session.add(
            Experiment(
                id=run_id, name="x", notes="", tags=[], created_at=now, priority=0, resources={}, num_runs=1,
            )
        )  # fmt: skip
        session.flush()
        session.add(
            Run(
                id=run_id, experiment_id=run_id, position=0, name="x", params={}, tags=[], search="", priority=0,
                app="gssm", config={}, config_hash="", training_hash="", retries=0, counted_from=1,
                state=RunState.RUNNING, cancel_requested=False, attempt=attempts, created_at=now,
                total_steps=1, step=0, tokens=0, latest={},
            )
        )  # fmt: skip
        session.flush()
        session.add_all(made)
    return run_id, made


def append(database: Database, attempt: Attempt, offset: int, data: bytes, *, rank: int = 0, cap: int = CAP) -> int:
    with database.write() as session:
        MetricStore(session, cap).append(attempt, rank, offset, data)
    return offset + len(data)


def text_of(database: Database, attempt: Attempt, rank: int = 0) -> bytes:
    with database.read() as session:
        return MetricStore(session, CAP).text(attempt.id, rank)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and records so small that a few lines fill them."""
    monkeypatch.setattr(store, "TAIL_BYTES", 500)
    monkeypatch.setattr(store, "BLOCK_LINES", 40)
    for module in (blocks, reader):
        monkeypatch.setattr(module, "FINE", 2)
        monkeypatch.setattr(module, "COARSE", 5)


@pytest.mark.usefixtures("small")
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_answers_are_those_of_a_model_that_keeps_every_line(database: Database, data: st.DataObject) -> None:
    run_id, attempts = new_run(database)
    logged: list[list[Logged]] = []
    for attempt in attempts:
        lines = rest = data.draw(streams())
        offset = 0
        while rest:
            size = data.draw(st.integers(1, 30))
            offset = append(database, attempt, offset, b"".join(rest[:size]))
            rest = rest[size:]
        logged.append(model_lines(lines))
        assert text_of(database, attempt) == b"".join(lines)
        with database.read() as session:
            check_values(MetricRepository(session).newest_values([run_id]), surviving(logged))
    kept = surviving(logged)
    survivors = [lines for number, lines in enumerate(logged) if any(line in kept for line in lines)]
    origin = survivors[0][0].time if survivors else 0.0
    with database.read() as session:
        known = SeriesReader(session).keys([run_id])[run_id]
        assert known == sorted({key for line in kept for key in line.values})
        for _ in range(4):
            view = data.draw(views)
            curves = {c.key: c for c in SeriesReader(session).read([(run_id, key) for key in known], view)}
            for key in known:
                xs = [(line, x_of(line, view.axis, origin)) for line in model_series(kept, key)]
                expected = [line for line, x in xs if view.low <= x <= view.high and math.isfinite(x)]
                check_curve(curves.get(key), expected, key, view)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("spacing", ["linear", "log"])
@pytest.mark.parametrize("axis", ["step", "tokens", "flops", "time", "relative_time"])
def test_long_series_are_answered_from_records(
    database: Database, axis: Any, spacing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, (attempt, *_) = new_run(database, 1)
    n, random = 4000, np.random.default_rng(0)
    loss = random.normal(size=n)
    loss[random.integers(0, n, 5)] = np.nan
    rows = [
        {"seq": i, "step": i + 1, "tokens": 10 * i, "time": 5.0 + 0.5 * i, "a": loss[i].item(), "flops": 3.0 * i}
        for i in range(n)
    ]
    lines = list(map(encode_line, rows))
    offset = 0
    for start in range(0, n, 100):
        offset = append(database, attempt, offset, b"".join(lines[start : start + 100]))
    read = []
    original = reader._Stored.points
    monkeypatch.setattr(reader._Stored, "points", lambda self, *pair: read.append(pair) or original(self, *pair))
    low, high = {"step": (500, 3500), "tokens": (5000, 35000), "flops": (1500, 10500)}.get(axis, (300.0, 1700.0))
    view = View(axis=axis, low=low, high=high, max_points=40, spacing=spacing)
    with database.read() as session:
        (curve,) = SeriesReader(session).read([(run_id, "a")], view)
        assert len(session.scalars(select(MetricBlock)).all()) >= n / 100
    expected = [line for line in model_series(model_lines(lines), "a") if low <= x_of(line, axis, 5.0) <= high]
    check_curve(curve, expected, "a", view)
    assert len(read) < n / 100 / 5, "blocks are read point by point at the edges of the window only"


@given(
    value=st.lists(st.one_of(st.floats(), st.sampled_from([math.nan, math.inf])), min_size=1, max_size=60),
    size=st.integers(1, 9),
)
def test_records_keep_the_extremes_of_each_bucket(value: list[float], size: int) -> None:
    at = np.arange(len(value))
    points = Points(at, 10 * at, at / 2, at * 3.0, np.array(value))
    records = summarise(points, size)
    named = candidates(records, "step", 0.0)
    for place, record in enumerate(records):
        own = value[place * size : (place + 1) * size]
        numbers = [v for v in own if not math.isnan(v)]
        inside = named.take((named.step >= place * size) & (named.step < (place + 1) * size))
        assert (record["count"], record["gaps"]) == (len(own), len(own) - len(numbers))
        assert same(record["last"], own[-1])
        assert bool(np.isnan(inside.value).any()) == (len(numbers) < len(own))
        assert len(set(inside.start.tolist())) == 1
        for v, step, tokens, time, flops in zip(
            inside.value, inside.step, inside.tokens, inside.time, inside.flops, strict=True
        ):
            assert same(v, value[step])
            assert (tokens, time, flops) == (10 * step, step / 2, 3.0 * step)
        if numbers:
            shown = inside.value[~np.isnan(inside.value)]
            assert (shown.min(), shown.max()) == (min(numbers), max(numbers))
            assert (record["min"], record["max"]) == (min(numbers), max(numbers))


@given(data=st.data(), count=st.integers(6, 200), max_points=st.integers(5, 30))
def test_every_bucket_of_a_chart_keeps_its_extremes(data: st.DataObject, count: int, max_points: int) -> None:
    value = np.array(data.draw(st.lists(st.integers(-9, 9), min_size=count, max_size=count)), float)
    x = np.cumsum(data.draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))).astype(float)
    kept = thin(x, value, max_points, "linear")
    assert len(kept) <= max_points
    if count <= max_points:
        return
    buckets = (max_points - 2) // 2
    inner, width = x[1:-1], (x[-2] - x[1]) / buckets
    for bucket in range(buckets):
        last = bucket == buckets - 1
        own = [
            i + 1
            for i, at in enumerate(inner)
            if width == 0 or (bucket <= (at - x[1]) / width and (last or (at - x[1]) / width < bucket + 1))
        ]
        if own:
            shown = [value[i] for i in kept if i in own]
            assert (min(shown), max(shown)) == (value[own].min(), value[own].max())


@given(
    st.one_of(
        st.lists(st.integers(-(2**63), 2**63 - 1)).map(lambda v: np.array(v, np.int64)),
        st.lists(st.floats()).map(lambda v: np.array(v, np.float64)),
        st.builds(lambda a, d, n: a + d * np.arange(n), st.integers(0, 99), st.integers(-9, 9), st.integers(0, 9)),
        st.builds(np.full, st.integers(0, 5), st.floats()),
    )
)
def test_arrays_come_back_bit_by_bit(array: Any) -> None:
    back = codec.decode(codec.encode(array))
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()


@given(streams(), st.integers(0, 60))
def test_lines_come_back_byte_by_byte(lines: list[bytes], cut: int) -> None:
    pieces = [parse_metrics(b"".join(some), 0)[0] for some in (lines[:cut], lines[cut:]) if some]
    assert b"".join(piece.render() for piece in pieces) == b"".join(lines)
    assert join(pieces).render() == b"".join(lines)


@pytest.mark.parametrize(
    "bad",
    [
        b'{"seq":0,"step":1,"tokens":1,"time":1.0,"a":1},{"seq":1,"step":2,"tokens":1,"time":1.0}',
        b'{"seq":0,"step":1,"tokens":1,"time":1.0,"a":[1',
        b'{"seq":0,"step":1,"tokens":1,"time":1.0,"a":"x',
        b'{"seq":0,"step":1,"tokens":1,"time":1.0,"a":{"b":1}}',
        b'{"seq":0,"step":1,"tokens":1,"time":1.0,"a":true}',
        b'{"seq":0,"step":1,"tokens":1,"time":1.0,"a":null}',
        b'{"seq":0,"step":1.0,"tokens":1,"time":1.0}',
        b'{"seq":0,"step":-1,"tokens":1,"time":1.0}',
        b'{"seq":true,"step":1,"tokens":1,"time":1.0}',
        b'{"seq":0,"step":1,"tokens":1,"time":"NaN"}',
        b'{"seq":0,"step":1,"tokens":1,"time":NaN}',
        b'{"seq":0,"step":9223372036854775808,"tokens":1,"time":1.0}',
        b'{"seq":0,"step":1,"tokens":1}',
        b'{"seq":0,"step":1,"tokens":1,"time":1.0,"a":1' + b"0" * 400 + b"}",
        b'{"seq":0,"step":1,"tokens":1,"time":1.0,"' + b"k" * 201 + b'":1}',
        b"",
        b"}",
        b"{",
    ],
)
def test_what_is_no_line_spoils_no_other(bad: bytes) -> None:
    good = [encode_line({"seq": i, "step": i, "tokens": 1, "time": 1.0, "a": 0.5}) for i in range(3)]
    data = good[0] + bad + b"\n" + good[1] + good[2]
    lines, parsed = parse_metrics(data, 100)
    assert lines.columns["step"].tolist() == [0, 1, 2]
    assert parsed.malformed == 1
    assert parsed.first.startswith(f"at byte {100 + len(good[0])}: ")
    assert lines.render() == data


def test_odd_names_are_mended_and_the_text_stays() -> None:
    data = b'{"seq":0,"step":1,"tokens":1,"time":1,"a\\u0000":1,"\xc3\xa9":2.5}\n'
    lines, parsed = parse_metrics(data, 0)
    assert not parsed.malformed
    assert {key: lines.columns[key].tolist() for key in lines.keys} == {"a\N{REPLACEMENT CHARACTER}": [1], "é": [2.5]}
    assert lines.render() == data


@pytest.mark.parametrize(
    "value", [0.0, -0.0, 1e-5, 1.5e-7, 1e-300, 5e-324, 0.0001, 1e15, 1e16, 1.5e20, 1e300, 123456789.0]
)
def test_numbers_of_any_size_need_no_text(value: float) -> None:
    data = b"".join(encode_line({"seq": i, "step": i, "tokens": 1, "time": 1.0, "a": -value * i}) for i in range(3))
    lines, _ = parse_metrics(data, 0)
    assert lines.text is None
    assert lines.render() == data


def test_small_uploads_end_in_few_blocks(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "TAIL_BYTES", 300)
    _, (attempt, *_) = new_run(database, 1)
    offset, written = 0, b""
    for i in range(200):
        line = encode_line({"seq": i, "step": i, "tokens": i, "time": float(i), "a": math.sin(i)})
        offset = append(database, attempt, offset, line)
        written += line
    with database.read() as session:
        found = session.execute(select(MetricBlock.lines, MetricBlock.byte_offset, MetricBlock.byte_end)).all()
    assert len(found) <= math.log2(200)
    assert text_of(database, attempt) == written


def test_beyond_the_cap_points_are_kept_and_foreign_text_is_not(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "TAIL_BYTES", 300)
    run_id, (attempt, *_) = new_run(database, 1)
    offset, written, cut = 0, b"", None
    for i in range(60):
        line = json.dumps({"seq": i, "step": i, "tokens": i, "time": float(i), "a": 0.5}).encode() + b"\n"
        cut = offset if cut is None and offset >= 1000 else cut
        offset = append(database, attempt, offset, line, cap=1000)
        written += line
    assert text_of(database, attempt) == written[:cut]
    with database.read() as session:
        (curve,) = SeriesReader(session).read([(run_id, "a")], View())
    assert curve.points.step.tolist() == list(range(60))


def test_a_stream_has_not_any_number_of_metrics(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_KEYS", 3)
    _, (attempt, *_) = new_run(database, 1)
    line = {"seq": 0, "step": 1, "tokens": 1, "time": 1.0}
    with pytest.raises(InvalidRequest, match="4 different metrics"):
        append(database, attempt, 0, encode_line(line | dict.fromkeys("abcd", 1.0)))
    assert text_of(database, attempt) == b""
