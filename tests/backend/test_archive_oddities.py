"""Archives that are right in form and odd in content: refused in words, or taken without harm to anything else."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI

from backend.archive.staging import Stage
from backend.deps import Context
from nanollama.api.client import Client
from nanollama.spec.base import hash_data
from tests.backend.test_archive import (
    a_run_with_everything,
    changed,
    client,
    elsewhere,
    exported,
    pack,
    refused,
    unpack,
)
from tests.support.service import SPEC_YAML, Caller, ManualClock, metric_line

__all__ = ["client", "elsewhere"]  # fixtures

HUGE = 10**400  # larger than any float
EARLY = "0001-01-01T00:00:00+14:00"  # before the first year of UTC

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def test_numbers_and_moments_that_nothing_can_hold_are_refused(
    caller: Caller, client: Client, elsewhere: Callable[[], Any]
) -> None:
    run_id = a_run_with_everything(caller)
    files = unpack(exported(client.export_run(run_id)))
    run = f"runs/{run_id}/run.json"
    document = json.loads(files[run])
    event, evaluation = document["events"][0], document["evaluations"][0]
    cases = [
        (changed(files, run, latest={"loss": HUGE}), "latest: .*larger than any float"),
        (changed(files, run, created_at=EARLY), "created_at: .*a calendar"),
        (changed(files, run, events=[{**event, "at": EARLY}]), "events.0.at: .*a calendar"),
        (changed(files, "archive.json", created_at=EARLY), "created_at: .*a calendar"),
        (changed(files, run, evaluations=[{**evaluation, "values": {"eval/loss": "NaN"}}]), "eval/loss: .*finite"),
        (changed(files, run, attempt=2**31 - 1), "the newest is said to be 2147483647"),  # and nobody counts so far
    ]
    with elsewhere() as database:
        for wrong, said in cases:
            refused(client, database, pack(wrong), said)


@pytest.mark.parametrize("config", [
    {},
    {"data": "x", "model": 1},
    {"data": {"path": ["x"]}},
    {"data": {"gssm": {"nodes": []}}},
    {"orchestration": {"checkpoint": 5}},
    {"model": {"implementation": "of another version"}},
])  # fmt: skip
def test_configs_of_other_versions_stand_in_nobodys_way(
    caller: Caller, client: Client, elsewhere: Callable[[], Any], config: dict[str, Any]
) -> None:
    run_id = a_run_with_everything(caller)
    files = unpack(exported(client.export_run(run_id)))
    run = f"runs/{run_id}/run.json"
    whole = config if "data" in config or not config else {**json.loads(files[run])["config"], **config}
    result = {"tokens": 12_000, "seconds": 1.0}
    odd = changed(files, run, config=whole, config_hash=hash_data(whole), result=result, checkpoints=[])
    with elsewhere():
        client.import_archive(io.BytesIO(pack(odd)))
        assert caller.post("/specs/validate", yaml=SPEC_YAML)["estimate"]["based_on"] == (
            1 if "orchestration" in config else 0
        )
        for path in ("/gssms", "/datasets", "/experiments", f"/runs/{run_id}", "/runs?filter=archived:any"):
            assert caller.http.get(path).status_code == 200
        assert caller.http.post(f"/runs/{run_id}/clone", json={}).status_code in (201, 422)


def test_results_that_nothing_can_be_learnt_from_are_passed_over(
    caller: Caller, client: Client, elsewhere: Callable[[], Any]
) -> None:
    run_id = a_run_with_everything(caller)
    files = unpack(exported(client.export_run(run_id)))
    for result in (
        {"tokens": HUGE, "seconds": 1.0},
        {"tokens": 1e308, "seconds": 1e-308},
        {"tokens": [], "seconds": 1},
    ):
        with elsewhere() as database:
            client.import_archive(io.BytesIO(pack(changed(files, f"runs/{run_id}/run.json", result=result))))
            assert caller.post("/specs/validate", yaml=SPEC_YAML)["estimate"]["based_on"] == 0
        assert database.path is not None
        for end in ("", "-wal", "-shm"):
            database.path.with_name(database.path.name + end).unlink(missing_ok=True)


def test_metrics_beyond_the_cap_come_along(
    caller: Caller, client: Client, elsewhere: Callable[[], Any], served: tuple[FastAPI, str], context: Context
) -> None:
    """They are kept as columns, whatever is kept of the bytes."""
    capped = context.settings.model_copy(update={"max_stream_bytes": 1 << 15})
    served[0].state.context = Context(capped, context.database, context.notifier, context.clock)
    lease = caller.start()
    lines = [metric_line(i, i, loss=1 / (i + 1)) for i in range(2000)]
    data = b""
    for start in range(0, 2000, 250):
        piece = b"".join(lines[start : start + 250])
        assert caller.put(lease, "metrics/rank0.jsonl", piece, offset=len(data)).status_code == 200
        data += piece
    assert len(data) > 4 << 15
    archive = exported(client.export_run(lease["run_id"]))
    path = f"/runs/{lease['run_id']}/metrics?max_points=3000"
    before = caller.http.get(path).json()
    with elsewhere() as database:
        served[0].state.context = Context(capped, database, context.notifier, context.clock)
        client.import_archive(io.BytesIO(archive))
        assert caller.http.get(path).json() == before
        assert len(before["series"]["loss"]["value"]) == 2000
        assert client.import_archive(io.BytesIO(archive)).runs == []  # and the same once more is the same


def test_leases_outlast_an_import_during_which_nobody_could_renew_them(
    caller: Caller, client: Client, clock: ManualClock, elsewhere: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = exported(client.export_run(a_run_with_everything(caller)))
    copy = Stage.copy

    def slow(*args: Any, **fields: Any) -> Any:
        clock.advance(3600)
        return copy(*args, **fields)

    with elsewhere():
        lease = caller.start()
        monkeypatch.setattr(Stage, "copy", slow)
        client.import_archive(io.BytesIO(archive))
        caller.register("impatient")
        assert caller.sync("impatient", slots=1)["leases"] == []
        assert caller.sync("w", lease)["lost"] == []


def test_others_write_while_an_import_is_made_ready(
    caller: Caller, client: Client, elsewhere: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = exported(client.export_run(a_run_with_everything(caller)))
    fill, submitted = Stage.fill, []

    def meanwhile(*args: Any) -> None:
        fill(*args)
        submitted.append(caller.submit())  # would wait for the writer

    with elsewhere():
        monkeypatch.setattr(Stage, "fill", meanwhile)
        added = client.import_archive(io.BytesIO(archive))
        assert len(added.runs) == len(submitted) == 1
        assert [caller.run(run_id)["id"] for run_id in (*added.runs, *submitted)] == [*added.runs, *submitted]


def test_of_two_imports_at_once_the_later_one_passes_over_what_the_first_has_added(
    caller: Caller, client: Client, elsewhere: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = a_run_with_everything(caller)
    archive = exported(client.export_run(run_id))
    fill, others = Stage.fill, []

    def meanwhile(*args: Any) -> None:
        fill(*args)
        monkeypatch.setattr(Stage, "fill", fill)
        others.append(client.import_archive(io.BytesIO(archive)))

    with elsewhere():
        monkeypatch.setattr(Stage, "fill", meanwhile)
        added = client.import_archive(io.BytesIO(archive))
        assert (added.runs, others[0].runs) == ([], [run_id])
        assert run_id in added.skipped
