from __future__ import annotations

import dataclasses
import io
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import update

from backend.checkpoints.files import Archive, find_files
from backend.deps import Context
from backend.queue.sync import Synced, SyncService
from backend.tables import Checkpoint
from nanollama.api import schemas
from nanollama.api.client import Client
from nanollama.api.errors import Conflict, NotFound
from nanollama.spec.checkpoint_folder import CheckpointFolder
from tests.support.service import Caller, checkpoint_line
from tests.support.waiting import eventually


@dataclasses.dataclass
class World:
    """A run with a checkpoint at step 5, below a run root that the service reaches."""

    root: Path
    lease: dict[str, Any]
    folder: Path
    client: Client
    caller: Caller
    context: Context

    @property
    def run_id(self) -> str:
        run_id: str = self.lease["run_id"]
        return run_id

    def report(self, path: str) -> None:
        """As a worker that lies would."""
        with self.context.database.write() as session:
            session.execute(update(Checkpoint).values(path=path))


@pytest.fixture
def world(served: tuple[FastAPI, str], context: Context, caller: Caller, tmp_path: Path) -> Iterator[World]:
    root = tmp_path / "runs"
    settings = context.settings.model_copy(update={"run_roots": (root,)})
    served[0].state.context = dataclasses.replace(context, settings=settings)
    caller.submit()
    body = {"name": "w", "pool": "p", "executor": "local", "host": "h", "user": "u"}
    caller.http.put("/workers/w", json=body | {"run_root": str(root), "slots": 1, "version": "1"})
    lease = caller.claim()
    folder = root / lease["run_id"] / "checkpoints" / "0000000005"
    folder.mkdir(parents=True)
    (folder / "model.pt").write_bytes(b"weights" * 1000)
    (tmp_path / "secret").write_text("TOP")
    caller.put(lease, "events.jsonl", checkpoint_line(0, 5))
    with Client(served[1]) as client:
        yield World(root, lease, folder, client, caller, context)


def test_a_pinned_checkpoint_has_the_file_that_training_respects(world: World) -> None:
    assert [c.pinned for c in world.client.checkpoints(world.run_id)] == [False]
    assert world.client.pin_checkpoint(world.run_id, 5).pinned
    content = (world.folder / "pinned").read_text()
    assert content == "pinned by anyone on this machine\n"
    assert world.client.pin_checkpoint(world.run_id, 5).pinned
    assert not world.client.pin_checkpoint(world.run_id, 5, pinned=False).pinned
    assert not (world.folder / "pinned").exists()
    with pytest.raises(NotFound, match="no checkpoint at step 6"):
        world.client.pin_checkpoint(world.run_id, 6)


def test_files_are_listed_and_downloaded(world: World) -> None:
    (world.folder / "link").symlink_to(world.root.parent / "secret")
    files = world.client.checkpoint_files(world.run_id, 5)
    assert [(file.name, file.size_bytes) for file in files] == [("model.pt", 7000)]
    assert b"".join(world.client.download_checkpoint_file(world.run_id, 5, "model.pt")) == b"weights" * 1000


@pytest.mark.parametrize(
    "name",
    ["link", "fifo", "folder", "..", "%2e%2e", "..%2F..%2F..%2Fsecret", "%2Fetc%2Fpasswd", "..%2fmodel.pt", "a%00b",
     "..%5c..%5csecret", "absent", "%252e%252e%252fsecret"],
)  # fmt: skip
def test_nothing_else_is_downloaded(world: World, name: str) -> None:
    (world.folder / "link").symlink_to(world.root.parent / "secret")
    (world.folder / "folder").mkdir()
    os.mkfifo(world.folder / "fifo")
    reply = world.caller.http.get(f"/runs/{world.run_id}/checkpoints/5/files/{name}")
    assert reply.status_code in (404, 405)
    assert b"TOP" not in reply.content


def paths(world: World) -> list[str]:
    inner = f"{world.run_id}/checkpoints/0000000005"
    return [
        "/etc", "/", "", "relative", f"{world.root}/../runs/{inner}", f"{world.root}/{inner}/..",
        str(world.root), f"{world.root}/other/checkpoints/0000000005", f"{world.root.parent}/{inner}",
    ]  # fmt: skip


def test_a_path_that_a_worker_made_up_is_left_alone(world: World) -> None:
    world.caller.end(world.lease, "SUCCEEDED")
    for path in paths(world):
        world.report(path)
        with pytest.raises(Conflict, match="--run-roots"):
            world.client.checkpoint_files(world.run_id, 5)
        with pytest.raises(Conflict, match="--run-roots"):
            list(world.client.download_checkpoint(world.run_id, 5))
        assert world.client.delete_checkpoint(world.run_id, 5).pending == "delete"  # left to the worker, who knows
        assert world.client.pin_checkpoint(world.run_id, 5).pending == "pin"
        assert world.client.pin_checkpoint(world.run_id, 5, pinned=False).pending == "unpin"
    assert (world.folder / "model.pt").exists()
    assert not (world.folder / "pinned").exists()


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_link_on_the_way_leads_nowhere(world: World, depth: int) -> None:
    world.caller.end(world.lease, "SUCCEEDED")
    link = [world.folder, *world.folder.parents][depth]
    elsewhere = world.root.parent / "elsewhere"
    link.rename(elsewhere)
    link.symlink_to(elsewhere)
    for call in (world.client.pin_checkpoint, world.client.delete_checkpoint, world.client.checkpoint_files):
        with pytest.raises(Conflict, match="leads out of its run"):
            call(world.run_id, 5)
    assert list(elsewhere.rglob("model.pt"))


def test_delete_takes_ended_runs_and_unpinned_checkpoints_only(world: World) -> None:
    outside = world.root.parent / "kept"
    outside.mkdir()
    (outside / "file").touch()
    (world.folder / "link").symlink_to(outside)
    with pytest.raises(Conflict, match="has not ended"):
        world.client.delete_checkpoint(world.run_id, 5)
    world.caller.end(world.lease, "SUCCEEDED")
    world.client.pin_checkpoint(world.run_id, 5)
    with pytest.raises(Conflict, match="pinned"):
        world.client.delete_checkpoint(world.run_id, 5)
    world.client.pin_checkpoint(world.run_id, 5, pinned=False)
    assert world.client.delete_checkpoint(world.run_id, 5).removed
    assert list(world.folder.parent.iterdir()) == []
    assert (outside / "file").exists()
    with pytest.raises(NotFound):
        world.client.delete_checkpoint(world.run_id, 5)


def test_files_that_are_gone(world: World) -> None:
    (world.folder / "model.pt").unlink()
    world.folder.rmdir()
    with pytest.raises(NotFound, match="are gone"):
        world.client.pin_checkpoint(world.run_id, 5)
    assert [c.pinned for c in world.client.checkpoints(world.run_id)] == [None]


def test_a_service_without_run_roots_touches_nothing(tmp_path: Path) -> None:
    assert find_files((), "r", 5, str(tmp_path)) is None


def test_a_checkpoint_is_downloaded_as_one_file(world: World, tmp_path: Path) -> None:
    (world.folder / "empty").touch()
    (world.folder / "pinned").touch()
    (world.folder / "link").symlink_to(world.root.parent / "secret")
    (world.folder / "manifest.json").write_bytes(b"x" * 512)
    data = b"".join(world.client.download_checkpoint(world.run_id, 5))
    reply = world.caller.http.get(f"/runs/{world.run_id}/checkpoints/5/archive")
    assert reply.headers["Content-Length"] == str(len(data))
    assert reply.headers["Content-Disposition"] == f'attachment; filename="{world.run_id}-5.tar"'
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        archive.extractall(tmp_path / "out", filter="data")
    found = {path.name: path.read_bytes() for path in (tmp_path / "out" / "0000000005").iterdir()}
    assert found == {"empty": b"", "manifest.json": b"x" * 512, "model.pt": b"weights" * 1000}


def test_a_download_that_falls_short_does_not_look_complete(world: World) -> None:
    archive = Archive(CheckpointFolder(world.root, world.run_id, 5))
    (world.folder / "model.pt").write_bytes(b"less")
    with pytest.raises(OSError, match="has lost 6,996 bytes"):
        list(archive)


# -- by a worker, where the service reaches no files ----------------------------------------------------------------


@pytest.fixture
def far(world: World, served: tuple[FastAPI, str]) -> World:
    """The same, but only the worker reaches the checkpoint."""
    served[0].state.context = world.context
    return world


def commands(far: World, worker: str = "w", *held: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = far.caller.sync(worker, *held, **fields)["commands"]
    return found


def test_a_pin_is_left_to_a_worker_of_the_pool(far: World) -> None:
    assert far.client.checkpoints(far.run_id)[0].pinned is None
    answer = far.client.pin_checkpoint(far.run_id, 5)
    assert (answer.pending, answer.pinned) == ("pin", None)
    far.caller.register("stranger", pool="other")
    assert commands(far, "stranger") == []
    assert commands(far, "w", far.lease, draining=True) == []
    (command,) = commands(far, "w", far.lease)
    assert (command["run_id"], command["step"], command["kind"]) == (far.run_id, 5, "pin")
    assert command["by"] == "anyone on this machine"
    assert commands(far, "w", far.lease) == [command]  # until it has said what became of it
    done = {**command, "problem": None}
    for _ in range(2):
        assert commands(far, "stranger", done=[done]) == []
    assert far.client.checkpoints(far.run_id)[0].pending == "pin"  # another pool's word counts for nothing
    for _ in range(2):
        assert commands(far, "w", far.lease, done=[done]) == []
        saved = far.client.checkpoints(far.run_id)[0]
        assert (saved.pending, saved.pinned) == (None, True)
    (event,) = [event for event in far.client.events(far.run_id) if event.kind == "checkpoint_pinned"]
    assert (event.step, event.message) == (5, "by anyone on this machine, through worker w")
    far.caller.end(far.lease, "SUCCEEDED")
    with pytest.raises(Conflict, match="pinned; unpin it first"):
        far.client.delete_checkpoint(far.run_id, 5)


def test_a_worker_that_cannot_says_why(far: World) -> None:
    far.client.pin_checkpoint(far.run_id, 5)
    (command,) = commands(far, "w", far.lease)
    commands(far, "w", far.lease, done=[{**command, "problem": "its files are gone"}])
    saved = far.client.checkpoints(far.run_id)[0]
    assert (saved.pending, saved.pinned) == (None, None)
    (event,) = [event for event in far.client.events(far.run_id) if event.kind == "warning"]
    assert event.message == "the checkpoint of step 5 could not be pinned: its files are gone"


def test_the_newest_wish_counts_and_what_was_done_is_noted_all_the_same(far: World) -> None:
    with pytest.raises(Conflict, match="has not ended"):
        far.client.delete_checkpoint(far.run_id, 5)
    far.caller.end(far.lease, "CANCELLED")
    assert far.client.delete_checkpoint(far.run_id, 5).pending == "delete"
    (first,) = commands(far)
    assert far.client.pin_checkpoint(far.run_id, 5).pending == "pin"
    with pytest.raises(Conflict, match="pinned"):
        far.client.delete_checkpoint(far.run_id, 5)
    (second,) = commands(far)
    assert (second["kind"], second["id"] == first["id"]) == ("pin", False)
    commands(far, done=[{**first, "problem": None}])  # the first had been carried out
    saved = far.client.checkpoints(far.run_id)[0]
    assert (saved.removed, saved.pending) == (True, "pin")
    commands(far, done=[{**second, "problem": "its files are gone"}])
    assert far.client.checkpoints(far.run_id)[0].pending is None


def test_nothing_is_deleted_of_a_run_that_goes_on_again(far: World) -> None:
    far.caller.end(far.lease, "FAILED")
    far.client.delete_checkpoint(far.run_id, 5)
    far.client.retry(far.run_id)
    assert commands(far) == []
    assert far.client.checkpoints(far.run_id)[0].pending == "delete"
    far.client.cancel(far.run_id)
    assert [command["kind"] for command in commands(far)] == ["delete"]


def test_a_command_wakes_a_worker_that_waits(far: World) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(commands, far, "w", far.lease, wait_seconds=30)
        eventually(lambda: far.context.notifier.waiting > 0, what="the long poll")
        far.client.pin_checkpoint(far.run_id, 5)
        assert [command["kind"] for command in waiting.result(20)] == ["pin"]


def test_a_worker_that_passes_over_commands_does_not_ask_without_a_pause(far: World) -> None:
    """One of an older version: its poll is answered at the second look, not at the first."""
    far.client.pin_checkpoint(far.run_id, 5)
    held = schemas.Held(attempt_id=far.lease["attempt_id"], epoch=far.lease["epoch"])
    request = schemas.SyncRequest(held=[held], free_slots=0, wait_seconds=30)

    def look(asked: schemas.SyncRequest, serial: int | None = None) -> Synced:
        with far.context.database.write() as session:
            return SyncService(session, far.context.clock(), far.context.settings).sync("w", asked, serial)

    first = look(request)
    assert (len(first.reply.commands), first.news) == (1, False)
    assert look(request, first.serial).news
    done = schemas.CommandDone(**(first.reply.commands[0].model_dump() | {"id": "c0"}))
    assert look(request.model_copy(update={"done": [done]})).news  # it knows them, and may want the next ones


def test_a_worker_is_given_a_few_at_a_time(far: World) -> None:
    events = checkpoint_line(0, 5) + b"".join(checkpoint_line(i, 10 + i) for i in range(1, 30))
    far.caller.put(far.lease, "events.jsonl", events)
    for step in range(11, 40):
        far.client.pin_checkpoint(far.run_id, step)
    found = commands(far, "w", far.lease)
    assert [command["step"] for command in found] == list(range(11, 31))
    assert [schemas.Command.model_validate(command).kind for command in found] == ["pin"] * 20
