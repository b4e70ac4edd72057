"""Answers that still hold are not built again, whoever changes the database."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import text

from backend.database import Database
from backend.deps import Context
from backend.revalidation import REMEMBERED, Answers
from backend.runs.service import RunService
from tests.backend.test_access import as_bearer, guarded, make  # noqa: F401 - a fixture
from tests.support.service import Caller, metric_line


def ask(caller: Caller, path: str, tag: str = "") -> tuple[int, str]:
    reply = caller.http.get(path, headers={"If-None-Match": tag} if tag else {})
    return reply.status_code, reply.headers["ETag"]


def forbid(*_: Any, **__: Any) -> Any:
    raise AssertionError("built again")


def rename(url: str, run_id: str, name: str) -> None:
    database = Database(url)
    with database.write() as session:
        session.execute(text("UPDATE runs SET name = :name WHERE id = :id"), {"name": name, "id": run_id})
    database.dispose()


def test_nothing_is_built_while_nothing_is_committed(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = caller.start()
    caller.put(lease, "metrics/rank0.jsonl", metric_line(0, 0, loss=1.0))
    run = lease["run_id"]
    experiment = caller.run(run)["experiment_id"]
    paths = ["/runs?filter=state:leased&sort=-step", f"/runs/{run}", "/experiments", f"/experiments/{experiment}",
             f"/runs/{run}/metrics", f"/metrics?run={run}", f"/metrics/values?run={run}"]  # fmt: skip
    tags = {path: ask(caller, path)[1] for path in paths}
    with monkeypatch.context() as patched:
        patched.setattr(Database, "read", forbid)
        for path, tag in tags.items():
            assert ask(caller, path, tag) == (304, tag)
            assert ask(caller, path, f'"x", W/{tag}') == (304, tag)
    caller.put(lease, "metrics/rank0.jsonl", metric_line(1, 1, loss=2.0), offset=len(metric_line(0, 0, loss=1.0)))
    for path, tag in tags.items():
        status, new = ask(caller, path, tag)
        # what is built again and came out the same is not sent again
        assert (status == 304) == (new == tag), path
    assert ask(caller, f"/runs/{run}/metrics", tags[f"/runs/{run}/metrics"])[0] == 200


def test_another_process_changes_what_is_known(caller: Caller, database_url: str) -> None:
    run_id = caller.submit()
    tag = ask(caller, "/runs")[1]
    assert ask(caller, "/runs", tag)[0] == 304
    process = multiprocessing.get_context("spawn").Process(target=rename, args=(database_url, run_id, "by another"))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    reply = caller.http.get("/runs", headers={"If-None-Match": tag})
    assert (reply.status_code, reply.json()["items"][0]["name"]) == (200, "by another")


def test_every_acknowledged_change_is_seen(caller: Caller) -> None:
    run_id = caller.submit()
    tag = ask(caller, "/runs")[1]
    for i in range(40):
        reply = caller.http.patch(f"/runs/{run_id}", json={"priority": i + 1})
        assert reply.status_code == 200
        status, new = ask(caller, "/runs", tag)
        assert (status, new != tag) == (200, True)
        tag = new
        assert ask(caller, "/runs", tag) == (304, tag)


def test_a_change_while_the_answer_is_built_makes_its_tag_old(
    caller: Caller, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = caller.submit()
    real = RunService.page

    def changed_meanwhile(*arguments: Any) -> Any:
        answer = real(*arguments)
        rename(database_url, run_id, "meanwhile")
        return answer

    with monkeypatch.context() as patched:
        patched.setattr(RunService, "page", changed_meanwhile)
        tag = ask(caller, "/runs")[1]
    reply = caller.http.get("/runs", headers={"If-None-Match": tag})
    assert (reply.status_code, reply.json()["items"][0]["name"]) == (200, "meanwhile")


def test_ages_are_looked_at_again(caller: Caller, clock: Any) -> None:
    caller.submit()
    path = "/runs?filter=created<1h"
    status, tag = ask(caller, path)
    clock.advance(7200)
    fresh = caller.http.get(path, headers={"If-None-Match": tag})
    assert (status, fresh.status_code) == (200, 200)
    assert ask(caller, path)[1] != tag


def test_a_tag_is_that_of_its_form(caller: Caller) -> None:
    """Columns as JSON and as Arrow have one address."""
    run = caller.start()["run_id"]
    path = f"/metrics?run={run}"
    tag = ask(caller, path)[1]
    headers = {"If-None-Match": tag, "Accept": "application/vnd.apache.arrow.stream"}
    assert caller.http.get(path, headers=headers).status_code == 200


def test_who_may_not_read_is_not_told(
    guarded: Context,  # noqa: F811
    served: tuple[FastAPI, str],
    caller: Caller,
) -> None:
    reader, worker = make(guarded, "read"), make(guarded, "worker:pool")
    tag = caller.http.get("/runs", headers=as_bearer(reader)).headers["ETag"]
    for token, status in ((reader, 304), (worker, 403)):
        headers = as_bearer(token) | {"If-None-Match": tag}
        assert caller.http.get("/runs", headers=headers).status_code == status


def test_only_so_many_are_remembered() -> None:
    answers = Answers()
    for i in range(REMEMBERED + 1):
        answers.remember(str(i), "v", f"tag{i}")
    assert answers.tag("0", "v") is None
    assert answers.tag("1", "v") == "tag1"
    assert answers.tag("1", "w") is None
