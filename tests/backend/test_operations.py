from __future__ import annotations

import re

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from backend.auth.limits import Buckets
from backend.deps import Context
from tests.backend.test_access import as_bearer, guarded, make  # noqa: F401 - a fixture
from tests.support.service import Caller


def test_a_list_that_has_not_changed_is_not_sent_again(caller: Caller) -> None:
    caller.submit()
    first = caller.http.get("/runs")
    tag = first.headers["ETag"]
    again = caller.http.get("/runs", headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["ETag"] == tag
    for others in (f'"x", {tag}', f"W/{tag}", "*"):
        assert caller.http.get("/runs", headers={"If-None-Match": others}).status_code == 304
    caller.submit()
    changed = caller.http.get("/runs", headers={"If-None-Match": tag})
    assert changed.status_code == 200
    assert len(changed.json()["items"]) == 2
    assert changed.headers["ETag"] != tag


def test_errors_and_other_methods_have_no_tag(http: httpx.Client) -> None:
    assert "ETag" not in http.get("/runs/r0").headers
    assert "ETag" not in http.post("/specs/validate", json={"yaml": "a: 1"}).headers


def test_figures_for_prometheus(caller: Caller, served: tuple[FastAPI, str]) -> None:
    caller.start()
    caller.http.get("/runs/r0")
    reply = httpx.get(f"{served[1]}/metrics", trust_env=False)
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert re.search(r'^n2n_runs\{state="LEASED"\} 1$', reply.text, re.M)
    assert re.search(r'^n2n_workers\{alive="true"\} 1$', reply.text, re.M)
    labels = re.escape('method="GET",route="/api/v1/runs/{run_id}"')
    assert re.search(rf'^n2n_requests_total{{{labels},status="404"}} [1-9]', reply.text, re.M)
    buckets = re.findall(rf"^n2n_request_seconds_bucket{{{labels},.*}} (\d+)$", reply.text, re.M)
    assert sorted(buckets, key=int) == buckets
    assert re.findall(rf"^n2n_request_seconds_count{{{labels}}} (\d+)$", reply.text, re.M) == buckets[-1:]
    line = re.compile(r'# (HELP|TYPE) \w+ .+|\w+(\{\w+="[^"]*"(,\w+="[^"]*")*\})? [-+.e\d]+')
    assert all(line.fullmatch(each) for each in reply.text.splitlines())


def test_readiness_looks_at_the_schema(http: httpx.Client, context: Context) -> None:
    assert http.get("/health/ready").status_code == 200
    with context.database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    reply = http.get("/health/ready")
    assert (reply.status_code, reply.json()["code"]) == (503, "unavailable")
    assert http.get("/health").status_code == 200


def test_a_bucket_holds_a_burst_and_fills_at_its_rate() -> None:
    now = 0.0
    buckets = Buckets(lambda: now)
    assert [buckets.take("a", 2) for _ in range(8)] == [0.0] * 8
    assert buckets.take("a", 2) == pytest.approx(0.5)
    assert buckets.take("b", 2) == 0
    now = 0.5
    assert buckets.take("a", 2) == 0
    assert buckets.take("a", 2) > 0
    now = 1000.0
    assert [buckets.take("a", 2) for _ in range(8)] == [0.0] * 8
    assert buckets.take("a", 2) > 0


def test_a_token_that_asks_too_often_waits(
    guarded: Context,  # noqa: F811
    served: tuple[FastAPI, str],
    http: httpx.Client,
) -> None:
    slow = guarded.settings.model_copy(update={"requests_per_second": 0.25})
    object.__setattr__(guarded, "settings", slow)
    headers = as_bearer(make(guarded, "read"))
    assert http.get("/runs", headers=headers).status_code == 200
    reply = http.get("/runs", headers=headers)
    assert (reply.status_code, reply.json()["code"]) == (429, "too_many_requests")
    assert 1 <= int(reply.headers["Retry-After"]) <= 4
    assert http.get("/runs", headers=as_bearer(make(guarded, "read"))).status_code == 200
