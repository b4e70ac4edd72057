from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from backend.deps import Context
from backend.live.feed import GAP_SECONDS, Feed
from backend.live.sse import MAX_OPEN, EventStream, Message
from nanollama.api.client import Client
from nanollama.api.errors import InvalidRequest, NotFound
from nanollama.api.following import read_messages
from tests.support.service import Caller, ManualClock, metric_line
from tests.support.waiting import eventually


@pytest.fixture
def client(served: tuple[FastAPI, str], context: Context) -> Iterator[Client]:
    with Client(served[1]) as connected:
        yield connected


def test_events_come_in_order_and_go_on_where_they_were(caller: Caller, client: Client) -> None:
    lease = caller.start()
    caller.report(lease, "RUNNING")
    stream = client.follow_events([lease["run_id"]], after="0")
    seen = [next(stream) for _ in range(3)]
    assert [message.data["to_state"] for message in seen] == ["QUEUED", "LEASED", "RUNNING"]
    assert {message.data["run_id"] for message in seen} == {lease["run_id"]}
    again = client.follow_events([lease["run_id"]], after=seen[1].id)
    assert next(again) == seen[2]
    other = caller.submit()
    caller.end(lease, "SUCCEEDED")
    assert next(again).data["to_state"] == "SUCCEEDED"
    both = client.follow_events(after=seen[2].id)
    assert [(m.data["run_id"], m.data["to_state"]) for m in (next(both), next(both))] == [
        (other, "QUEUED"), (lease["run_id"], "SUCCEEDED"),
    ]  # fmt: skip
    for one in (stream, again, both):
        one.close()  # type: ignore[attr-defined] # a generator


def test_progress_is_told(caller: Caller, context: Context, clock: ManualClock) -> None:
    lease = caller.start()
    caller.report(lease, "RUNNING")
    feed = Feed(context, None, [])
    assert feed.look() == []
    clock.advance(1)
    caller.put(lease, "metrics/rank0.jsonl", metric_line(0, 7, loss=1.5))
    (message,) = feed.look()
    assert (message.kind, message.data["step"], message.data["loss"], message.id) == ("progress", 7, 1.5, None)
    assert feed.look() == []


def test_a_gap_in_the_ids_is_waited_for(caller: Caller, context: Context, clock: ManualClock) -> None:
    lease = caller.start()
    feed = Feed(context, None, [])
    feed.look()
    caller.report(lease, "RUNNING")
    with context.database.write() as session:
        session.execute(text("UPDATE events SET id = id + 1 WHERE id = (SELECT max(id) FROM events)"))
    assert feed.look() == []
    clock.advance(GAP_SECONDS / 2)
    assert feed.look() == []
    clock.advance(GAP_SECONDS)
    assert [message.data["to_state"] for message in feed.look()] == ["RUNNING"]


def test_a_log_is_followed_to_its_end(caller: Caller, client: Client) -> None:
    lease = caller.start()
    caller.report(lease, "RUNNING")
    data = "step 1 é\n".encode()
    caller.put(lease, "stdout.log", data[:8])  # in the middle of a character
    stream = client.follow_log(lease["run_id"])
    first = next(stream)
    assert (first.data["text"], first.id) == ("step 1 ", "1-7")
    caller.put(lease, "stdout.log", data[8:], offset=8)
    second = next(stream)
    assert (second.data["text"], second.id) == ("é\n", "1-10")
    caller.end(lease, "SUCCEEDED")
    assert [(message.kind, message.data["length"]) for message in stream] == [("end", 10)]
    headers = {"Last-Event-ID": "1-7"}
    with caller.http.stream("GET", f"/runs/{lease['run_id']}/logs/stream", headers=headers) as reply:
        messages = list(read_messages(reply.iter_lines()))
    assert [m.data.get("text") for m in messages] == ["é\n", None]


def test_what_cannot_be_followed(caller: Caller, client: Client) -> None:
    run_id = caller.submit()
    with pytest.raises(NotFound):
        next(client.follow_log("r0"))
    with pytest.raises(NotFound, match="has no attempt 7"):
        next(client.follow_log(run_id, attempt=7))
    with pytest.raises(InvalidRequest, match="not a log"):
        next(client.follow_log(run_id, stream="events.jsonl"))
    with pytest.raises(InvalidRequest, match="not the id of a message"):
        next(client.follow_events(after="x"))


def test_heartbeats_and_a_clean_end_when_the_service_stops(
    served: tuple[FastAPI, str], caller: Caller, context: Context
) -> None:
    quick = context.settings.model_copy(update={"heartbeat_seconds": 0.01, "poll_seconds": 0.01})
    served[0].state.context = dataclasses.replace(context, settings=quick)
    with caller.http.stream("GET", "/events/stream") as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = reply.iter_lines()
        assert next(line for line in lines if line.startswith(":")) == ": still here"
        context.notifier.close()
        assert all(line in ("", ": still here") for line in lines)  # and then the response ends


def test_a_client_that_leaves_is_forgotten(served: tuple[FastAPI, str], caller: Caller, context: Context) -> None:
    quick = context.settings.model_copy(update={"poll_seconds": 0.01})
    served[0].state.context = dataclasses.replace(context, settings=quick)
    with caller.http.stream("GET", "/events/stream") as reply:
        next(reply.iter_lines())
        assert context.notifier.streams == 1
    eventually(lambda: context.notifier.streams == 0)


def test_a_client_that_takes_nothing_is_let_go(context: Context) -> None:
    settings = context.settings.model_copy(update={"stall_seconds": 0.01})
    stalled = dataclasses.replace(context, settings=settings)

    async def messages() -> Any:
        while True:
            yield Message("event", {})

    async def scenario() -> None:
        sent = 0

        async def send(message: Any) -> None:
            nonlocal sent
            sent += 1
            if sent > 2 and message.get("more_body"):
                await asyncio.Event().wait()

        async def receive() -> Any:
            await asyncio.Event().wait()

        await asyncio.wait_for(EventStream(stalled, messages())({}, receive, send), 30)
        assert context.notifier.streams == 0

    asyncio.run(scenario())


def test_there_is_a_limit_on_open_streams(http: httpx.Client, context: Context) -> None:
    context.notifier.streams = MAX_OPEN
    reply = http.get("/events/stream")
    assert (reply.status_code, reply.json()["code"]) == (429, "too_many_requests")
    assert int(reply.headers["Retry-After"]) > 0
