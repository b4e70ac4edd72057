"""True models, their bounds, and files of sequences, on both databases."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from backend.catalogue.bounds import MAX_SECONDS
from backend.catalogue.repository import BOUNDS
from backend.deps import Context
from nanollama.api.client import Client
from nanollama.api.errors import InvalidRequest, NotFound
from nanollama.spec.evaluation import EntropySpec
from nanollama.spec.identity import gssm_hash
from tests.support.service import SPEC_YAML, Caller, ManualClock

GRAPH = {
    "nodes": [
        {"name": "z", "state_dim": 4, "alpha": 0.1},
        {"name": "x", "state_dim": 8, "alpha": 0.1, "parents": ["z"], "observed": True},
    ]
}
RESULT: dict[str, Any] = {
    "step": 50,
    "nats_per_token": 1.25,
    "stderr": 0.01,
    "num_sequences": 50,
    "seq_len": 16,
    "method": "forward filter",
    "by_position": {"positions": [1, 2, 15], "mean": [1.5, 1.25, 1.0], "stderr": [0.1, 0.1, 0.2]},
    "kernels_hash": "ab" * 32,
}


@pytest.fixture
def client(served: tuple[FastAPI, str], context: Context) -> Iterator[Client]:
    with Client(served[1], retries=0) as opened:
        yield opened


def known(caller: Caller) -> dict[str, Any]:
    (item,) = caller.get("/gssms")["items"]
    assert isinstance(item, dict)
    return item


def ask(caller: Caller, content_hash: str) -> dict[str, Any]:
    reply = caller.http.post(f"/gssms/{content_hash}/bound")
    assert reply.status_code == 202, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def lease_of_job(caller: Caller) -> dict[str, Any]:
    """The lease of a job, of whatever else waits."""
    caller.register("w")
    leases = caller.sync("w", slots=4)["leases"]
    (lease,) = (lease for lease in leases if lease["app"] == "gssm.entropy")
    assert isinstance(lease, dict)
    return lease


def end(caller: Caller, lease: dict[str, Any], result: dict[str, Any]) -> None:
    reply = caller.report(lease, "SUCCEEDED", exit_code=0, result=result)
    assert reply.status_code == 200, reply.text


# -- what is entered ---------------------------------------------------------------------------------------------------


def test_submitting_enters_the_true_model_of_the_runs_once(caller: Caller) -> None:
    assert caller.get("/gssms") == {"items": [], "next_cursor": None}
    first = caller.submit(name="chain")
    caller.submit(name="again")
    item = known(caller)
    config = caller.run(first)["config"]
    assert item["hash"] == gssm_hash(config["data"]["gssm"], config["data"]["seed"])
    assert (item["name"], item["nodes"], item["num_latents"]) == ("chain", ["z", "x"], 1)
    assert (item["joint_states"], item["vocab"], item["seq_len"], item["num_runs"]) == (4, 8, 16, 2)
    assert item["bound"]["state"] == "none"
    assert item["bound"]["entropy"] is None
    detail = caller.get(f"/gssms/{item['hash']}")
    assert detail["config"]["gssm"] == config["data"]["gssm"]
    assert [run["name"] for run in detail["runs"]] == ["again", "chain"]
    assert detail["by_position"] is None


def test_a_sweep_enters_each_of_its_models_and_the_greatest_length(caller: Caller) -> None:
    grid = "grid:\n  data.seed: [1, 2]\n  data.seq_len: [8, 32]\n"
    caller.http.post("/experiments", json={"yaml": SPEC_YAML + grid}).raise_for_status()
    items = caller.get("/gssms")["items"]
    assert {(item["seed"], item["seq_len"], item["num_runs"]) for item in items} == {(1, 32, 2), (2, 32, 2)}


def test_a_refused_submission_enters_nothing(caller: Caller) -> None:
    caller.http.post("/experiments", json={"yaml": SPEC_YAML + "grid:\n  model.emb_dim: [16, 15]\n"})
    assert caller.get("/gssms")["items"] == []


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"data": {"gssm": GRAPH, "seq_len": 16, "batch_size": 8}}, "4 states, 8 symbols"),
        (
            {"gssm": GRAPH, "seq_len": 16, "sets": [{"name": "train", "path": "/d/t.h5", "n_data": 9}]},
            "4 states, 8 symbols",
        ),
        ({"gssm": GRAPH, "seq_len": 16, "alpha_X": {"min": 0.1, "max": 1.0, "num": 3}}, "4 states, 8 symbols"),
        ({"data": {"gssm": GRAPH, "seq_len": 16, "batch_size": 8}, "model": {"emb_dim": 16, "nb_layers": 1},
          "optim": {"steps": 5, "warmup": 1}, "orchestration": {"name": "mine"}}, "mine"),
    ],
)  # fmt: skip
def test_configs_of_every_kind_enter_the_same_model(caller: Caller, config: dict[str, Any], name: str) -> None:
    added = caller.post("/gssms", config=config)
    assert (added["name"], added["seq_len"], added["seed"]) == (name, 16, 0)
    caller.submit()
    assert known(caller)["hash"] == added["hash"]
    assert known(caller)["name"] == name  # the first to describe it


def test_a_config_without_a_graph_is_refused_at_its_place(client: Client) -> None:
    with pytest.raises(InvalidRequest) as refused:
        client.add_gssm(yaml="data:\n  path: /data/train.h5\n  batch_size: 8\n")
    (problem,) = refused.value.problems
    assert (problem.path, problem.remedy) == ("data.path", "give the config that generated the file")
    with pytest.raises(InvalidRequest, match="the config has 2 problems") as refused:
        client.add_gssm(yaml=SPEC_YAML.replace("alpha: 0.1", "alpha: -1"))
    assert refused.value.problems[0].line == 7


def test_lists_come_in_pages_newest_first(caller: Caller, clock: ManualClock) -> None:
    for seed in range(5):
        if seed % 2:
            clock.advance(1)
        caller.post("/gssms", config={"data": {"gssm": GRAPH, "seq_len": 16, "batch_size": 1, "seed": seed}})
    seeds: list[int] = []
    cursor: dict[str, str] = {}
    while True:
        page = caller.get("/gssms", limit=2, **cursor)
        seeds += [item["seed"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert sorted(seeds) == list(range(5))
    assert (set(seeds[:2]), set(seeds[2:4]), seeds[4]) == ({3, 4}, {1, 2}, 0)
    assert caller.http.get("/gssms", params={"cursor": "nowhere"}).status_code == 422


def test_pictures(caller: Caller, client: Client) -> None:
    caller.submit()
    content_hash = known(caller)["hash"]
    reply = caller.http.get(f"/gssms/{content_hash}/graph.svg")
    assert reply.headers["content-type"] == "image/svg+xml"
    assert reply.text.startswith("<svg")
    assert client.gssm_graph(content_hash) == reply.text
    broken_elsewhere = SPEC_YAML.replace("emb_dim: 16", "emb_dim: nonsense")
    assert client.draft_graph(yaml=broken_elsewhere) == reply.text
    with pytest.raises(InvalidRequest) as refused:
        client.draft_graph(yaml=SPEC_YAML.replace("parents: [z]", "parents: [y]"))
    assert (refused.value.problems[0].path, refused.value.problems[0].line) == ("data.gssm.nodes.1.parents.0", 8)
    with pytest.raises(InvalidRequest, match="no graph"):
        client.draft_graph(config={"model": {}})


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_a_bound_is_found_by_a_job_and_kept_with_its_end(caller: Caller) -> None:
    caller.submit()
    content_hash = known(caller)["hash"]
    asked = ask(caller, content_hash)["bound"]
    assert asked["state"] == "queued"
    assert ask(caller, content_hash)["bound"]["run_id"] == asked["run_id"]  # asking again starts nothing
    lease = lease_of_job(caller)
    spec = EntropySpec.model_validate(lease["config"])
    assert (spec.data.seq_len, spec.num_sequences, spec.max_seconds) == (16, 10_000, MAX_SECONDS)  # type: ignore[union-attr]
    assert known(caller)["bound"]["state"] == "running"
    end(caller, lease, RESULT)
    bound = known(caller)["bound"]
    assert bound == {
        "state": "done", "run_id": asked["run_id"], "entropy": 1.25, "entropy_stderr": 0.01, "num_sequences": 50,
        "seq_len": 16, "method": "forward filter", "reason": None,
        "lower": None, "lower_stderr": None, "upper": None, "upper_stderr": None,
    }  # fmt: skip
    curve = caller.get(f"/gssms/{content_hash}")["by_position"]
    assert curve == {"positions": [1, 2, 15], "entropy": [1.5, 1.25, 1.0], "entropy_stderr": [0.1, 0.1, 0.2]}
    assert ask(caller, content_hash)["bound"] == bound
    assert "gssm.entropy" not in {lease["app"] for lease in caller.sync("w", slots=4)["leases"]}


def test_what_is_bounded_from_both_sides_says_so(caller: Caller) -> None:
    nodes = [GRAPH["nodes"][0], GRAPH["nodes"][1] | {"mode": "context"}]
    config = {"data": {"gssm": {"nodes": nodes}, "seq_len": 16, "batch_size": 1}}
    content_hash = caller.post("/gssms", config=config)["hash"]
    ask(caller, content_hash)
    lease = lease_of_job(caller)
    assert lease["config"]["num_sequences"] == 100
    sides = {"lower": 1.2, "lower_stderr": 0.01, "upper": 1.3, "upper_stderr": 0.02}
    end(caller, lease, RESULT | sides | {"by_position": None})
    bound = known(caller)["bound"]
    assert (bound["state"], bound["lower"], bound["upper"], bound["entropy"]) == ("inexact", 1.2, 1.3, 1.25)
    assert "both sides" in bound["reason"]
    assert caller.get(f"/gssms/{content_hash}")["by_position"] is None


def test_a_job_that_failed_is_retried_when_it_is_asked_for(caller: Caller) -> None:
    caller.submit()
    content_hash = known(caller)["hash"]
    run_id = ask(caller, content_hash)["bound"]["run_id"]
    lease = lease_of_job(caller)
    caller.end(lease, "FAILED", reason="out of reach", exit_code=2)
    bound = known(caller)["bound"]
    assert (bound["state"], bound["reason"], bound["entropy"]) == ("failed", "out of reach", None)
    asked = ask(caller, content_hash)["bound"]
    assert (asked["state"], asked["run_id"]) == ("queued", run_id)
    end(caller, lease_of_job(caller), RESULT)
    assert known(caller)["bound"]["state"] == "done"


def test_a_result_that_is_none_is_a_failure_and_can_be_tried_again(caller: Caller) -> None:
    caller.submit()
    content_hash = known(caller)["hash"]
    first = ask(caller, content_hash)["bound"]["run_id"]
    end(caller, lease_of_job(caller), RESULT | {"stderr": "small"})
    bound = known(caller)["bound"]
    assert bound["state"] == "failed"
    assert "none that can be read" in bound["reason"]
    assert ask(caller, content_hash)["bound"]["run_id"] != first


def test_longer_sequences_want_another_job_and_the_known_figures_stay_meanwhile(caller: Caller) -> None:
    caller.submit()
    content_hash = known(caller)["hash"]
    ask(caller, content_hash)
    end(caller, lease_of_job(caller), RESULT)
    caller.submit(yaml=SPEC_YAML.replace("seq_len: 16", "seq_len: 64"))
    item = known(caller)
    assert (item["seq_len"], item["bound"]["seq_len"], item["bound"]["state"]) == (64, 16, "done")
    asked = ask(caller, content_hash)["bound"]
    assert (asked["state"], asked["entropy"], asked["seq_len"]) == ("queued", 1.25, 16)
    end(caller, lease_of_job(caller), RESULT | {"nats_per_token": 1.1, "seq_len": 64})
    assert known(caller)["bound"]["entropy"] == 1.1


def test_many_who_ask_at_once_get_one_job(served: tuple[FastAPI, str], caller: Caller) -> None:
    caller.submit()
    content_hash = known(caller)["hash"]
    replies: list[httpx.Response] = []
    start = threading.Barrier(6)

    def one() -> None:
        with httpx.Client(base_url=f"{served[1]}/api/v1", timeout=60, trust_env=False) as http:
            start.wait()
            replies.append(http.post(f"/gssms/{content_hash}/bound"))

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [reply.status_code for reply in replies] == [202] * 6
    assert len({reply.json()["bound"]["run_id"] for reply in replies}) == 1
    assert len(caller.get("/runs", filter="app:gssm.entropy")["items"]) == 1


def test_lists_leave_jobs_out_unless_they_are_asked_for(caller: Caller) -> None:
    run_id = caller.submit()
    job = ask(caller, known(caller)["hash"])["bound"]["run_id"]
    assert [run["id"] for run in caller.get("/runs")["items"]] == [run_id]
    assert caller.get("/runs")["counts"] == {"QUEUED": 1}
    assert [run["id"] for run in caller.get("/runs", filter="app:gssm.entropy")["items"]] == [job]
    assert {run["id"] for run in caller.get("/runs", filter='app!=""')["items"]} == {run_id, job}
    assert [item["id"] for item in caller.get("/experiments")["items"]] == [caller.run(run_id)["experiment_id"]]
    assert caller.run(job)["experiment_id"] == BOUNDS
    bounds = caller.get(f"/experiments/{BOUNDS}")
    assert (bounds["num_runs"], [run["id"] for run in bounds["runs"]]) == (1, [job])
    assert known(caller)["num_runs"] == 1


def test_what_is_not_there(client: Client) -> None:
    for call in (client.gssm, client.gssm_graph, client.compute_bound):
        with pytest.raises(NotFound, match="there is no GSSM 'ab12'"):
            call("ab12")


# -- files of sequences ------------------------------------------------------------------------------------------------

FILE_YAML = (
    SPEC_YAML[: SPEC_YAML.index("  seq_len")]
    + "  path: /data/a.h5\n  batch_size: 8\n"
    + SPEC_YAML[SPEC_YAML.index("model:") :]
)


def report(path: str, **fields: Any) -> dict[str, Any]:
    return {"path": path, "num_sequences": 100, "seq_len": 16, "vocab": 8, "size_bytes": 1234} | fields


def test_files_that_runs_read_are_listed_before_anybody_has_seen_them(caller: Caller) -> None:
    caller.submit(yaml=FILE_YAML)
    caller.submit(yaml=FILE_YAML)
    (item,) = caller.get("/datasets")
    assert (item["path"], item["num_runs"], item["pool"], item["present"]) == ("/data/a.h5", 2, None, None)
    assert item["num_sequences"] is None


def test_what_workers_find_takes_the_place_of_what_they_found_before(caller: Caller, client: Client) -> None:
    caller.submit(yaml=FILE_YAML)
    caller.register("w", pool="here")
    caller.register("v", pool="there")
    found = report("/data/a.h5", entropy=1.5, entropy_stderr=0.1, gssm_hash="cd" * 32, split="train")
    answer = caller.http.put("/workers/w/datasets", json={"datasets": [found, report("/data/b.h5")]})
    assert answer.status_code == 200, answer.text
    caller.http.put("/workers/v/datasets", json={"datasets": [report("/data/a.h5", num_sequences=7)]})
    items = client.datasets()
    assert [(i.path, i.pool, i.num_runs, i.num_sequences) for i in items] == [
        ("/data/a.h5", "here", 1, 100),
        ("/data/a.h5", "there", 1, 7),
        ("/data/b.h5", "here", 0, 100),
    ]
    assert (items[0].entropy, items[0].gssm_hash, items[0].split, items[0].present) == (1.5, "cd" * 32, "train", True)
    caller.http.put("/workers/w/datasets", json={"datasets": []})
    assert [(i.path, i.pool, i.present) for i in client.datasets()] == [  # what no run reads is forgotten
        ("/data/a.h5", "here", False),
        ("/data/a.h5", "there", True),
    ]
    assert caller.http.put("/workers/nobody/datasets", json={"datasets": []}).status_code == 404


def test_the_graphs_of_files_are_entered_if_they_are_what_their_hash_says(caller: Caller) -> None:
    caller.submit()
    item = known(caller)
    graph = caller.get(f"/gssms/{item['hash']}")["config"]["gssm"]
    other = {"graph": graph, "seed": 5, "gssm_hash": gssm_hash(graph, 5)}
    wrong = [other | {"seed": 6}, other | {"graph": {"nodes": []}}, other | {"gssm_hash": "ab" * 32}]
    caller.register("w")
    files = [report(f"/d/{i}.h5", **given) for i, given in enumerate([*wrong, other])]
    caller.http.put("/workers/w/datasets", json={"datasets": files[:3]}).raise_for_status()
    assert len(caller.get("/gssms")["items"]) == 1
    caller.http.put("/workers/w/datasets", json={"datasets": files}).raise_for_status()
    added = {one["seed"]: one for one in caller.get("/gssms")["items"]}
    assert added.keys() == {0, 5}
    assert (added[5]["name"], added[5]["num_runs"]) == ("4 states, 8 symbols", 0)


def test_graphs_of_any_size_are_listed(client: Client) -> None:
    names = [f"z{i}" for i in range(40)]
    nodes: list[dict[str, Any]] = [{"name": name, "state_dim": 1000, "alpha": 0.1} for name in names]
    nodes.append({"name": "x", "state_dim": 8, "alpha": 0.1, "parents": names, "observed": True})
    added = client.add_gssm(config={"data": {"gssm": {"nodes": nodes}, "seq_len": 16, "batch_size": 1}})
    assert added.joint_states == 1000**40
    assert client.gssms().items == [added]
    assert client.compute_bound(added.hash).bound.state == "queued"


def test_no_answer_lists_more_problems_than_somebody_would_read(caller: Caller) -> None:
    config = {"data": {"gssm": {"nodes": [{"name": f"z{i}", "state_dim": 0} for i in range(1000)]}}}
    for path in ("/gssms", "/specs/graph", "/experiments"):
        reply = caller.http.post(path, json={"config": config})
        assert reply.status_code == 422
        problems = reply.json()["problems"]
        assert len(problems) == 201
        more = int(problems[-1]["message"].removesuffix(" more problems are not listed"))
        assert more > 700
