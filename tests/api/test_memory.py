"""What the service need not send again, and that nothing old is ever taken for new."""

from __future__ import annotations

import threading
from typing import Any

import httpx

from nanollama.api.calls.memory import MAX_ANSWERS, MAX_BYTES, Memory, question
from nanollama.api.client import Client
from tests.support.service import SPEC_YAML


def answer(size: int, tag: str = '"t"') -> httpx.Response:
    return httpx.Response(200, headers={"ETag": tag}, content=b"x" * size)


def test_an_unchanged_list_is_sent_once(client: Client) -> None:
    client.submit(yaml=SPEC_YAML, name="first")
    statuses: list[int] = []
    client._http.event_hooks["response"].append(lambda reply: statuses.append(reply.status_code))
    before = client.runs(limit=10)
    assert client.runs(limit=10) == before
    assert len(client.runs(limit=11).items) == 1
    client.submit(yaml=SPEC_YAML, name="second")
    assert [run.name for run in client.runs(limit=10).items] == ["second", "first"]
    assert [run.name for run in client.runs(limit=10).items] == ["second", "first"]
    assert statuses == [200, 304, 200, 201, 200, 304]


def test_errors_and_other_services_are_not_remembered() -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        assert "If-None-Match" not in request.headers
        return httpx.Response(200, json={"status": "ok", "version": "1", "database": "sqlite"})

    with Client("http://service", transport=httpx.MockTransport(respond)) as client:
        assert client.health() == client.health()


def test_old_and_large_answers_leave() -> None:
    memory = Memory()
    for i in range(MAX_ANSWERS):
        memory.keep((str(i), ""), answer(1))
    assert memory.get(("0", "")) is not None
    memory.keep(("new", ""), answer(1))
    assert memory.get(("0", "")) is not None, "it was used last"
    assert memory.get(("1", "")) is None
    memory.keep(("large", ""), answer(MAX_BYTES))
    assert memory.get(("large", "")) is None
    for i in range(5):
        memory.keep((f"heavy{i}", ""), answer(MAX_BYTES // 4))
    assert [memory.get((f"heavy{i}", "")) is None for i in range(5)] == [True, False, False, False, False]
    for _ in range(100):
        memory.keep(("heavy4", ""), answer(MAX_BYTES // 4))  # in its own place
    assert memory.get(("heavy1", "")) is not None


def test_questions_differ_in_every_parameter() -> None:
    several: list[dict[str, Any]] = [{"limit": 1}, {"run": ["a", "b"]}, {"run": ["ab"]}, {"run": "a&run=b"}]
    asked = [question("/runs", None), question("/run", None), *(question("/runs", params) for params in several)]
    assert len(set(asked)) == len(asked)


def test_threads_share_one(client: Client) -> None:
    client.submit(yaml=SPEC_YAML)
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.extend(len(client.runs(limit=n % 9 + 1).items) for n in range(30)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1] * 120
