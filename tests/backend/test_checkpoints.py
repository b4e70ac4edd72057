from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import update

from backend.checkpoints.files import CheckpointFiles
from backend.deps import Context
from backend.tables import Checkpoint
from nanollama.api.client import Client
from nanollama.api.errors import Conflict, NotFound
from tests.support.service import Caller, checkpoint_line


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
        for call in (world.client.pin_checkpoint, world.client.delete_checkpoint, world.client.checkpoint_files):
            with pytest.raises(Conflict, match="--run-roots"):
                call(world.run_id, 5)
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
    with pytest.raises(Conflict, match="--run-roots"):
        CheckpointFiles((), "r", 5, str(tmp_path))
