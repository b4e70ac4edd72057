"""What holds for every request: errors, limits, hosts, repetition, documentation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema_rs import validator_for
from sqlalchemy.exc import OperationalError

from backend.deps import Context
from backend.examples import EXAMPLES
from nanollama.api.errors import ERRORS
from tests.support.service import SPEC_YAML, Caller
from tests.support.waiting import eventually

PROBLEM = "application/problem+json"

# any JSON, with the strings and numbers that databases choke on
odd = st.sampled_from(["\x00", "\ud800", "$HOME", "%", "'", "x" * 5000, 2**63, -(2**70), 1e308, "NaN", "", " "])
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | odd,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def problem(reply: httpx.Response) -> dict[str, Any]:
    """The problem in a reply, after checking its form."""
    assert reply.headers["content-type"] == PROBLEM
    body: dict[str, Any] = reply.json()
    assert body["status"] == reply.status_code
    assert body["code"] in ERRORS
    assert body["title"]
    assert body["detail"]
    return body


# -- repetition --------------------------------------------------------------------------------------------------------


def test_the_same_key_and_body_create_once_and_answer_the_same(caller: Caller) -> None:
    body = {"yaml": SPEC_YAML, "tags": ["a"]}
    first = caller.http.post("/experiments", json=body, headers={"Idempotency-Key": "key"})
    assert first.status_code == 201
    caller.register("w")
    caller.claim()  # the run has moved on meanwhile
    again = caller.http.post("/experiments", json=body, headers={"Idempotency-Key": "key"})
    assert (again.status_code, again.json()) == (201, first.json())
    other = caller.http.post("/experiments", json=body | {"tags": ["b"]}, headers={"Idempotency-Key": "key"})
    assert (other.status_code, problem(other)["code"]) == (409, "conflict")
    assert len(caller.get("/runs")["items"]) == 1
    assert caller.http.post("/experiments", json=body).status_code == 201
    assert len(caller.get("/runs")["items"]) == 2


def test_concurrent_requests_with_one_key_create_once(caller: Caller) -> None:
    def post(_: int) -> httpx.Response:
        return caller.http.post("/experiments", json={"yaml": SPEC_YAML}, headers={"Idempotency-Key": "key"})

    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(post, range(8)))
    assert {reply.status_code for reply in replies} == {201}
    assert len({reply.text for reply in replies}) == 1
    assert len(caller.get("/runs")["items"]) == 1


def test_an_invalid_submission_takes_no_key_and_keeps_nothing(caller: Caller) -> None:
    headers = {"Idempotency-Key": "key"}
    reply = caller.http.post("/experiments", json={"yaml": "data: {}"}, headers=headers)
    assert reply.status_code == 422
    paths = {item["path"] for item in problem(reply)["problems"]}
    assert {"model", "optim"} <= paths
    assert caller.get("/experiments") == {"items": [], "next_cursor": None}
    assert caller.http.post("/experiments", json={"yaml": SPEC_YAML}, headers=headers).status_code == 201


# -- input -------------------------------------------------------------------------------------------------------------


def test_request_errors_have_paths_and_remedies(http: httpx.Client) -> None:
    reply = http.post("/experiments", json={"yaml": "a", "config": {}, "priority": 1000, "nots": "", "tags": [""]})
    body = problem(reply)
    assert (reply.status_code, body["code"]) == (422, "invalid")
    found = {item["path"]: item for item in body["problems"]}
    assert {"priority", "nots", "tags.0"} <= set(found)
    assert found["nots"]["remedy"] == "did you mean 'notes'?"
    assert "100" in found["priority"]["message"]
    both = problem(http.post("/specs/validate", json={"yaml": "a", "config": {}}))
    assert "give either `yaml` or `config`" in both["detail"]
    query = problem(http.get("/runs", params={"limit": 0, "state": "DONE"}))
    assert {item["path"] for item in query["problems"]} == {"limit", "state.0"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a JSON object, found nothing"),
        (b"null", "expected a JSON object, found nothing"),
        (b"[1]", "expected a JSON object, found a list"),
        (b"true", "expected a JSON object, found a boolean"),
        (b"{", "this is not JSON at character 1"),
        (b'{"yaml": "a"', "this is not JSON at character 12"),
        (b"nonsense", "this is not JSON at character 0"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_bodies_that_are_not_json(http: httpx.Client, content: bytes, message: str) -> None:
    reply = http.post("/experiments", content=content, headers={"Content-Type": "application/json"})
    assert reply.status_code == 422
    body = problem(reply)
    assert body["code"] == "invalid"
    [found] = body["problems"]
    assert found["path"] == "body"
    assert message in found["message"]
    assert found["remedy"]


@pytest.mark.parametrize(
    ("content_type", "found_type"), [("text/plain", "the content type 'text/plain'"), ("", "no content type")]
)
def test_bodies_of_another_type(http: httpx.Client, content_type: str, found_type: str) -> None:
    reply = http.post("/experiments", content=b'{"yaml": "a"}', headers={"Content-Type": content_type})
    assert reply.status_code == 422
    [found] = problem(reply)["problems"]
    assert found["message"] == f"expected JSON, found {found_type}"
    assert "application/json" in found["remedy"]


def test_names_and_tags_are_single_lines(http: httpx.Client) -> None:
    for fields in ({"name": "a\nb"}, {"name": ""}, {"tags": ["a\x00"]}, {"tags": ["x" * 65]}, {"name": "x" * 201}):
        assert http.post("/experiments", json={"yaml": SPEC_YAML} | fields).status_code == 422


@pytest.mark.parametrize("text", ["\x00", "%", "_", "\\", "'", "\x00" * 40, "é", "x" * 200])
def test_odd_text_in_paths_and_queries(caller: Caller, text: str) -> None:
    caller.submit(name="100 % é_\\")
    found = caller.get("/runs", search=text)["items"]
    assert bool(found) == (text in "100 % é_\\")
    path = quote(text[:32], safe="")
    for url in (f"/runs/{path}", f"/experiments/{path}", f"/runs/{path}/metrics"):
        assert caller.http.get(url).status_code in (307, 404, 422)
    assert caller.http.get("/runs", params={"cursor": text[:32]}).status_code == 422


def test_unknown_query_parameters_are_refused_with_the_nearest(caller: Caller) -> None:
    run_id = caller.submit()
    for path, name, remedy in (
        ("/runs", "stat", "did you mean 'state'?"),
        (f"/runs/{run_id}/metrics", "keys", "did you mean 'key'?"),
        (f"/runs/{run_id}/logs", "zzz", "known: attempt, stream, tail_bytes"),
        ("/health", "nope", "remove it"),
    ):
        reply = caller.http.get(path, params={name: "1"})
        body = problem(reply)
        assert (reply.status_code, body["code"]) == (422, "invalid")
        [found] = body["problems"]
        assert (found["path"], found["remedy"]) == (name, remedy)
        assert name in body["detail"]


@pytest.mark.parametrize("path", ["/runs", "/experiments"])
def test_a_cursor_is_one_that_a_page_gave(caller: Caller, path: str) -> None:
    for _ in range(2):
        caller.submit()
    cursor = caller.get(path, limit=1)["next_cursor"]
    assert len(caller.get(path, cursor=cursor)["items"]) == 1
    for wrong in ("zzz", "", "x" + cursor[1:], cursor + "0"):
        reply = caller.http.get(path, params={"cursor": wrong})
        assert reply.status_code == 422
        [found] = problem(reply)["problems"]
        assert found["path"] == "cursor"
        assert "next_cursor" in found["message"]


def test_unknown_things(http: httpx.Client) -> None:
    assert problem(http.get("/nothing"))["code"] == "not_found"
    assert http.delete("/runs").status_code == 405
    assert problem(http.delete("/runs"))["code"] == "invalid"
    for path in ("", "/attempts", "/events", "/checkpoints", "/metrics", "/logs"):
        assert problem(http.get(f"/runs/r0{path}"))["code"] == "not_found"
    assert problem(http.post("/runs/r0/cancel"))["code"] == "not_found"
    assert problem(http.get("/experiments/e0"))["code"] == "not_found"
    assert problem(http.put("/attempts/a0/streams/stdout.log?epoch=1&offset=0"))["code"] == "not_found"


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    target=st.sampled_from(
        [
            ("POST", "/experiments", {"yaml": SPEC_YAML}),
            ("POST", "/specs/validate", {"yaml": "a: 1"}),
            ("POST", "/attempts/ATTEMPT/transitions", {"transition_id": "x" * 8, "epoch": 1, "to": "RUNNING"}),
            ("POST", "/workers/w/sync", {}),
            (
                "PUT",
                "/workers/w",
                {"name": "n", "pool": "p", "executor": "local", "host": "h", "user": "u", "run_root": "/r",
                 "slots": 1, "version": "1"},
            ),
        ]
    ),
    key=st.sampled_from(
        ["yaml", "config", "name", "notes", "tags", "priority", "transition_id", "epoch", "to", "reason", "exit_code",
         "result", "attempt_dir", "held", "free_slots", "draining", "pool", "host", "slots", "odd"]
    ),
    value=anything,
)  # fmt: skip
def test_no_json_makes_the_service_fail(
    caller: Caller, target: tuple[str, str, dict[str, Any]], key: str, value: Any
) -> None:
    method, path, body = target
    lease = caller.start()
    body = body | {key: value}
    if key == "config":
        body.pop("yaml", None)
    reply = caller.http.request(
        method,
        path.replace("ATTEMPT", lease["attempt_id"]),
        content=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    assert reply.status_code < 500, reply.text
    if reply.status_code >= 400:
        problem(reply)


# -- limits and other people's pages -----------------------------------------------------------------------------------


def test_a_spec_of_5_mb_is_refused_with_a_message(http: httpx.Client) -> None:
    reply = http.post("/experiments", json={"yaml": "# " + "x" * 5_000_000})
    assert reply.status_code == 422
    assert "1,048,576" in problem(reply)["problems"][0]["message"]


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("path", ["/experiments", "/specs/validate"])
def test_larger_bodies_are_refused(http: httpx.Client, announced: bool, path: str) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * (1 << 20)

    content: Any = b" " * (20 << 20) if announced else pieces()
    reply = http.post(path, content=content, headers={"Content-Type": "application/json"})
    assert (reply.status_code, problem(reply)["code"]) == (413, "too_large")


def test_larger_pieces_of_streams_are_refused(caller: Caller) -> None:
    lease = caller.start()
    assert caller.put(lease, "stdout.log", b"x" * (8 << 20)).status_code == 200
    assert caller.put(lease, "stdout.log", b"x" * ((8 << 20) + 1)).status_code == 413


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8420", "127.0.0.1.evil.example", "", "[::1", "10.0.0.1"]
)
def test_foreign_hosts_are_refused(http: httpx.Client, host: str) -> None:
    reply = http.get("/health", headers={"Host": host})
    assert (reply.status_code, problem(reply)["code"]) == (403, "forbidden")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.9.9.9:80", "[::1]:8420", "[::1]"])
def test_loopback_hosts_are_welcome(http: httpx.Client, host: str) -> None:
    assert http.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://localhost"])
def test_pages_of_others_may_not_change_anything(http: httpx.Client, origin: str) -> None:
    headers = {"Origin": origin}
    for method, path in (("POST", "/experiments"), ("POST", "/runs/r0/cancel"), ("PUT", "/workers/w")):
        reply = http.request(method, path, headers=headers, json={"yaml": SPEC_YAML})
        assert (reply.status_code, problem(reply)["code"]) == (403, "forbidden")
    assert http.get("/runs", headers=headers).status_code == 200
    own = {"Origin": str(http.base_url.copy_with(path="")).rstrip("/")}
    assert http.post("/specs/validate", headers=own, json={"yaml": SPEC_YAML}).status_code == 200


def test_requests_have_ids(http: httpx.Client) -> None:
    assert len(http.get("/health").headers["X-Request-ID"]) == 16
    assert http.get("/health", headers={"X-Request-ID": "my-id.1"}).headers["X-Request-ID"] == "my-id.1"
    assert http.get("/health", headers={"X-Request-ID": "no good"}).headers["X-Request-ID"] != "no good"


def test_a_line_about_each_request_when_asked(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    http.get("/health")
    assert caplog.messages == []
    with caplog.at_level("INFO", logger="backend.access"):
        http.get("/health", headers={"X-Request-ID": "look-for-me"})
        # the line is written after the answer has been sent, so that of the first request may come late and be kept too
        (record,) = eventually(
            lambda: [r for r in caplog.records if r.__dict__["fields"]["request_id"] == "look-for-me"]
        )
    fields = record.__dict__["fields"]
    assert fields.pop("milliseconds") > 0
    assert fields == {"request_id": "look-for-me", "method": "GET", "path": "/api/v1/health", "status": 200}


# -- faults of ours ----------------------------------------------------------------------------------------------------


def test_a_database_that_is_away_is_a_503(
    http: httpx.Client, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> None:
        raise OperationalError("SELECT", {}, Exception("gone"))

    monkeypatch.setattr(context.database, "read", fail)
    reply = http.get("/runs")
    assert (reply.status_code, problem(reply)["code"]) == (503, "unavailable")
    assert reply.headers["Retry-After"] == "1"


def test_a_bug_is_a_500_that_names_the_request(
    http: httpx.Client, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(context.database, "read", fail)
    reply = http.get("/runs", headers={"X-Request-ID": "abc"})
    body = problem(reply)
    assert (reply.status_code, body["code"]) == (500, "internal")
    assert "abc" in body["detail"]
    assert "secret" not in reply.text


# -- documentation -----------------------------------------------------------------------------------------------------


def test_the_documentation_is_complete(served: tuple[FastAPI, str]) -> None:
    document = served[0].openapi()
    assert json.loads(json.dumps(document)) == document
    tags = {tag["name"] for tag in document["tags"]}
    operations = [
        (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    assert len(operations) >= 19
    for name, operation in operations:
        assert operation["summary"], name
        assert operation["description"], name
        assert set(operation["tags"]) <= tags, name
        success = next(reply for status, reply in operation["responses"].items() if status < "300")
        assert next(iter(success["content"].values()))["schema"], name
        errors = {status: reply for status, reply in operation["responses"].items() if status >= "400"}
        assert {"403", "422"} <= set(errors), name
        assert ("401" in errors) is ("security" in operation) is ("/health" not in name), name
        for reply in errors.values():
            assert list(reply["content"]) == [PROBLEM], name
            assert reply["content"][PROBLEM]["schema"] == {"$ref": "#/components/schemas/ErrorBody"}, name
        if "{" in name and "PUT /api/v1/workers" not in name:
            assert "404" in errors, name


def test_every_body_and_every_answer_has_an_example_that_its_schema_allows(served: tuple[FastAPI, str]) -> None:
    document = served[0].openapi()
    schemas, shown = document["components"]["schemas"], set()

    def check(where: str, content: dict[str, Any]) -> None:
        for media_type, described in content.items():
            if not media_type.endswith("json"):
                continue
            schema = described["schema"]
            reference = schema.get("items", schema)["$ref"]  # of lists: what is in them
            name = reference.rpartition("/")[2]
            assert "examples" in schemas[name], f"{where}: {name} has no example"
            whole = {"$ref": reference, "components": document["components"]}
            faults = [
                str(fault) for one in schemas[name]["examples"] for fault in validator_for(whole).iter_errors(one)
            ]
            assert faults == [], f"{where}: {name}"
            shown.add(name)

    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            where = f"{method.upper()} {path}"
            check(where, operation.get("requestBody", {}).get("content", {}))
            for reply in operation["responses"].values():
                check(where, reply.get("content", {}))
    assert shown == EXAMPLES.keys()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_example_of_a_submission_can_be_submitted(caller: Caller) -> None:
    made = caller.post("/experiments", **EXAMPLES["ExperimentCreate"])
    assert (made["name"], made["num_runs"]) == ("two-nodes", 4)
    run_id = made["runs"][0]["id"]
    assert caller.post(f"/runs/{run_id}/clone", **EXAMPLES["Clone"])["num_runs"] == 1
    assert caller.get("/runs", filter=EXAMPLES["Prioritise"]["filter"])["counts"] == {"QUEUED": 5}
    assert caller.post("/specs/validate", **EXAMPLES["SpecInput"])["valid"] is True


def test_the_documentation_is_served(served: tuple[FastAPI, str]) -> None:
    for path in ("/docs", "/api/v1/openapi.json"):
        assert httpx.get(served[1] + path, trust_env=False).status_code == 200
