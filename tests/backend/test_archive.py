"""Export, and import into another service: everything comes out as it went in, and nothing else comes in."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import func, select
from starlette.exceptions import HTTPException

from backend.app import create_app
from backend.database import Database
from backend.deps import Context
from backend.middleware import BodyLimit
from backend.migrate import migrate
from backend.settings import Settings
from backend.tables import Base
from nanollama.api.client import Client
from nanollama.api.errors import Conflict, InvalidRequest, NotFound, TooLarge, Unauthorized, Unavailable
from tests.support.service import SPEC_YAML, Caller, checkpoint_line, metric_line, serve, sqlite_url
from tests.support.whole import answers, fill

Files = dict[str, bytes]


@pytest.fixture
def client(served: tuple[FastAPI, str], context: Context) -> Iterator[Client]:
    with Client(served[1], timeout=60) as opened:
        yield opened


@pytest.fixture
def elsewhere(served: tuple[FastAPI, str], context: Context, tmp_path: Any) -> Callable[[], Any]:
    """Makes the served application answer from an empty service, while the context lasts."""

    @contextmanager
    def switch() -> Iterator[Database]:
        database = Database(f"sqlite:///{tmp_path / 'elsewhere.db'}")
        migrate(database)
        before = served[0].state.context
        settings = context.settings
        served[0].state.context = Context(settings, database, context.notifier, context.clock)
        try:
            yield database
        finally:
            served[0].state.context = before
            database.dispose()

    return switch


def exported(pieces: Iterator[bytes]) -> bytes:
    return b"".join(pieces)


def unpack(archive: bytes) -> Files:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]


def pack(files: Files, *, sign: bool = True) -> bytes:
    """An archive of these files, with a manifest that is right for them."""
    if sign:
        described = [
            {"name": name, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in files.items()
            if name != "manifest.json"
        ]
        files = {name: data for name, data in files.items() if name != "manifest.json"}
        files["manifest.json"] = json.dumps({"files": described}).encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return gzip.compress(gzip.decompress(out.getvalue()).rstrip(b"\0") + _end(files))


def _end(files: Files) -> bytes:
    """What `rstrip` took away: the padding of the last file, and two blocks."""
    last = list(files.values())[-1]
    return bytes(-len(last.rstrip(b"\0")) % 512 + 1024)


def stored(database: Database) -> dict[str, int]:
    """Number of rows by table."""
    with database.read() as session:
        return {
            name: session.scalar(select(func.count()).select_from(table)) or 0
            for name, table in Base.metadata.tables.items()
            if name != "params"
        }


def comparable(found: dict[str, Any]) -> dict[str, Any]:
    """Answers without what belongs to one service: its workers, its pauses, the numbers of its events."""
    text = json.loads(json.dumps(found))
    for path, answer in text.items():
        if path.endswith("/events"):
            answer[:] = [{**event, "id": 0} for event in answer if event["kind"] != "imported"]
        if path.endswith("/attempts"):
            answer[:] = [{**attempt, "worker_id": None} for attempt in answer]
    return {path: answer for path, answer in text.items() if path not in ("/workers", "/queue")}


def a_run_with_everything(caller: Caller) -> str:
    """A run of two attempts that has succeeded; its id."""
    run_id = caller.submit(tags=["a", "🦙"], notes="why", priority=3, resources={"cpus": 2}, retries=1)
    caller.register("w", cpus=8)
    first = caller.claim()
    caller.report(first, "RUNNING", attempt_dir=f"/root/{run_id}/1", provenance={"host": "h"})
    caller.put(first, "metrics/rank0.jsonl", b"".join(metric_line(i, i, loss=float(i)) for i in range(1, 900)))
    caller.put(first, "metrics/rank1.jsonl", metric_line(0, 1, loss=float("nan")))
    caller.put(first, "stdout.log", os.urandom(200_000))
    evaluated = {
        "seq": 2,
        "kind": "evaluated",
        "step": 7,
        "time": 1007.5,
        "values": {"eval/loss": 1.5, "probe/a/Z": 0.5},
    }
    evaluated["by_position"] = {"positions": [1.0, 2.0], "loss": [1.0, None]}
    line = json.dumps(evaluated).encode() + b"\n"
    caller.put(first, "events.jsonl", checkpoint_line(0, 7) + checkpoint_line(1, 9) + line)
    caller.end(first, "FAILED", exit_code=1, reason="boom")
    second = caller.claim()
    caller.put(second, "metrics/rank0.jsonl", b"".join(metric_line(i, i + 500, loss=0.25) for i in range(900)))
    caller.put(second, "logs/rank0.log", "naïve\n".encode())
    caller.end(second, "SUCCEEDED")
    caller.http.patch(f"/runs/{run_id}", json={"tags": ["b"], "archived": True})
    return run_id


def everything(caller: Caller, run_id: str) -> dict[str, Any]:
    """All answers about a run."""
    found: dict[str, Any] = {"run": caller.run(run_id)}
    found["experiment"] = caller.get(f"/experiments/{found['run']['experiment_id']}")
    for end in ("attempts", "events", "checkpoints", "evaluations", "metrics", "logs"):
        found[f"/{end}"] = caller.get(f"/runs/{run_id}/{end}")
    found["log of the first"] = caller.http.get(f"/runs/{run_id}/logs?attempt=1&stream=stdout.log").text
    for key in ("loss",):
        body = {"runs": [run_id], "keys": [key], "max_points": 100}
        found[f"curve {key}"] = caller.http.post("/metrics/query", json=body).json()
    for query in (
        "archived:true tag:b",
        "archived:any optim.steps:100",
        "archived:any max.loss>800",
        "archived:any 🦙",
    ):
        found[query] = caller.get("/runs", filter=query)
    for attempt in found["/attempts"]:
        path = f"/attempts/{attempt['id']}/streams"
        for stream in caller.get(path):
            data = caller.http.get(f"{path}/{stream['name']}", params={"limit": 1 << 20}).content
            found[f"{attempt['number']} {stream['name']}"] = (stream["length"], hashlib.sha256(data).hexdigest())
    return found


# -- there and back ----------------------------------------------------------------------------------------------------


def test_a_run_comes_out_of_another_service_as_it_went_in(
    caller: Caller, client: Client, elsewhere: Callable[[], Any]
) -> None:
    run_id = a_run_with_everything(caller)
    before = everything(caller, run_id)
    assert len([key for key in before if " metrics/" in key or " events" in key]) == 4
    archive = exported(client.export_run(run_id))
    reply = caller.http.get(f"/runs/{run_id}/export")
    assert reply.headers["Content-Type"] == "application/gzip"
    assert reply.headers["Content-Disposition"] == f'attachment; filename="{run_id}.tar.gz"'
    assert int(reply.headers["Content-Length"]) == len(reply.content)
    with elsewhere():
        answer = client.import_archive(io.BytesIO(archive))
        assert (answer.runs, answer.experiments) == ([run_id], [before["run"]["experiment_id"]])
        assert answer.skipped == []
        after = everything(caller, run_id)
        assert comparable(after) == comparable(before)
        (said,) = [event for event in after["/events"] if event["kind"] == "imported"]
        assert "from an archive of 2026-01-01 00:00 UTC" in said["message"]
        again = exported(client.export_run(run_id))
        old, new = unpack(archive), unpack(again)
        assert {name for name in old if old[name] != new[name]} == {f"runs/{run_id}/run.json", "manifest.json"}
        assert client.clone(run_id).num_runs == 1  # it can be cloned like any other


def test_an_experiment_with_everything_comes_out_as_it_went_in(
    caller: Caller, client: Client, elsewhere: Callable[[], Any]
) -> None:
    fill(caller)
    before = comparable(answers(caller))
    experiments = [experiment["id"] for experiment in before["/experiments"]["items"]]
    archives = {one: exported(client.export_experiment(one)) for one in reversed(experiments)}
    with elsewhere() as database:
        for archive in archives.values():
            client.import_archive(io.BytesIO(archive))
        after = comparable(answers(caller))
        rows = stored(database)
        for one, archive in archives.items():
            repeated = client.import_archive(io.BytesIO(archive))
            assert (repeated.runs, repeated.experiments) == ([], [])
            assert one in repeated.skipped
        assert stored(database) == rows
    went_on = {run["id"] for run in before["/runs?limit=500"]["items"] if run["state"] in ("RUNNING", "QUEUED")}
    assert len(went_on) == 41
    for path, answer in before.items():
        if path.startswith("/runs/") and not any(run_id in path for run_id in went_on):
            assert after[path] == answer, path
    states = {run["id"]: (run["state"], run["reason"]) for run in after["/runs?limit=500"]["items"]}
    assert {states[run_id][0] for run_id in went_on} == {"CANCELLED"}
    assert {states[run_id][1] for run_id in went_on} == {
        f"it was {state} when it was exported" for state in ("RUNNING", "QUEUED")
    }


def test_runs_of_one_experiment_come_one_by_one_and_are_found_by_their_own_configs(
    caller: Caller, client: Client, elsewhere: Callable[[], Any]
) -> None:
    made = caller.post("/experiments", yaml=SPEC_YAML + "grid:\n  optim.lr: [0.5, 0.25]\n")
    ids = {run["params"]["optim.lr"]: run["id"] for run in made["runs"]}
    one, two = (exported(client.export_run(ids[lr])) for lr in (0.5, 0.25))
    with elsewhere():
        client.import_archive(io.BytesIO(one))
        answer = client.import_archive(io.BytesIO(two))
        assert (answer.runs, answer.experiments, answer.skipped) == ([ids[0.25]], [], [made["id"]])
        assert [run.id for run in client.runs(filter="optim.lr:0.5").items] == [ids[0.5]]
        assert [run.id for run in client.runs(filter="optim.lr<0.3").items] == [ids[0.25]]
        assert len(client.runs(filter="optim.steps:100").items) == 2
        assert client.experiment(made["id"]).num_runs == 2


def test_reused_runs_come_along(caller: Caller, client: Client, elsewhere: Callable[[], Any]) -> None:
    lease = caller.start()
    caller.end(lease, "SUCCEEDED")
    made = caller.post("/experiments", yaml=SPEC_YAML, reuse="always")
    archive = exported(client.export_experiment(made["id"]))
    with elsewhere():
        answer = client.import_archive(io.BytesIO(archive))
        assert answer.runs == [lease["run_id"]]
        assert len(answer.experiments) == 2
        found = client.experiment(made["id"])
        assert (found.num_reused, [run.id for run in found.runs]) == (1, [lease["run_id"]])
        again = client.submit(yaml=SPEC_YAML, reuse="always")
        assert again.num_reused == 1  # its hash was computed anew, and is the same


def test_an_imported_run_can_be_tried_again_and_its_checkpoints_are_out_of_reach(
    caller: Caller, client: Client, elsewhere: Callable[[], Any]
) -> None:
    lease = caller.start()
    caller.put(lease, "events.jsonl", checkpoint_line(0, 5))
    archive = exported(client.export_run(lease["run_id"]))
    with elsewhere():
        client.import_archive(io.BytesIO(archive))
        assert client.run(lease["run_id"]).state == "CANCELLED"
        kinds = [(event.kind, event.to_state) for event in client.events(lease["run_id"])][-2:]
        assert kinds == [("imported", None), ("transition", "CANCELLED")]
        with pytest.raises(Conflict, match="its run was imported"):
            client.pin_checkpoint(lease["run_id"], 5)
        client.retry(lease["run_id"])
        caller.register("v", pool="another")
        assert caller.claim("v")["number"] == 2


# -- what is there already ---------------------------------------------------------------------------------------------


def test_notes_and_tags_of_later_do_not_make_another_run(caller: Caller, client: Client) -> None:
    run_id = a_run_with_everything(caller)
    archive = exported(client.export_run(run_id))
    caller.http.patch(f"/runs/{run_id}", json={"tags": ["later"], "notes": "later", "archived": False})
    answer = client.import_archive(io.BytesIO(archive))
    assert (answer.runs, answer.experiments, len(answer.skipped)) == ([], [], 2)
    assert caller.run(run_id)["tags"] == ["later"]


def changed(files: Files, name: str, /, **values: Any) -> Files:
    document = json.loads(files[name])
    return files | {name: json.dumps(document | values).encode()}


def test_an_id_with_other_content_is_a_conflict_and_nothing_is_added(
    caller: Caller, client: Client, context: Context
) -> None:
    run_id = a_run_with_everything(caller)
    files = unpack(exported(client.export_run(run_id)))
    experiment = next(name for name in files if name.startswith("experiments/"))
    run = f"runs/{run_id}/run.json"
    log = f"runs/{run_id}/1/stdout.log"
    attempts = json.loads(files[run])["attempts"]
    renamed = {name.replace(run_id, "r" + "1" * 14): data for name, data in files.items()}
    other_run = f"runs/r{'1' * 14}/run.json"
    rows = stored(context.database)
    for wrong in (
        changed(files, run, result={"step": 2}),
        changed(files, run, created_at="2025-01-01T00:00:00Z"),
        changed(files, experiment, created_at="2025-01-01T00:00:00Z"),
        changed(files, run, attempts=[{**attempts[0], "exit_code": 7}, attempts[1]]),
        files | {log: files[log][:-1] + bytes([files[log][-1] ^ 1])},
        changed(renamed, other_run, id="r" + "1" * 14),  # a new run with an attempt that is another's
    ):
        with pytest.raises(Conflict, match="is here already, with other content; nothing was imported"):
            client.import_archive(io.BytesIO(pack(wrong)))
        assert stored(context.database) == rows


# -- what is no archive ------------------------------------------------------------------------------------------------


def refused(
    client: Client, database: Database, data: bytes, said: str, error: type[Exception] = InvalidRequest
) -> None:
    rows = stored(database)
    with pytest.raises(error, match=said):
        client.import_archive(io.BytesIO(data))
    assert stored(database) == rows


@pytest.fixture
def small(caller: Caller, client: Client) -> bytes:
    """The archive of a run with a log, which is then elsewhere only."""
    lease = caller.start()
    caller.put(lease, "stdout.log", b"hello\n")
    return exported(client.export_run(lease["run_id"]))


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_damage_is_found_wherever_it_is(small: bytes, client: Client, elsewhere: Callable[[], Any]) -> None:
    plain = gzip.decompress(small)
    with elsewhere() as database:
        for end in [*range(0, len(small), max(1, len(small) // 20)), len(small) - 1]:
            refused(client, database, small[:end], "archive")
        for at in range(0, len(plain), max(1, len(plain) // 30)):
            wrong = plain[:at] + bytes([plain[at] ^ 0x10]) + plain[at + 1 :]
            if wrong[at:] != plain[at:] and not _is_padding(plain, at):
                refused(client, database, gzip.compress(wrong), "archive|runs|experiments|manifest")
        refused(client, database, small + b"x", "gzip file, or it is damaged")
        refused(client, database, gzip.compress(plain + b"x"), "something follows")
        refused(client, database, b"", "no gzip file|cut off")
        refused(client, database, os.urandom(1000), "no gzip file")
        refused(client, database, gzip.compress(bytes(1024)), "the archive is empty")
        client.import_archive(io.BytesIO(small))  # and as it was, it is taken


def _is_padding(plain: bytes, at: int) -> bool:
    """Whether a byte lies between the end of a file and the next block, where nothing is said."""
    offset = 0
    while any(block := plain[offset : offset + 512]):
        size = tarfile.TarInfo.frombuf(block, "ascii", "strict").size
        data = offset + 512
        offset = data + size + (-size % 512)
        if data + size <= at < offset:
            return True
    return False


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/passwd", "runs/../../x", "runs/a/../b", "a\\..\\b", "runs//x", ".hidden", "runs/.x/y", "x" * 90,
     "runs/r00000000000000/1/stdout.log", "runs/x/run.json", "experiments/x.json", "C:evil", "runs/\x01"],
)  # fmt: skip
def test_files_elsewhere_are_refused(small: bytes, client: Client, elsewhere: Callable[[], Any], name: str) -> None:
    files = unpack(small)
    with elsewhere() as database:
        refused(client, database, pack({**files, name: b"{}"}), "archive|file|Field required|missing")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_only_plain_files_are_taken(small: bytes, client: Client, elsewhere: Callable[[], Any]) -> None:
    with elsewhere() as database:
        for kind in (
            tarfile.SYMTYPE,
            tarfile.LNKTYPE,
            tarfile.DIRTYPE,
            tarfile.FIFOTYPE,
            tarfile.CHRTYPE,
            b"x",
            b"L",
            b"S",
        ):
            info = tarfile.TarInfo("runs/link")
            info.type, info.linkname = kind, "/etc/passwd"
            if kind == b"x":
                info.size = 1 << 40
            block = info.tobuf(tarfile.GNU_FORMAT)
            refused(client, database, gzip.compress(block + gzip.decompress(small)), "no plain file")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_bombs_are_not_unpacked(
    small: bytes, client: Client, elsewhere: Callable[[], Any], served: tuple[FastAPI, str], context: Context
) -> None:
    files = unpack(small)
    with elsewhere() as database:
        small_limit = context.settings.model_copy(update={"max_import_bytes": 1 << 20, "max_stream_bytes": 1 << 16})
        served[0].state.context = Context(small_limit, database, context.notifier, context.clock)
        refused(
            client,
            database,
            pack({**files, "runs/zero": bytes(2 << 20)}),
            "unpacked, the archive has more than the 1,048,576 bytes",
            TooLarge,
        )
        log = next(name for name in files if name.endswith("stdout.log"))
        refused(client, database, pack({**files, log: bytes(1 << 17)}), "a stream has at most 65,536")
        info = tarfile.TarInfo("archive.json")
        info.size = 1 << 33
        refused(client, database, gzip.compress(info.tobuf(tarfile.GNU_FORMAT)), "more than the 1,048,576", TooLarge)
        nested = b'{"a":' * 100_000
        refused(client, database, pack({**files, "archive.json": nested}), "archive.json")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_contradicts_itself_is_refused(small: bytes, client: Client, elsewhere: Callable[[], Any]) -> None:
    files = unpack(small)
    run = next(name for name in files if name.endswith("/run.json"))
    experiment = next(name for name in files if name.startswith("experiments/"))
    document = json.loads(files[run])
    (attempt,) = document["attempts"]
    log = next(name for name in files if name.endswith("stdout.log"))

    def without(name: str) -> Files:
        return {other: data for other, data in files.items() if other != name}

    cases: list[tuple[Files, str]] = [
        (changed(files, "archive.json", version=2), "is of version 2, and this service reads version 1 - update"),
        (changed(files, "archive.json", format="zip"), "of the format 'zip'"),
        (without("archive.json"), "does not begin with archive.json"),
        (without(experiment), "its experiment .* is missing"),
        (without(log), "missing from the archive"),
        (changed(files, run, config={"app": "gssm.train"}), "config_hash is not that of the config"),
        (changed(files, run, attempts=[]), "its attempts are"),
        (changed(files, run, attempt=2), "its attempts are"),
        (changed(files, run, attempts=[attempt, {**attempt, "number": 2}], attempt=2), "has not ended"),
        (changed(files, run, state="SUCCEEDED"), "it is SUCCEEDED, and its newest attempt LEASED"),
        (changed(files, run, step=2**63), "step: "),
        (changed(files, run, step=-1), "step: "),
        (changed(files, run, id="../../etc"), "id: "),
        (changed(files, run, id="r" + "2" * 14), "holds what belongs into"),
        (changed(files, run, more=1), "more: Extra inputs"),
        (changed(files, run, name="two\nlines"), "name: "),
        (changed(files, run, latest={"loss": "x"}), "latest: "),
        (changed(files, run, resources={"cpus": "many"}), "resources"),
        (changed(files, run, created_at="2026-01-01T00:00:00"), "created_at: "),
        (changed(files, run, attempts=[{**attempt, "streams": {"stdout.log": 2}}]), "more bytes than were sent"),
        (changed(files, run, attempts=[{**attempt, "streams": {"../x": 2}}]), "missing from the archive"),
        (changed(files, experiment, source={"id": "x"}), "source: "),
        (changed(files, experiment, id="e" + "0" * 14), "holds what belongs into"),
    ]  # fmt: skip
    with elsewhere() as database:
        for wrong, said in cases:
            refused(client, database, pack(wrong), said)
        refused(client, database, pack({**files, "zzz": b""}), "belongs to no run")
        forged = pack(changed(files, run, name="forged"), sign=False)
        refused(client, database, forged, "is not what the manifest of the archive describes")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_import_that_fails_midway_leaves_nothing(
    small: bytes, client: Client, elsewhere: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, http: httpx.Client
) -> None:
    with elsewhere() as database:

        def broken(*_: object) -> None:
            raise OSError("the disk is gone")

        monkeypatch.setattr("backend.archive.staging.Stage._copy_blocks", broken)
        rows = stored(database)
        assert http.post("/import", content=small).status_code == 500
        assert stored(database) == rows
        monkeypatch.undo()
        client.import_archive(io.BytesIO(small))


def test_what_is_not_there_cannot_be_exported(client: Client) -> None:
    with pytest.raises(NotFound):
        exported(client.export_run("r0"))
    with pytest.raises(NotFound):
        exported(client.export_experiment("e0"))


def test_only_an_import_may_be_larger_than_other_bodies() -> None:
    async def taker(_scope: Any, receive: Any, _send: Any) -> None:
        while (await receive()).get("more_body", False):
            pass

    async def send(path: str) -> None:
        parts = [{"type": "http.request", "body": bytes(30), "more_body": more} for more in (True, False)]
        limit = BodyLimit(taker, max_bytes=40, others={"/import": (80, "")})

        async def receive() -> Any:
            return parts.pop(0)

        await limit({"type": "http", "path": path, "headers": []}, receive, None)  # type: ignore[arg-type] # unused

    asyncio.run(send("/import"))
    with pytest.raises(HTTPException, match="more than the 40 bytes that are allowed; send less at a time"):
        asyncio.run(send("/runs"))


class Unseekable(io.RawIOBase):
    """So many zeros from a pipe."""

    def __init__(self, size: int) -> None:
        self._left = size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        size = min(size, self._left)
        self._left -= size
        return bytes(size)


def test_who_sends_too_much_hears_the_service_and_not_a_broken_connection(
    migrated_sqlite: Path, tmp_path: Path
) -> None:
    shutil.copy(migrated_sqlite, tmp_path / "n2n.db")
    settings = Settings(database_url=sqlite_url(tmp_path), max_import_bytes=1 << 20, max_body_bytes=1 << 20)
    large = 64 << 20  # more than the service reads of what it refuses
    with serve(create_app(settings)) as url, Client(url, timeout=60) as client:
        with pytest.raises(TooLarge, match="67,108,864 bytes, and 1,048,576 are allowed; export the runs one by one"):
            client.import_archive(io.BytesIO(bytes(large)))
        with pytest.raises(TooLarge, match="more than the 1,048,576 bytes that are allowed; export the runs one by"):
            client.import_archive(Unseekable(large))  # type: ignore[arg-type] # it is read, and nothing else
        with pytest.raises(TooLarge, match="67,108,864 bytes, and 1,048,576 are allowed; send less at a time"):
            client.put_stream("a", "stdout.log", epoch=1, offset=0, data=bytes(large))
    with (
        serve(create_app(settings.model_copy(update={"tokens": True}))) as url,
        Client(url, timeout=60) as client,
        pytest.raises(Unauthorized),
    ):
        client.import_archive(io.BytesIO(bytes(large)))


def test_a_connection_that_breaks_while_an_archive_is_sent_is_said_to_be_broken() -> None:
    def broken(_request: httpx.Request) -> httpx.Response:
        raise httpx.WriteError("Broken pipe")

    with (
        Client("http://127.0.0.1:1", transport=httpx.MockTransport(broken)) as client,
        pytest.raises(Unavailable, match="ended the connection while the archive was sent"),
    ):
        client.import_archive(io.BytesIO(b"archive"))
