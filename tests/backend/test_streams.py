"""The stored stream is a prefix of the file, and each of its lines counts once."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from backend.database import Database
from backend.deps import Context, utc_now
from backend.metrics.lines import parse_metrics
from backend.metrics.store import MetricStore
from backend.streams.lines import MAX_LINE
from backend.streams.repository import CHUNK_BYTES, StreamRepository
from backend.streams.service import StreamService
from backend.tables import Event, MetricStream
from nanollama.api.client import Client
from nanollama.api.errors import OffsetMismatch
from nanollama.spec.rundir import encode_line
from tests.support.service import Caller, ManualClock, checkpoint_line, metric_line

METRICS = "metrics/rank0.jsonl"

line = st.one_of(
    st.builds(metric_line, st.integers(0, 99), st.integers(0, 99), loss=st.floats()),
    st.sampled_from([b"\n", b"{}\n", b"not json\n", b"\xff\xfe\n", b'{"seq":0,"step":1}\n', b"[1]\n", b"null\n"]),
    st.binary(max_size=20).map(lambda data: data.replace(b"\n", b"") + b"\n"),
)
files = st.tuples(st.lists(line, max_size=12).map(b"".join), st.binary(max_size=8)).map(b"".join)
puts = st.lists(st.tuples(st.integers(0, 700), st.integers(0, 300)), max_size=15)


@pytest.fixture
def lease(caller: Caller) -> dict[str, Any]:
    """A lease of a running attempt."""
    lease = caller.start()
    assert caller.report(lease, "RUNNING", attempt_dir="/root/r/1").status_code == 200
    return lease


def stored(database: Database, attempt_id: str, name: str) -> bytes:
    with database.read() as session:
        if name == METRICS:
            return MetricStore(session, 1 << 20).text(attempt_id, 0)
        return StreamRepository(session).read(attempt_id, name, 0)


def events(caller: Caller, lease: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [event for event in caller.get(f"/runs/{lease['run_id']}/events") if event["kind"] == kind]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=files, pieces=puts, name=st.sampled_from([METRICS, "stdout.log"]))
@example(file=b"{}\n" * 3, pieces=[(0, 2), (0, 4), (3, 2), (2, 99), (50, 1)], name=METRICS)
def test_any_sequence_of_puts_stores_a_prefix_and_each_line_once(
    database: Database, caller: Caller, *, file: bytes, pieces: list[tuple[int, int]], name: str
) -> None:
    lease = caller.start()
    attempt_id = lease["attempt_id"]
    length = 0

    def put(offset: int, data: bytes) -> int:
        with database.write() as session:
            service = StreamService(session, utc_now(), 1 << 20)
            return service.put(attempt_id, name, epoch=lease["epoch"], offset=offset, data=data).length

    for start, size in pieces:
        offset = min(start, len(file) + 1)
        if offset > length:
            with pytest.raises(OffsetMismatch) as gap:
                put(offset, file[offset : offset + size])
            assert gap.value.expected_offset == length
            continue
        data = file[offset : offset + size]
        end = offset + len(data) if name == "stdout.log" else file.rfind(b"\n", 0, offset + len(data)) + 1
        assert put(offset, data) == max(length, end)
        length = max(length, end)
    put(length, file[length:])
    whole = len(file) if name == "stdout.log" else file.rfind(b"\n") + 1
    assert stored(database, attempt_id, name) == file[:whole]
    with database.read() as session:
        count = session.scalar(select(MetricStream.lines).where(MetricStream.attempt_id == attempt_id))
    assert (count or 0) == (len(parse_metrics(file[:whole], 0)[0]) if name == METRICS and whole else 0)
    caller.end(lease, "CANCELLED")


def test_torn_lines_wait_for_their_end(caller: Caller, lease: dict[str, Any]) -> None:
    first, second = metric_line(0, 1, loss=3.0), metric_line(1, 2, loss=2.0)
    data = first + second
    assert caller.put(lease, METRICS, data[:-5]).json()["length"] == len(first)
    assert caller.put(lease, METRICS, second[:4], offset=len(first)).json()["length"] == len(first)
    assert caller.run(lease["run_id"])["progress"]["step"] == 1
    assert caller.put(lease, METRICS, second, offset=len(first)).json()["length"] == len(data)
    progress = caller.run(lease["run_id"])["progress"]
    assert (progress["step"], progress["tokens"], progress["loss"]) == (2, 256, 2.0)


def test_text_streams_take_partial_lines(caller: Caller, lease: dict[str, Any]) -> None:
    assert caller.put(lease, "logs/rank0.log", b"no newline").json()["length"] == 10


def test_malformed_lines_are_kept_and_reported_once(caller: Caller, lease: dict[str, Any], database: Database) -> None:
    huge = b'{"seq":0,"step":%d,"tokens":1,"time":1.0}\n' % 10**30
    data = metric_line(0, 1, loss=1.0) + b"oops\n" + huge + b'{"seq":1,"step":2,"tokens":1,"time":NaN}\n'
    data += b'{"seq":1,"step":2,"tokens":1,"time":1.0,"loss":"high"}\n' + metric_line(2, 3, loss=0.5)
    for _ in range(2):
        assert caller.put(lease, METRICS, data).json()["length"] == len(data)
    (warning,) = events(caller, lease, "warning")
    assert warning["attempt"] == 1
    assert "4 lines of metrics/rank0.jsonl could not be read; the first, at byte" in warning["message"]
    assert stored(database, lease["attempt_id"], METRICS) == data
    assert caller.get(f"/runs/{lease['run_id']}/metrics")["series"]["loss"]["step"] == [1, 3]


def test_events_become_events_and_checkpoints(caller: Caller, lease: dict[str, Any]) -> None:
    note = encode_line({"seq": 3, "kind": "warning", "step": 20, "time": 5.0, "message": "hot\x00"})
    data = checkpoint_line(0, 10) + checkpoint_line(1, 20) + checkpoint_line(2, 10, "checkpoint_removed") + note
    caller.put(lease, "events.jsonl", data)
    caller.put(lease, "events.jsonl", data)
    checkpoints = caller.get(f"/runs/{lease['run_id']}/checkpoints")
    assert [(c["step"], c["removed"], c["size_bytes"], c["attempt"]) for c in checkpoints] == [
        (10, True, 110, 1),
        (20, False, 120, 1),
    ]
    assert checkpoints[1]["path"] == "/root/r/checkpoints/0000000020"
    assert checkpoints[1]["digest"] == f"{20:064x}"
    assert checkpoints[1]["created_at"] == "1970-01-01T00:16:41Z"
    assert len(events(caller, lease, "checkpoint_saved")) == 2
    (warning,) = events(caller, lease, "warning")
    assert (warning["message"], warning["step"]) == ("hot\N{REPLACEMENT CHARACTER}", 20)


@pytest.mark.parametrize(
    "bad",
    [
        {"path": "/etc/passwd"},
        {"path": "../../other/checkpoints/1"},
        {"size_bytes": None},
        {"digest": None},
        {"kind": "invented"},
        {"step": -1},
        {"time": 1e300},
    ],
)
def test_events_that_make_no_sense_are_warnings(caller: Caller, lease: dict[str, Any], bad: dict[str, Any]) -> None:
    caller.put(lease, "events.jsonl", encode_line(json.loads(checkpoint_line(0, 10)) | bad))
    assert caller.get(f"/runs/{lease['run_id']}/checkpoints") == []
    assert len(events(caller, lease, "warning")) == 1


def test_without_a_reported_directory_the_contract_says_where_checkpoints_lie(caller: Caller) -> None:
    lease = caller.start()
    caller.put(lease, "events.jsonl", checkpoint_line(0, 1))
    (checkpoint,) = caller.get(f"/runs/{lease['run_id']}/checkpoints")
    assert checkpoint["path"] == f"/root/{lease['run_id']}/checkpoints/0000000001"


def test_a_later_attempt_saves_a_step_again(caller: Caller, lease: dict[str, Any]) -> None:
    caller.put(lease, "events.jsonl", checkpoint_line(0, 10))
    caller.end(lease, "INTERRUPTED")
    second = caller.claim()
    caller.put(second, "events.jsonl", checkpoint_line(0, 10, "checkpoint_removed") + checkpoint_line(1, 10))
    (checkpoint,) = caller.get(f"/runs/{lease['run_id']}/checkpoints")
    assert (checkpoint["attempt"], checkpoint["removed"]) == (2, False)


@pytest.mark.parametrize("end", ["SUCCEEDED", "FAILED", "CANCELLED", "INTERRUPTED"])
def test_streams_of_an_ended_attempt_are_closed(caller: Caller, lease: dict[str, Any], end: str) -> None:
    caller.end(lease, end)
    assert caller.put(lease, "stdout.log", b"x").json()["code"] == "conflict"


@pytest.mark.parametrize(
    "name",
    [
        "result.json",
        "logs/../../etc/passwd",
        "metrics/rank0.jsonl.bak",
        "metrics/rank00.jsonl",
        "metrics/rank-1.jsonl",
        "logs/rank0.log%00",
        "metrics/rank123456.jsonl",
        "x" * 300,
    ],
)
def test_other_names_are_refused(caller: Caller, lease: dict[str, Any], name: str) -> None:
    reply = caller.put(lease, name, b"x")
    assert reply.status_code in (404, 422)  # 404 where the client's URL rules take the dots away


def test_large_pieces_and_small_ones_read_back_the_same(
    caller: Caller, lease: dict[str, Any], database: Database
) -> None:
    written = b""
    for size in (1, CHUNK_BYTES, 10, CHUNK_BYTES - 11, 5, 3 * CHUNK_BYTES, 0, 7):
        piece = bytes(range(256)) * (size // 256 + 1)
        caller.put(lease, "stdout.log", piece[:size], offset=len(written))
        written += piece[:size]
    assert stored(database, lease["attempt_id"], "stdout.log") == written
    tail = caller.get(f"/runs/{lease['run_id']}/logs", tail_bytes=CHUNK_BYTES + 3)
    assert tail["length"] == len(written)


def test_a_line_without_end_does_not_stop_the_stream(caller: Caller, lease: dict[str, Any]) -> None:
    endless = b"x" * MAX_LINE
    assert caller.put(lease, METRICS, endless).json()["length"] == len(endless)
    rest = b"x\n" + metric_line(0, 1, loss=1.0)
    assert caller.put(lease, METRICS, rest, offset=len(endless)).json()["length"] == len(endless) + len(rest)
    assert caller.get(f"/runs/{lease['run_id']}/metrics")["series"]["loss"]["step"] == [1]


def test_a_stream_over_its_cap_is_counted_and_marked(
    database: Database, clock: ManualClock, caller: Caller, lease: dict[str, Any]
) -> None:
    offset = 0
    for data in (b"a" * 900, b"b" * 200, b"c" * 50):
        with database.write() as session:
            info = StreamService(session, clock(), 1024).put(
                lease["attempt_id"], "stdout.log", epoch=1, offset=offset, data=data
            )
        offset = info.length
    assert offset == 1150
    with database.read() as session:
        tail = StreamService(session, clock(), 1024).tail(lease["run_id"], number=None, name=None, max_bytes=130)
    assert tail.text.startswith("a" * 6 + "b" * 124)
    assert "[truncated: 126 bytes that follow were not kept]" in tail.text
    assert (tail.length, tail.offset) == (1150, 894)


def test_logs_prefer_rank_0_and_follow_the_attempt(caller: Caller, lease: dict[str, Any]) -> None:
    logs = f"/runs/{lease['run_id']}/logs"
    assert caller.get(logs) == {
        "attempt": 1, "name": "stdout.log", "offset": 0, "length": 0, "text": "", "streams": []
    }  # fmt: skip
    caller.put(lease, "stdout.log", b"out\xff")
    assert caller.get(logs)["text"] == "out\N{REPLACEMENT CHARACTER}"
    caller.put(lease, "logs/rank0.log", "één".encode()[:-2])
    caller.put(lease, "logs/rank1.log", b"one")
    caller.put(lease, METRICS, metric_line(0, 1))
    tail = caller.get(logs)
    assert (tail["name"], tail["text"]) == ("logs/rank0.log", "é")  # half a character is left for the next look
    assert tail["streams"] == ["logs/rank0.log", "logs/rank1.log", "stdout.log"]
    assert caller.get(logs, stream="logs/rank1.log")["text"] == "one"
    assert caller.get(logs, tail_bytes=1) == tail | {"offset": 2, "text": ""}
    caller.end(lease, "INTERRUPTED")
    assert caller.get(logs)["attempt"] == 2
    assert caller.get(logs, attempt=1)["text"] == "é"
    assert caller.http.get(logs, params={"attempt": 9}).status_code == 404
    assert caller.http.get(logs, params={"stream": METRICS}).status_code == 422


def test_every_event_of_a_piece_is_stored_with_it_or_not_at_all(
    database: Database, clock: ManualClock, caller: Caller, lease: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError("power cut")

    with database.read() as session:
        before = len(session.scalars(select(Event)).all())
    monkeypatch.setattr("backend.checkpoints.repository.CheckpointRepository.remove", fail)
    data = checkpoint_line(0, 10) + checkpoint_line(1, 10, "checkpoint_removed")
    with pytest.raises(OSError, match="power cut"), database.write() as session:
        StreamService(session, clock(), 1 << 20).put(lease["attempt_id"], "events.jsonl", epoch=1, offset=0, data=data)
    assert stored(database, lease["attempt_id"], "events.jsonl") == b""
    assert caller.get(f"/runs/{lease['run_id']}/checkpoints") == []
    with database.read() as session:
        assert len(session.scalars(select(Event)).all()) == before


# -- read as they are stored -------------------------------------------------------------------------------------------


def test_streams_are_listed_and_read_in_pieces_as_they_are_stored(
    caller: Caller, served: tuple[FastAPI, str], context: Context
) -> None:
    lease = caller.start()
    lines = [metric_line(i, i, loss=float(i)) for i in range(1, 1500)]
    sent = {
        "events.jsonl": checkpoint_line(0, 5),
        "metrics/rank0.jsonl": b"".join([*lines[:700], b"oops\n", *lines[700:]]),
        "stdout.log": bytes(range(256)) * 700,
    }
    for name, data in sent.items():
        for start in range(0, len(data), 50_000):
            length = caller.put(lease, name, data[: start + 50_000]).json()["length"]
            assert length <= len(data)
    path = f"/attempts/{lease['attempt_id']}/streams"
    assert caller.get(path) == [
        {"attempt_id": lease["attempt_id"], "name": name, "length": len(data)} for name, data in sent.items()
    ]
    with Client(served[1]) as client:
        assert [info.name for info in client.streams(lease["attempt_id"])] == list(sent)
        for name, data in sent.items():
            assert b"".join(client.read_stream(lease["attempt_id"], name)) == data
            assert b"".join(client.read_stream(lease["attempt_id"], name, offset=77)) == data[77:]
            for offset, limit in ((0, 1), (1, 10), (63_000, 5_000), (len(data) - 3, 100), (len(data), 5), (1 << 40, 5)):
                reply = caller.http.get(f"{path}/{name}", params={"offset": offset, "limit": limit})
                assert reply.content == data[offset : offset + limit], (name, offset, limit)
                assert reply.headers["X-Stream-Length"] == str(len(data))
                assert reply.headers["Content-Type"] == "application/octet-stream"
    assert caller.http.get(f"{path}/logs/rank7.log").content == b""
    assert caller.http.get(f"{path}/secret").status_code == 422
    assert caller.http.get("/attempts/a0/streams").status_code == 404
    assert caller.http.get("/attempts/a0/streams/stdout.log").status_code == 404


def test_of_a_stream_that_is_too_long_what_was_kept_is_read(
    caller: Caller, served: tuple[FastAPI, str], context: Context
) -> None:
    settings = context.settings.model_copy(update={"max_stream_bytes": 4096})
    served[0].state.context = dataclasses.replace(context, settings=settings)
    lease = caller.start()
    data = b"".join(metric_line(i, i, loss=float(i)) for i in range(200))
    caller.put(lease, "stdout.log", data)
    for end in (3000, 6000, len(data)):
        caller.put(lease, "metrics/rank0.jsonl", data[:end])
    path = f"/attempts/{lease['attempt_id']}/streams"
    assert {info["name"]: info["length"] for info in caller.get(path)}["stdout.log"] == len(data)
    assert caller.http.get(f"{path}/stdout.log").content == data[:4096]
    assert caller.http.get(f"{path}/stdout.log", params={"offset": 5000}).content == b""
    assert caller.http.get(f"{path}/metrics/rank0.jsonl").content == data  # as columns it is not counted
