"""Sweeps: what a submission with a grid makes, and which runs need not run again."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import event

from backend.database import Database
from backend.experiments.service import ExperimentService
from backend.specs.service import read_sweep
from nanollama.api import schemas
from nanollama.api.status import RunState
from nanollama.spec.identity import training_hash
from nanollama.spec.yaml_text import load_yaml
from tests.support.service import SPEC_YAML, Caller, ManualClock

GRID = """\
grid:
  model.emb_dim: [16, 32]
  orchestration.utils.seed: [1, 2, 3]
"""
SWEEP_YAML = SPEC_YAML + GRID
NAMES = [f"emb_dim={dim},seed={seed}" for dim in (16, 32) for seed in (1, 2, 3)]


def submit(caller: Caller, **fields: Any) -> dict[str, Any]:
    reply = caller.http.post("/experiments", json={"yaml": SWEEP_YAML} | fields)
    assert reply.status_code == 201, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def work(caller: Caller, slots: int, to: str = "SUCCEEDED") -> list[str]:
    """Lease runs and bring them to their end; their names, in the order in which they were leased."""
    caller.register("w")
    leases = caller.sync("w", slots=slots)["leases"]
    for lease in leases:
        caller.end(lease, to)
    return [lease["run_name"] for lease in leases]


def test_a_grid_makes_a_run_for_each_combination_in_order(caller: Caller) -> None:
    made = submit(caller, name="dims", tags=["a"], notes="why", priority=3)
    assert (made["name"], made["num_runs"], made["priority"], made["notes"]) == ("dims", 6, 3, "why")
    assert made["counts"] == {"QUEUED": 6}
    assert [run["name"] for run in made["runs"]] == NAMES
    assert made["runs"][4]["params"] == {"model.emb_dim": 32, "orchestration.utils.seed": 2}
    assert {run["priority"] for run in made["runs"]} == {3}
    config = caller.run(made["runs"][4]["id"])["config"]
    assert (config["model"]["emb_dim"], config["orchestration"]["utils"]["seed"]) == (32, 2)
    assert len({run["config_hash"] for run in made["runs"]}) == 6
    assert work(caller, 6) == NAMES
    assert caller.get(f"/experiments/{made['id']}")["counts"] == {"SUCCEEDED": 6}
    assert caller.get(f"/experiments/{made['id']}")["yaml"] == SWEEP_YAML
    events = caller.get(f"/runs/{made['runs'][5]['id']}/events")
    assert [event["to_state"] for event in events] == ["QUEUED", "LEASED", "SUCCEEDED"]


def test_a_sweep_is_named_by_its_config_and_found_by_its_runs_names(caller: Caller) -> None:
    assert submit(caller)["name"] == "two-nodes"
    assert len(caller.get("/runs", search="EMB_DIM=32")["items"]) == 3
    assert len(caller.get("/runs", search="two-nodes")["items"]) == 6


def test_the_answer_shows_the_first_runs_and_pages_have_all(caller: Caller) -> None:
    grid = "grid:\n  orchestration.utils.seed: range(0, 50)\n"
    made = submit(caller, yaml=SPEC_YAML + grid)
    other = caller.submit()
    assert (made["num_runs"], made["counts"]) == (50, {"QUEUED": 50})
    assert [run["name"] for run in made["runs"]] == [f"seed={i}" for i in range(schemas.SHOWN_RUNS)]
    names, cursor = [], None
    while True:
        page = caller.get("/runs", experiment=made["id"], limit=20, **({} if cursor is None else {"cursor": cursor}))
        assert page["counts"] == {"QUEUED": 50}
        names += [run["name"] for run in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert names == [f"seed={i}" for i in reversed(range(50))]
    assert [run["id"] for run in caller.get("/runs", search=other)["items"]] == [other]
    listed = {item["id"]: len(item["runs"]) for item in caller.get("/experiments")["items"]}
    assert listed[made["id"]] == schemas.SHOWN_RUNS


def test_a_repeated_key_makes_a_sweep_once(caller: Caller) -> None:
    replies = [
        caller.http.post("/experiments", json={"yaml": SWEEP_YAML}, headers={"Idempotency-Key": "k"}) for _ in range(2)
    ]
    assert replies[0].json() == replies[1].json()
    assert caller.get("/runs")["counts"] == {"QUEUED": 6}


def test_an_invalid_run_refuses_the_whole_sweep(caller: Caller) -> None:
    text = SPEC_YAML + "grid:\n  model.emb_dim: [16, 15, 17]\n"
    reply = caller.http.post("/experiments", json={"yaml": text})
    assert reply.status_code == 422
    found = {problem["path"]: problem for problem in reply.json()["problems"]}
    assert "emb_dim=15" in found["grid.model.emb_dim.1"]["message"]
    assert found["grid.model.emb_dim.2"]["line"] == len(text.splitlines())
    assert caller.get("/runs")["items"] == []
    assert caller.get("/experiments")["items"] == []


def test_a_sweep_that_fails_half_way_leaves_nothing(database: Database, clock: ManualClock) -> None:
    given = schemas.ExperimentCreate(yaml=SWEEP_YAML)

    def fail(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith("INSERT INTO events"):
            raise OSError("the disk is full")

    event.listen(database.engine, "before_cursor_execute", fail)
    with pytest.raises(OSError, match="disk is full"), database.write() as session:
        ExperimentService(session, clock()).submit(given, read_sweep(given), "key")
    event.remove(database.engine, "before_cursor_execute", fail)
    with database.write() as session:
        experiments = ExperimentService(session, clock())
        assert experiments.page(limit=9, cursor=None).items == []
        assert experiments.submit(given, read_sweep(given), "key").counts == {RunState.QUEUED: 6}


def test_a_preview_tells_how_many_runs_and_the_first_and_last(caller: Caller) -> None:
    found = caller.http.post("/specs/validate", json={"yaml": SWEEP_YAML}).json()
    assert (found["valid"], found["num_runs"]) == (True, 6)
    assert (found["first_run"], found["last_run"]) == (NAMES[0], NAMES[-1])
    assert found["varied"] == ["model.emb_dim", "orchestration.utils.seed"]
    lone = caller.http.post("/specs/validate", json={"yaml": SPEC_YAML}).json()
    assert (lone["num_runs"], lone["first_run"], lone["notes"], lone["varied"]) == (1, "two-nodes", [], [])
    large = SPEC_YAML + "grid:\n  orchestration.utils.seed: range(0, 10001)\n"
    refused = caller.http.post("/specs/validate", json={"yaml": large}).json()
    assert "the limit is 10,000" in refused["problems"][0]["message"]


def test_older_shapes_are_understood_with_notes_and_their_own_lines(caller: Caller) -> None:
    nested = "".join(f"  {line}\n" for line in SPEC_YAML.splitlines())
    text = f"launcher:\n  name: old\n  grid:\n    model.emb_dim: [16, 32]\nrun_config:\n{nested}"
    found = caller.http.post("/specs/validate", json={"yaml": text}).json()
    assert found["valid"], found["problems"]
    assert found["num_runs"] == 2
    broken = text.replace("steps: 100", "steps: many")
    (problem,) = caller.http.post("/specs/validate", json={"yaml": broken}).json()["problems"]
    assert problem["path"] == "run_config.optim.steps"
    assert problem["line"] == next(i for i, line in enumerate(broken.splitlines(), 1) if "many" in line)
    idle = SPEC_YAML.replace("  batch_size: 8", "  batch_size: 8\n  asynchronous: true")
    made = submit(caller, yaml=idle)
    assert [note["path"] for note in made["spec_notes"]] == ["data.asynchronous"]


def test_grid_ids_are_filled_in_and_other_variables_refused(caller: Caller) -> None:
    config = load_yaml(SPEC_YAML) | {"grid": {"grid_id": "range(0, 3)"}}
    config["orchestration"]["log_dir"] = "runs/$GRIDID"
    made = submit(caller, yaml=None, config=config)
    assert [caller.run(run["id"])["config"]["orchestration"]["log_dir"] for run in made["runs"]] == [
        "runs/0",
        "runs/1",
        "runs/2",
    ]
    config["grid"] = {"data.batch_size": ["$SECRET"]}
    (problem,) = caller.http.post("/specs/validate", json={"config": config}).json()["problems"]
    assert (problem["path"], "$SECRET" in problem["message"]) == ("grid.data.batch_size.0", True)


# -- what has been learnt before ---------------------------------------------------------------------------------------


def test_what_a_run_learns_is_told_apart_from_where_and_how_it_runs() -> None:
    def identity(**changes: str) -> str:
        text = SPEC_YAML
        for old, new in changes.items():
            text = text.replace(old, new)
        return read_sweep(schemas.SpecInput(yaml=text)).runs[0].training_hash

    assert identity() == identity(**{"two-nodes": "another name"})
    assert identity() != identity(**{"warmup: 10": "warmup: 11"})
    assert identity() != identity(**{"two-nodes": "two-nodes\n  utils: {seed: 5}"})


def test_the_identity_is_that_of_checkpoints() -> None:
    from nanollama.spec.base import parse  # noqa: PLC0415 - only here
    from nanollama.spec.experiment import ExperimentSpec  # noqa: PLC0415

    (run,) = read_sweep(schemas.SpecInput(yaml=SPEC_YAML)).runs
    assert run.training_hash == training_hash(parse(ExperimentSpec, run.config))


def test_runs_are_not_reused_unless_asked_for(caller: Caller) -> None:
    submit(caller)
    work(caller, 6)
    assert submit(caller)["counts"] == {"QUEUED": 6}


def test_with_ask_earlier_results_are_offered_and_nothing_is_created(caller: Caller) -> None:
    first = submit(caller, reuse="ask")
    ids = {run["name"]: run["id"] for run in first["runs"]}
    done = work(caller, 2)
    headers = {"Idempotency-Key": "k"}
    reply = caller.http.post("/experiments", json={"yaml": SWEEP_YAML, "reuse": "ask"}, headers=headers)
    assert (reply.status_code, reply.json()["code"]) == (409, "already_succeeded")
    found = {problem["path"]: problem["message"] for problem in reply.json()["problems"]}
    assert found == {name: f"run {ids[name]} has learnt this already" for name in done}
    assert len(caller.get("/experiments")["items"]) == 1
    again = caller.http.post("/experiments", json={"yaml": SWEEP_YAML, "reuse": "never"}, headers=headers)
    assert again.status_code == 201  # the refusal has not used up the key


def test_with_always_earlier_runs_take_the_place_of_new_ones(caller: Caller) -> None:
    first = submit(caller)
    ids = {run["name"]: run["id"] for run in first["runs"]}
    done = work(caller, 2)
    work(caller, 1, to="FAILED")  # what failed is no result
    second = submit(caller, reuse="always")
    assert (second["num_runs"], second["num_reused"]) == (6, 2)
    assert second["counts"] == {"QUEUED": 4, "SUCCEEDED": 2}
    assert [run["name"] for run in second["runs"]] == NAMES
    reused = [run["id"] for run in second["runs"] if run["experiment_id"] == first["id"]]
    assert reused == [ids[name] for name in done]
    listed = {run["id"] for run in caller.get("/runs", experiment=second["id"])["items"]}
    assert listed == {run["id"] for run in second["runs"]}
    lone = caller.http.post("/experiments", json={"config": caller.run(reused[0])["config"], "reuse": "always"}).json()
    assert [run["id"] for run in lone["runs"]] == reused[:1]


def test_a_list_of_experiments_takes_as_many_queries_for_any_number(caller: Caller, database: Database) -> None:
    caller.register("w")
    submit(caller)
    work(caller, 2)
    reusing = submit(caller, reuse="always")
    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))

    def asked(limit: int) -> int:
        statements.clear()
        assert len(caller.get("/experiments", limit=limit)["items"]) == limit
        return len([one for one in statements if one.lstrip().startswith("SELECT")])

    two = asked(2)
    for _ in range(10):
        submit(caller, reuse="always")
    assert asked(12) == two
    shown = caller.get(f"/experiments/{reusing['id']}")
    assert (shown["num_reused"], shown["counts"]) == (2, {"SUCCEEDED": 2, "QUEUED": 4})
    assert [run["name"] for run in shown["runs"]] == NAMES
    assert (
        shown["runs"] == next(one for one in caller.get("/experiments")["items"] if one["id"] == reusing["id"])["runs"]
    )


@pytest.mark.slow
def test_ten_thousand_runs_are_one_submission(caller: Caller) -> None:
    grid = "grid:\n  orchestration.utils.seed: range(0, 2500)\n  optim.lr: [1e-4, 3e-4, 1e-3, 3e-3]\n"
    made = submit(caller, yaml=SPEC_YAML + grid)
    assert made["counts"] == {"QUEUED": 10_000}
    last = caller.get("/runs", experiment=made["id"], limit=1)["items"][0]
    assert last["name"] == "seed=2499,lr=0.003"
