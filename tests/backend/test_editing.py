"""What people write on runs and experiments: tags, notes, names, and what lists leave out."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import event

from backend.deps import Context
from nanollama.api import schemas
from nanollama.api.client import Client
from nanollama.api.errors import NotFound
from tests.support.service import SPEC_YAML, Caller

SEEDS = "grid:\n  orchestration.utils.seed: [1, 2, 3]\n"
HOSTILE = ["<script>alert(1)</script>", "$\\LaTeX$", "שלום", '🦙, "quoted"', "' OR 1=1 --", "%_\\"]


def names(caller: Caller, **query: Any) -> list[str]:
    return [run["name"] for run in caller.get("/runs", **query)["items"]]


def kinds(caller: Caller, run_id: str) -> list[str]:
    return [event["kind"] for event in caller.get(f"/runs/{run_id}/events")]


def patch(caller: Caller, path: str, **body: Any) -> dict[str, Any]:
    reply = caller.http.patch(path, json=body)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def test_tags_and_notes_are_changed_whatever_they_hold(caller: Caller) -> None:
    run_id = caller.submit(tags=["old"])
    notes = "\n".join([*HOSTILE, "x" * 9000])
    run = patch(caller, f"/runs/{run_id}", tags=[*HOSTILE, HOSTILE[0]], notes=notes)
    assert (run["tags"], run["notes"]) == (HOSTILE, notes)
    assert (caller.run(run_id)["tags"], caller.run(run_id)["notes"]) == (HOSTILE, notes)
    for tag in HOSTILE:
        quoted = tag.replace("\\", "\\\\").replace('"', '\\"')
        assert names(caller, filter=f'tag:"{quoted}"') == ["two-nodes"], tag
        assert names(caller, filter=f'"{quoted}"') == ["two-nodes"], tag
    assert names(caller, filter="tag:old") == names(caller, search="old") == []
    assert kinds(caller, run_id)[-2:] == ["edited", "edited"]
    before = len(kinds(caller, run_id))
    patch(caller, f"/runs/{run_id}", tags=HOSTILE, notes=notes, archived=False)
    assert len(kinds(caller, run_id)) == before  # nothing was different
    assert patch(caller, f"/runs/{run_id}", notes="")["tags"] == HOSTILE


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "give at least one of priority, tags, notes, archived"),
        ({"notes": None}, "give at least one"),
        ({"tags": ["two\nlines"]}, "tags.0"),
        ({"tags": [""], "notes": "kept?"}, "tags.0"),
        ({"tags": ["x" * 65]}, "at most 64"),
        ({"tags": [str(i) for i in range(33)]}, "at most 32"),
        ({"notes": "x" * 10_001}, "at most 10000"),
        ({"tag": ["x"]}, "did you mean 'tags'?"),
        ({"archived": "perhaps"}, "archived"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(caller: Caller, body: dict[str, Any], said: str) -> None:
    run_id = caller.submit()
    before = caller.run(run_id)
    reply = caller.http.patch(f"/runs/{run_id}", json=body)
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid")
    assert said in reply.json()["detail"]
    assert caller.run(run_id) == before
    assert caller.http.patch("/runs/r0", json={"notes": "x"}).status_code == 404


def test_archived_runs_are_left_out_unless_the_filter_names_them(caller: Caller) -> None:
    caller.post("/experiments", yaml=SPEC_YAML + SEEDS)
    first, second, third = sorted(run["id"] for run in caller.get("/runs")["items"])
    assert caller.post("/runs:archive", ids=[first, second, "r0"])["changed"] == [first, second]
    assert caller.post("/runs:archive", ids=[first])["changed"] == []

    def shown(query: str | None) -> list[str]:
        page = caller.get("/runs", **({} if query is None else {"filter": query}))
        assert sum(page["counts"].values()) == len(page["items"])
        return sorted(run["id"] for run in page["items"])

    assert shown(None) == shown("archived:false") == shown("-archived:true") == [third]
    assert shown("archived:true") == [first, second]
    assert shown("archived:any state:queued") == [first, second, third]
    assert caller.run(first)["archived"]  # by its id it is there as ever
    assert caller.get("/experiments")["items"][0]["counts"] == {"QUEUED": 3}
    assert [lease["run_id"] for lease in _claims(caller)] == [first, second, third]  # and it is still run
    assert caller.post("/runs:cancel", filter="name~seed")["changed"] == [third]
    assert caller.post("/runs:archive", filter="archived:true", archived=False)["changed"] == [second, first][::-1]
    assert shown(None) == [first, second, third]
    assert kinds(caller, first)[-1] == "unarchived"
    assert patch(caller, f"/runs/{first}", archived=True)["archived"]
    assert kinds(caller, first)[-1] == "archived"
    reply = caller.http.get("/runs", params={"filter": "archived:ture"})
    assert "did you mean 'true'?" in reply.json()["detail"]
    assert "archived" not in caller.http.get("/runs", params={"sort": "archived"}).json()["problems"][0]["remedy"]


def _claims(caller: Caller) -> list[dict[str, Any]]:
    caller.register("w")
    leases: list[dict[str, Any]] = caller.sync("w", slots=3)["leases"]
    return leases


def test_several_runs_get_and_lose_tags_at_once(caller: Caller) -> None:
    caller.post("/experiments", yaml=SPEC_YAML + SEEDS, tags=["a", "b"])
    first, second, third = sorted(run["id"] for run in caller.get("/runs")["items"])
    assert caller.post("/runs:tag", ids=[first, second], add=["c", "a"], remove=["b"])["changed"] == [first, second]
    assert caller.run(first)["tags"] == ["a", "c"]
    assert caller.post("/runs:tag", ids=[first], add=["c"])["changed"] == []
    assert caller.post("/runs:tag", filter="tag:b", add=["d"])["changed"] == [third]
    many = [f"t{i}" for i in range(30)]
    reply = caller.http.post("/runs:tag", json={"ids": [first, third], "add": many})
    assert reply.status_code == 422
    assert f"run '{third}' would have 33 tags, and 32 are allowed" in reply.json()["detail"]
    assert caller.run(first)["tags"] == ["a", "c"]
    for body in ({"ids": [first]}, {"ids": [first], "add": ["x"], "remove": ["x"]}, {"add": ["x"]}):
        assert caller.http.post("/runs:tag", json=body).status_code == 422


def test_bulk_changes_take_few_statements(caller: Caller, context: Context) -> None:
    seeds = f"grid:\n  orchestration.utils.seed: {list(range(300))}\n"
    made = caller.post("/experiments", yaml=SPEC_YAML + seeds)
    statements: list[str] = []
    event.listen(context.database.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    assert len(caller.post("/runs:tag", experiment=made["id"], add=["x"])["changed"]) == 300
    assert len(caller.post("/runs:archive", experiment=made["id"])["changed"]) == 300
    assert len(statements) < 30


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/runs:tag", {"add": ['new, "quoted"'], "remove": ["old"]}),
        ("/runs:tag", {"remove": ["old"]}),
        ("/runs:archive", {}),
        ("/runs:prioritise", {"priority": -7}),
        ("/runs:cancel", {}),
    ],
)
def test_a_change_that_is_repeated_reaches_every_run(
    caller: Caller, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    monkeypatch.setattr("backend.runs.endpoints.MAX_CHANGED", 2)
    made = caller.post(
        "/experiments", yaml=SPEC_YAML + "grid:\n  orchestration.utils.seed: range(0, 4)\n", tags=["old"]
    )
    changed: list[str] = []
    for _ in range(3):
        reply = caller.post(path, experiment=made["id"], **body)
        changed += reply["changed"]
    assert sorted(changed) == sorted(run["id"] for run in made["runs"])
    assert not reply["more"]
    assert caller.post(path, experiment=made["id"], **body)["changed"] == []


def test_an_experiment_is_renamed_and_annotated(caller: Caller, served: tuple[FastAPI, str]) -> None:
    made = caller.post("/experiments", yaml=SPEC_YAML + SEEDS, tags=["a"])
    with Client(served[1]) as client:
        change = schemas.ExperimentPatch(name="Renamed 🦙", tags=["b", "b"], notes="why")
        changed = client.change_experiment(made["id"], change)
        assert (changed.name, changed.tags, changed.notes) == ("Renamed 🦙", ["b"], "why")
        assert client.experiment(made["id"]).name == "Renamed 🦙"
        assert {run.experiment for run in client.runs().items} == {"Renamed 🦙"}, "its runs tell its name"
        assert client.change_experiment(made["id"], schemas.ExperimentPatch(notes="")).tags == ["b"]
        assert [run.tags for run in client.runs().items] == [["a"]] * 3
        assert len(client.runs(search="renamed").items) == 3
        assert client.runs(search="two-nodes").items == []
        with pytest.raises(NotFound):
            client.change_experiment("e0", change)
        with pytest.raises(ValueError, match="give at least one of name, tags, notes"):
            schemas.ExperimentPatch()
        run = client.change_run(changed.runs[0].id, schemas.RunPatch(tags=["c"], notes="n", archived=True, priority=4))
        assert (run.tags, run.notes, run.archived, run.priority) == (["c"], "n", True, 4)
        assert client.archive_runs(schemas.Archive(ids=[run.id], archived=False)).changed == [run.id]
        assert client.tag_runs(schemas.Retag(ids=[run.id], remove=["c"])).changed == [run.id]
    for name in ("a\nb", "", "x" * 201):
        assert caller.http.patch(f"/experiments/{made['id']}", json={"name": name, "notes": "n"}).status_code == 422
    assert caller.get(f"/experiments/{made['id']}")["notes"] == ""
