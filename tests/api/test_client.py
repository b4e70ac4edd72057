"""Every call of the client, against the real service."""

from __future__ import annotations

import math
import secrets

import pytest

from nanollama.api import schemas
from nanollama.api.client import Client
from nanollama.api.errors import Conflict, InvalidRequest, NotFound, OffsetMismatch, StaleEpoch, Unavailable
from nanollama.api.status import AttemptState, RunState
from nanollama.spec.rundir import encode_line
from tests.support.service import SPEC_YAML

WORKER = schemas.WorkerRegistration(
    name="desk", pool="desk:me", executor="local", host="desk", user="me", run_root="/runs", slots=2, version="1"
)


def report(client: Client, lease: schemas.Lease, to: AttemptState, **fields: object) -> schemas.Attempt:
    request = {"transition_id": secrets.token_hex(8), "epoch": lease.epoch, "to": to, **fields}
    return client.transition(lease.attempt_id, schemas.TransitionRequest.model_validate(request))


def leased(client: Client) -> schemas.Lease:
    client.register("w1", WORKER)
    (lease,) = client.sync("w1", schemas.SyncRequest(free_slots=1)).leases
    return lease


def test_a_run_from_submission_to_success(client: Client) -> None:
    assert client.health().status == "ok"
    experiment = client.submit(yaml=SPEC_YAML, notes="first", tags=["a", "b"], priority=3)
    (run,) = experiment.runs
    assert (run.name, run.state, run.attempt, run.tags) == ("two-nodes", RunState.QUEUED, 1, ["a", "b"])

    lease = leased(client)
    assert (lease.run_id, lease.number, lease.epoch, lease.app) == (run.id, 1, 1, "gssm.train")
    assert lease.config["optim"]["steps"] == 100
    directory = f"/runs/{run.id}/1"
    report(client, lease, AttemptState.RUNNING, attempt_dir=directory)

    lines = [
        encode_line({"seq": i, "step": i + 1, "tokens": 8 * i, "time": 1.5, "loss": value, "bound": 1.0})
        for i, value in enumerate([3.0, math.nan, math.inf, 2.0])
    ]
    put = {"epoch": 1, "offset": 0}
    info = client.put_stream(lease.attempt_id, "metrics/rank0.jsonl", data=b"".join(lines), **put)
    assert info.length == sum(map(len, lines))
    saved = {"seq": 0, "kind": "checkpoint_saved", "step": 4, "time": 2.0, "path": "checkpoints/0000000004"}
    event = encode_line(saved | {"size_bytes": 10, "digest": "ab"})
    client.put_stream(lease.attempt_id, "events.jsonl", data=event, **put)
    client.put_stream(lease.attempt_id, "stdout.log", data="grüße".encode(), **put)
    assert client.logs(run.id).text == "grüße"
    client.put_stream(lease.attempt_id, "logs/rank0.log", data=b"rank 0", **put)
    assert client.logs(run.id).text == "rank 0"
    assert client.logs(run.id, stream="stdout.log", tail_bytes=2).text == "e"  # not half an ß

    shown = client.run(run.id)
    assert (shown.state, shown.worker, shown.progress.step, shown.progress.loss) == (RunState.RUNNING, "desk", 4, 2.0)
    (checkpoint,) = client.checkpoints(run.id)
    assert checkpoint.path == f"/runs/{run.id}/checkpoints/0000000004"
    metrics = client.metrics(run.id, ["loss"])
    assert metrics.keys == ["bound", "loss"]
    assert metrics.series["loss"].step == [1, 2, 3, 4]
    assert [str(v) for v in metrics.series["loss"].value] == ["3.0", "nan", "inf", "2.0"]

    report(client, lease, AttemptState.SUCCEEDED, exit_code=0, result={"loss": 2.0})
    ended = client.run(run.id)
    assert (ended.state, ended.result, ended.worker) == (RunState.SUCCEEDED, {"loss": 2.0}, None)
    assert [attempt.state for attempt in client.attempts(run.id)] == [AttemptState.SUCCEEDED]
    kinds = [event.kind for event in client.events(run.id)]
    assert kinds == ["transition", "transition", "transition", "checkpoint_saved", "transition"]


def test_lists(client: Client) -> None:
    ids = [client.submit(yaml=SPEC_YAML, name=f"run {i}").runs[0].id for i in range(5)]
    first = client.runs(limit=2)
    second = client.runs(limit=2, cursor=first.next_cursor)
    third = client.runs(limit=2, cursor=second.next_cursor)
    pages = [first, second, third]
    assert [run.id for page in pages for run in page.items] == ids[::-1]
    assert third.next_cursor is None
    assert client.cancel(ids[0]).state is RunState.CANCELLED
    assert [run.id for run in client.runs(state=["CANCELLED"]).items] == [ids[0]]
    assert [run.id for run in client.runs(search="RUN 3").items] == [ids[3]]
    assert client.runs(state=["CANCELLED"]).counts == {RunState.QUEUED: 4, RunState.CANCELLED: 1}
    page = client.experiments(limit=3)
    assert [item.name for item in page.items] == ["run 4", "run 3", "run 2"]
    assert len(client.experiments(limit=3, cursor=page.next_cursor).items) == 2
    detail = client.experiment(page.items[0].id)
    assert detail.yaml == SPEC_YAML
    assert dict(page.items[0]).items() <= dict(detail).items()


def test_errors_are_typed(client: Client) -> None:
    with pytest.raises(InvalidRequest) as invalid:
        client.submit(yaml=SPEC_YAML.replace("emb_dim: 16", "emb_dim: 15").replace("warmup", "warm_up"))
    paths = {problem.path: problem for problem in invalid.value.problems}
    assert paths["model.emb_dim"].line == SPEC_YAML.splitlines().index("  emb_dim: 16") + 1
    assert paths["optim.warm_up"].remedy == "did you mean 'warmup'?"
    with pytest.raises(NotFound):
        client.run("r0")
    client.submit(yaml=SPEC_YAML)
    lease = leased(client)
    with pytest.raises(OffsetMismatch) as gap:
        client.put_stream(lease.attempt_id, "stdout.log", epoch=1, offset=7, data=b"x")
    assert gap.value.expected_offset == 0
    with pytest.raises(StaleEpoch):
        client.put_stream(lease.attempt_id, "stdout.log", epoch=0, offset=0, data=b"x")
    with pytest.raises(Conflict):
        report(client, lease, AttemptState.LEASED)
    with pytest.raises(InvalidRequest):
        report(client, lease, AttemptState.SUCCEEDED, exit_code=0)


def test_validation_and_templates(client: Client) -> None:
    assert client.validate(yaml=SPEC_YAML).valid
    broken = client.validate(yaml="data: [1,\nmodel: {")
    assert not broken.valid
    assert broken.problems[0].line is not None
    for template in client.templates():
        assert client.validate(yaml=template.yaml).valid, template.name


def test_workers(client: Client) -> None:
    client.submit(yaml=SPEC_YAML)
    leased(client)
    (worker,) = client.workers()
    assert (worker.id, worker.alive, worker.busy, worker.draining) == ("w1", True, 1, False)
    client.sync("w1", schemas.SyncRequest(draining=True))
    assert client.workers()[0].draining


def test_no_service() -> None:
    with Client("http://127.0.0.1:9", retries=0) as lonely, pytest.raises(Unavailable, match="n2n up"):
        lonely.health()
