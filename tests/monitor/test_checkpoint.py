from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.monitor import checkpoint, digest
from nanollama.monitor.checkpoint import (
    Checkpoints,
    InvalidCheckpoint,
    UnreadableCheckpoint,
    snapshot,
    tensor_problems,
    verify,
    visible,
)
from nanollama.spec.base import SpecError
from nanollama.spec.rundir import CHECKPOINTS, MANIFEST, PINNED, SCORE, Manifest, Score

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
                    args[1].flush()
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


def test_when_all_are_damaged_nothing_starts_anew_in_silence(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        (checkpoints(tmp_path).save(step, CONTENTS).path / "model.pt").write_bytes(b"torn")
    with pytest.raises(SpecError) as caught:
        checkpoints(tmp_path).newest_valid()
    message = str(caught.value)
    assert "none of the 5 checkpoints of this run is whole" in message
    assert "0000000005 is skipped: model.pt has 4 bytes where" in message
    assert "and 2 more" in message
    assert f"or remove {tmp_path / CHECKPOINTS} to train anew" in message


def test_a_file_that_cannot_be_read_now_is_passed_over_and_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        checkpoints(tmp_path).save(step, CONTENTS)
    original = checkpoint.read_digest

    def read(path: Path) -> tuple[int, str]:
        if path.parent.name == "0000000002":
            raise OSError(errno.EIO, "Input/output error")
        return original(path)

    monkeypatch.setattr(checkpoint, "read_digest", read)
    with pytest.raises(UnreadableCheckpoint, match=r"model.pt cannot be read: Input/output error"):
        verify(tmp_path / CHECKPOINTS / "0000000002")
    store = checkpoints(tmp_path, keep_last=1)
    found, reasons = store.newest_valid()
    assert found == tmp_path / CHECKPOINTS / "0000000001"
    assert "0000000002 is skipped: model.pt cannot be read" in reasons[0]
    store.save(3, CONTENTS)
    assert [path.name for path in store.prune()] == ["0000000001"]
    assert names(tmp_path) == ["0000000002", "0000000003"]


@pytest.mark.parametrize("fails_at", range(12))
def test_a_disk_that_is_full_leaves_nothing_of_a_checkpoint_and_the_next_save_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    old = checkpoints(tmp_path).save(1, CONTENTS)
    store = checkpoints(tmp_path)
    calls = 0

    def failing(original: Any) -> Any:
        def call(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > fails_at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*args)

        return call

    class File:
        def __init__(self, path: Path, mode: str) -> None:
            self.file = open(path, mode)  # noqa: SIM115
            self.write, self.fileno, self.close = failing(self.file.write), self.file.fileno, self.file.close
            self.flush = failing(self.file.flush)

    monkeypatch.setattr(digest, "open", File, raising=False)
    with pytest.raises(OSError, match="No space left"):
        store.save(2, CONTENTS)
    assert calls > fails_at
    assert names(tmp_path) == ["0000000001"]
    assert not list((tmp_path / CHECKPOINTS).glob(".*"))
    monkeypatch.undo()
    assert store.newest_valid() == (old.path, [])
    store.save(2, CONTENTS)
    assert names(tmp_path) == ["0000000001", "0000000002"]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    store = checkpoints(tmp_path, keep_last=2)
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
    resumed = checkpoints(tmp_path, keep_last=2)
    assert resumed.newest_valid()[0] == tmp_path / CHECKPOINTS / "0000000002"
    resumed.save(3, CONTENTS)
    assert [path.name for path in resumed.prune()] == ["0000000001", "0000000008", "0000000009"]
    assert names(tmp_path) == ["0000000002", "0000000003"]


def kept_by_brute_force(
    steps: list[int], scores: dict[int, float], pinned: set[int], last: int, best: int, every: int
) -> set[int]:
    kept = set(sorted(steps)[-last:]) | {step for step in steps if every and step % every == 0} | (pinned & set(steps))
    ranking = sorted((score, step) for step, score in scores.items() if step in steps)
    return kept | {step for _, step in ranking[:best]}


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_the_rules_keep_what_they_say_and_remember_it_after_a_restart(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    rules = {
        name: data.draw(st.integers(low, 3)) for name, low in (("keep_last", 1), ("keep_best", 0), ("keep_every", 0))
    }
    steps: list[int] = []
    scores: dict[int, float] = {}
    pinned: set[int] = set()
    store = checkpoints(run_dir, **rules)
    for step in range(1, data.draw(st.integers(1, 9)) + 1):
        if data.draw(st.booleans()):
            store = checkpoints(run_dir, **rules)
            store.newest_valid()
        early = data.draw(st.booleans())
        score = data.draw(st.one_of(st.none(), st.sampled_from([0.1, 0.2, 0.3])))
        if score is not None and early:
            store.note_score(step, score)
        saved = store.save(step, {"model.pt": b"weights"})
        if score is not None:
            scores[step] = score
            if not early:
                store.note_score(step, score)
        steps.append(step)
        if data.draw(st.booleans()):
            (saved.path / PINNED).touch()
            pinned.add(step)
        expected = kept_by_brute_force(steps, scores, pinned, *rules.values())
        assert [int(path.name) for path in store.prune()] == sorted(set(steps) - expected)
        steps = sorted(expected)
        assert names(run_dir) == [f"{step:010d}" for step in steps]
        ranked = sorted((score, step) for step, score in scores.items() if step in steps)
        assert store.best() == (run_dir / CHECKPOINTS / f"{ranked[0][1]:010d}" if ranked else None)


def test_a_score_is_written_beside_the_weights_and_one_that_is_no_number_is_none(tmp_path: Path) -> None:
    store = checkpoints(tmp_path)
    path = store.save(1, CONTENTS).path
    store.note_score(1, float("nan"))
    store.note_score(2, 0.5)  # a step without a checkpoint
    assert store.score(path) is None
    store.note_score(1, 0.25)
    assert Score.model_validate_json((path / SCORE).read_bytes()) == Score(step=1, score=0.25)
    (path / SCORE).write_text("{")
    assert store.score(path) is None


def test_a_checkpoint_that_is_written_again_keeps_its_pin_and_its_score(tmp_path: Path) -> None:
    path = checkpoints(tmp_path).save(1, CONTENTS).path
    (path / PINNED).write_text("for the paper")
    checkpoints(tmp_path).note_score(1, 0.5)
    store = checkpoints(tmp_path, keep_last=1)
    store.save(1, CONTENTS)
    store.save(2, CONTENTS)
    assert store.prune() == []
    assert (path / PINNED).read_text() == "for the paper"
    assert store.score(path) == 0.5
    (path / PINNED).unlink()
    assert store.prune() == [path]


def test_a_pin_made_while_a_checkpoint_is_being_removed_saves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = checkpoints(tmp_path, keep_last=1)
    old = store.save(1, CONTENTS).path
    store.save(2, CONTENTS)
    rename = Path.rename

    def pinned_just_before(path: Path, target: Path) -> Path:
        if path == old:
            (path / PINNED).touch()
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", pinned_just_before)
    assert store.prune() == []
    verify(old)


def test_what_a_reader_keeps_from_being_deleted_is_gone_all_the_same_and_hinders_no_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = checkpoints(tmp_path, keep_last=1)
    old = store.save(1, CONTENTS).path
    store.save(2, CONTENTS)
    rmtree = checkpoint.shutil.rmtree

    def busy(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(errno.EBUSY, "Device or resource busy", str(path))

    monkeypatch.setattr(checkpoint.shutil, "rmtree", busy)
    assert store.prune() == [old]
    store.save(3, CONTENTS)
    assert names(tmp_path) == ["0000000002", "0000000003"]
    assert list((tmp_path / CHECKPOINTS).glob(".*"))
    monkeypatch.setattr(checkpoint.shutil, "rmtree", rmtree)
    store.save(4, CONTENTS)
    assert not list((tmp_path / CHECKPOINTS).glob(".*"))


def test_a_score_of_a_checkpoint_that_is_removed_at_that_moment_hinders_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = checkpoints(tmp_path)
    path = store.save(1, CONTENTS).path
    write = checkpoint.write_atomic

    def removed_just_before(target: Path, content: bytes) -> None:
        checkpoint.shutil.rmtree(path)
        write(target, content)

    monkeypatch.setattr(checkpoint, "write_atomic", removed_just_before)
    store.note_score(1, 0.5)
    assert names(tmp_path) == []


def test_a_snapshot_is_untouched_by_what_happens_to_the_tensors_and_keeps_tied_ones_tied(tmp_path: Path) -> None:
    weight = torch.arange(1000.0)
    state = {"a": weight, "b": weight, "part": weight[:3], "group": [{"lr": 0.1, "t": (weight[1], None)}]}
    copied = snapshot(state)
    weight.zero_()
    assert torch.equal(copied["a"], torch.arange(1000.0))
    assert torch.equal(copied["part"], torch.arange(3.0))
    assert copied["group"][0]["lr"] == 0.1
    assert float(copied["group"][0]["t"][0]) == 1
    assert copied["a"] is copied["b"]
    saved = checkpoints(tmp_path).save(1, {"model.pt": {name: copied[name] for name in ("a", "b")}})
    assert saved.size_bytes < 2 * weight.nbytes


def test_the_first_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    here = {"emb": torch.zeros(5, 16), "a.w": torch.zeros(2), "a.b": torch.zeros(2), "head": torch.zeros(3)}
    there = {"emb": torch.zeros(5, 32), "b.w": torch.zeros(4), "a.w": torch.zeros(2), "x": torch.zeros(1)}
    assert tensor_problems(here, here, tmp_path) == []
    (problem,) = tensor_problems(here, there, tmp_path)
    assert problem.message == (
        f"{tmp_path} is of another architecture: its emb is [5, 32], here it is [5, 16]; "
        "it has no a.b, which is [2] here; it has no head, which is [3] here; and 2 more"
    )
