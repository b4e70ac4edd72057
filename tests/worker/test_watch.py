"""What the worker says of itself."""

from __future__ import annotations

import errno
import os
from collections import namedtuple
from contextlib import closing
from pathlib import Path

import pytest

from worker.journal import Journal
from worker.root import RunRoot
from worker.watch import Watch, no_strays

Room = namedtuple("Room", ["f_bavail", "f_frsize"])


def looked(root: Path) -> Watch:
    watch = Watch(root, no_strays, set)
    assert watch.step() > 0
    return watch


def test_a_run_root_in_order_is_no_news(tmp_path: Path) -> None:
    watch = looked(tmp_path)
    assert (watch.problems, watch.unusable) == ([], None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("left", "usable", "words"), [(5e8, True, "less than 1 GB"), (5e7, False, "less than 100 MB")])
def test_a_run_root_that_fills_up_is_told_before_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: float, usable: bool, words: str
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _path: Room(int(left) // 4096, 4096))
    watch = looked(tmp_path)
    (problem,) = watch.problems
    assert f"the run root {tmp_path} has {words} left" in problem
    assert (watch.unusable is None) is usable


def test_a_run_root_that_cannot_be_written_takes_no_runs_until_it_can(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    watch = looked(root)
    assert watch.unusable == f"takes no runs: cannot write in the run root {root}: No such file or directory"
    assert watch.problems == [watch.unusable]
    root.mkdir()
    watch.step()
    assert (watch.problems, watch.unusable) == ([], None)


def test_a_run_root_whose_file_system_is_away_takes_no_runs(tmp_path: Path) -> None:
    with closing(Journal(tmp_path / "worker.sqlite")) as journal:
        root = tmp_path / "runs"
        root.mkdir()
        watch = Watch(root, no_strays, set, check=RunRoot(root, journal).check)
        watch.step()
        assert watch.problems == []
        root.rename(tmp_path / "elsewhere")
        root.mkdir()  # as the empty folder on which a file system is mounted
        watch = Watch(root, no_strays, set, check=RunRoot(root, journal).check)  # also of the next life
        watch.step()
        assert (watch.unusable or "").startswith(f"takes no runs: the run root {root} is away: .n2n-root is missing")
        root.rmdir()
        (tmp_path / "elsewhere").rename(root)
        watch.step()
        assert watch.problems == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_whatever_the_system_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(_handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    assert looked(tmp_path).unusable == f"takes no runs: cannot write in the run root {tmp_path}: {os.strerror(number)}"


def test_strays_are_told_until_they_are_held_or_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    strays, held = {"a1": "one\nis here", "a2": "two is here"}, {"a2"}
    watch = Watch(tmp_path, lambda _root: strays, lambda: held)
    watch.step()
    assert watch.problems == ["one is here"]
    assert caplog.text.count("one is here") == 1
    watch.step()
    assert caplog.text.count("one is here") == 1
    held.add("a1")
    watch.step()
    assert watch.problems == []
