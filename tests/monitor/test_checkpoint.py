from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.monitor import checkpoint
from nanollama.monitor.checkpoint import Checkpoints, InvalidCheckpoint, verify, visible
from nanollama.spec.base import SpecError
from nanollama.spec.rundir import CHECKPOINTS, MANIFEST, Manifest

CONTENTS = {"model.pt": {"w": torch.arange(6.0)}, "trainer.pt": {"step": 1}}


def checkpoints(run_dir: Path, **keys: Any) -> Checkpoints:
    return Checkpoints(run_dir, **{"config_hash": "abc", **keys})


def names(run_dir: Path) -> list[str]:
    return [path.name for path in visible(run_dir / CHECKPOINTS)]


def test_a_saved_checkpoint_is_described_by_its_manifest_and_found(tmp_path: Path) -> None:
    saved = checkpoints(tmp_path).save(7, CONTENTS)
    assert saved.path == tmp_path / CHECKPOINTS / "0000000007"
    manifest = Manifest.model_validate_json((saved.path / MANIFEST).read_bytes())
    assert (manifest.step, manifest.config_hash) == (7, "abc")
    for file in manifest.files:
        content = (saved.path / file.name).read_bytes()
        assert (file.size_bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert saved.size_bytes == sum(path.stat().st_size for path in saved.path.iterdir())
    assert saved.digest == hashlib.sha256((saved.path / MANIFEST).read_bytes()).hexdigest()
    assert checkpoints(tmp_path).newest_valid() == (saved.path, [])
    assert torch.equal(torch.load(saved.path / "model.pt", weights_only=True)["w"], torch.arange(6.0))


def test_without_checkpoints_there_is_none(tmp_path: Path) -> None:
    assert checkpoints(tmp_path).newest_valid() == (None, [])


class Crash(BaseException):
    """Ends the process, as far as the code under test can tell."""


def crash_at(patch: pytest.MonkeyPatch, call: int) -> None:
    """Crash at the n-th (from 0) of the calls that change the disk: before it, and half-way through a write."""
    count = 0

    def wrap(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count > call:
                if name == "save":
                    args[1].write(b"half of a fi")
                raise Crash
            return original(*args, **kwargs)

        patch.setattr(owner, name, counted)

    wrap(torch, "save")
    wrap(os, "fsync")
    wrap(Path, "mkdir")
    wrap(Path, "rename")
    wrap(checkpoint.shutil, "rmtree")


@pytest.mark.parametrize("replaced", [False, True])
def test_a_crash_at_any_point_leaves_the_old_or_the_new_checkpoint_and_hinders_no_later_save(
    tmp_path: Path, replaced: bool
) -> None:
    for call in range(100):
        run_dir = tmp_path / str(call)
        run_dir.mkdir()
        old = checkpoints(run_dir).save(1, CONTENTS).path
        if replaced:  # a damaged checkpoint stands where the new one goes
            (checkpoints(run_dir).save(2, CONTENTS).path / MANIFEST).unlink()
        finished = True
        with pytest.MonkeyPatch.context() as patch:
            crash_at(patch, call)
            try:
                checkpoints(run_dir).save(2, CONTENTS)
            except Crash:
                finished = False
        found, _ = checkpoints(run_dir).newest_valid()
        assert found in ([run_dir / CHECKPOINTS / "0000000002"] if finished else [old, old.with_name("0000000002")])
        again = checkpoints(run_dir).save(2, CONTENTS)
        assert checkpoints(run_dir).newest_valid() == (again.path, [])
        assert names(run_dir) == ["0000000001", "0000000002"]
        assert not list((run_dir / CHECKPOINTS).glob(".*"))
        if finished:
            assert call >= 8  # two files and a manifest, each flushed, and the directories
            return
    pytest.fail("the save never finished")


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_damage_is_found_and_the_checkpoint_before_is_used(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    store = checkpoints(run_dir)
    old, new = store.save(1, CONTENTS).path, store.save(2, CONTENTS).path
    victim = new / data.draw(st.sampled_from([*CONTENTS, MANIFEST]))
    content = bytearray(victim.read_bytes())
    damage = data.draw(st.sampled_from(["flip", "truncate", "extend", "delete", "empty"]))
    if damage == "delete":
        victim.unlink()
    else:
        position = data.draw(st.integers(0, len(content) - 1))
        if damage == "flip" and victim.name != MANIFEST:
            content[position] ^= 1 << data.draw(st.integers(0, 7))
        elif damage == "extend" and victim.name != MANIFEST:
            content += b"x"
        else:
            content = content[:position] if damage == "truncate" else bytearray()
        victim.write_bytes(content)
    found, reasons = checkpoints(run_dir).newest_valid()
    assert found == old
    assert len(reasons) == 1
    assert "0000000002 is skipped" in reasons[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 3}, "that of step 3"),
        ({"files": [{"name": "../1/model.pt", "size_bytes": 1, "sha256": ""}]}, "elsewhere"),
        ({"files": "none"}, "no readable manifest"),
    ],
)
def test_a_manifest_that_describes_something_else_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = checkpoints(tmp_path).save(2, CONTENTS).path
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, **change}))
    with pytest.raises(InvalidCheckpoint, match=message):
        verify(path)


def test_a_checkpoint_of_another_config_is_not_continued(tmp_path: Path) -> None:
    checkpoints(tmp_path).save(2, CONTENTS)
    with pytest.raises(SpecError, match="written with another config"):
        checkpoints(tmp_path, config_hash="other").newest_valid()


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    store = checkpoints(tmp_path, keep_only=2)
    removed = []
    for step in (1, 2, 3, 4):
        store.save(step, CONTENTS)
        removed += [path.name for path in store.prune()]
    assert removed == ["0000000001", "0000000002"]
    assert names(tmp_path) == ["0000000003", "0000000004"]
    keeper = checkpoints(tmp_path)
    keeper.save(5, CONTENTS)
    assert keeper.prune() == []


def test_damaged_checkpoints_do_not_push_out_whole_ones(tmp_path: Path) -> None:
    store = checkpoints(tmp_path)
    for step in (1, 2, 8, 9):
        store.save(step, CONTENTS)
    for step in (8, 9):
        (tmp_path / CHECKPOINTS / f"{step:010d}" / MANIFEST).write_text("{")
    resumed = checkpoints(tmp_path, keep_only=2)
    assert resumed.newest_valid()[0] == tmp_path / CHECKPOINTS / "0000000002"
    resumed.save(3, CONTENTS)
    assert [path.name for path in resumed.prune()] == ["0000000001", "0000000008", "0000000009"]
    assert names(tmp_path) == ["0000000002", "0000000003"]
