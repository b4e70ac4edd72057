"""The run root out of sight, as a file system that is not mounted: no run is started, ended or judged by it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nanollama.spec.base import SpecError
from nanollama.spec.rundir import EXIT
from tests.support.examples import experiment
from tests.support.waiting import eventually
from tests.support.worker_bench import Bench
from worker.executors.base import Attempt
from worker.executors.local import LocalExecutor
from worker.executors.processes import find_tree
from worker.journal import FILE, Journal, has_seen
from worker.root import ROOT_MARK, RootAway, RunRoot
from worker.settings import read_settings


class Executor(LocalExecutor):
    """Its runs end when somebody says so."""

    def __init__(self) -> None:
        code = "until [ -e $0/finish ]; do sleep 0.05; done; echo '{}' > $0/result.json"
        super().__init__(grace=0.5, command=lambda attempt, _spec: ["bash", "-c", code, str(attempt.directory)])

    def forget(self) -> None:
        """As the next life of the worker, which did not start what goes on."""
        self._released += self._children.values()
        self._children.clear()

    def close(self) -> None:
        """Wait for all supervisors."""
        for child in (*self._released, *self._children.values()):
            child.wait(60)


@pytest.fixture
def name() -> str:
    return f"root-{os.getpid()}-{time.monotonic_ns()}"


@pytest.fixture
def bench(tmp_path: Path, name: str) -> Iterator[Bench]:
    with closing(Executor()) as executor, closing(Bench(tmp_path, executor=executor)) as bench:
        yield bench
        executor.kill(Attempt(name, bench.directory(name), "gssm.train", {}))


@pytest.fixture
def running(bench: Bench, name: str) -> str:
    """A run that goes on, told as RUNNING."""
    bench.service.add(name, experiment())

    def runs() -> bool:
        bench.sync()
        bench.tick()
        return bench.states(name) == ["RUNNING"]

    eventually(runs, what="the run")
    return name


def take_away(root: Path) -> Path:
    """Unmount it, as it were; where it is now."""
    elsewhere = root.with_name("elsewhere")
    root.rename(elsewhere)
    root.mkdir()
    return elsewhere


def bring_back(root: Path) -> None:
    root.rmdir()  # nothing has been written where the file system was not
    root.with_name("elsewhere").rename(root)


def restart(bench: Bench) -> None:
    assert isinstance(bench.used, Executor)
    bench.used.forget()
    bench.crash()


def alive(name: str) -> bool:
    return bool(list(find_tree(name)))


def end(bench: Bench, name: str) -> None:
    (bench.directory(name) / "finish").touch()
    eventually((bench.directory(name) / EXIT).exists, what="the end")
    bench.settle()


def test_a_worker_that_starts_while_the_run_root_is_away_waits_for_it(
    bench: Bench, running: str, caplog: pytest.LogCaptureFixture
) -> None:
    take_away(bench.settings.run_root)
    restart(bench)
    for _ in range(3):
        bench.settle()
    assert alive(running)
    assert bench.states(running) == ["RUNNING"]
    attempt = bench.service.attempts[running]
    assert f"the run root {bench.settings.run_root} is away" in (attempt.unknown or "")
    assert caplog.text.count("is away") == 1
    bring_back(bench.settings.run_root)
    bench.settle()
    assert attempt.unknown is None
    end(bench, running)
    assert bench.states(running) == ["RUNNING", "SUCCEEDED"]


def test_what_was_unknown_in_an_earlier_life_is_found(bench: Bench, running: str) -> None:
    take_away(bench.settings.run_root)
    restart(bench)
    bench.settle()
    assert bench.service.attempts[running].unknown is not None
    bring_back(bench.settings.run_root)
    restart(bench)
    bench.settle()
    assert bench.service.attempts[running].unknown is None
    end(bench, running)


def test_a_cancel_ends_a_run_out_of_sight_and_is_reported_when_it_can_be_seen(bench: Bench, running: str) -> None:
    take_away(bench.settings.run_root)
    restart(bench)
    bench.settle()
    bench.service.cancel(running)
    bench.settle()
    assert not alive(running)
    assert bench.states(running) == ["RUNNING"]
    bring_back(bench.settings.run_root)
    eventually(lambda: bench.settle() or bench.states(running)[1:], what="the end")
    assert bench.states(running) == ["RUNNING", "CANCELLED"]


@pytest.mark.parametrize("cancelled", [False, True])
def test_nothing_is_started_while_the_run_root_is_away(bench: Bench, name: str, cancelled: bool) -> None:
    bench.sync()
    bench.daemon._root.check()
    take_away(bench.settings.run_root)
    bench.service.add(name, experiment())
    bench.sync()
    for _ in range(30):
        with pytest.raises(RootAway):
            bench.tick()
    assert bench.states(name) == []
    if cancelled:
        bench.service.cancel(name)
        bench.sync()
        bench.tick()
        bench.tick()
        assert bench.states(name) == ["CANCELLED"]
        return
    bring_back(bench.settings.run_root)
    eventually(lambda: bench.tick() or bench.states(name), what="the start")
    assert bench.states(name) == ["RUNNING"]
    end(bench, name)


def test_a_run_whose_files_are_removed_is_left_alone_while_it_goes_on(bench: Bench, running: str) -> None:
    directory = bench.directory(running).parent
    directory.rename(bench.folder / "removed")
    restart(bench)
    bench.settle()
    assert alive(running)
    assert bench.states(running) == ["RUNNING"]
    assert "its files are gone" in (bench.service.attempts[running].unknown or "")
    bench.service.cancel(running)
    eventually(lambda: bench.settle() or bench.states(running)[1:], what="the end")
    assert bench.states(running) == ["RUNNING", "CANCELLED"]
    assert not alive(running)


def test_a_run_whose_files_are_removed_and_of_which_nothing_is_left_is_interrupted(bench: Bench, running: str) -> None:
    bench.directory(running).parent.rename(bench.folder / "removed")
    LocalExecutor().kill(Attempt(running, bench.folder / "removed" / "1", "gssm.train", {}))
    restart(bench)
    bench.settle()
    assert bench.states(running) == ["RUNNING", "INTERRUPTED"]


# -- the mark ----------------------------------------------------------------------------------------------------------


def test_a_run_root_is_marked_once_and_needs_its_mark_from_then_on(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    root.mkdir()
    with closing(Journal(tmp_path / FILE)) as journal:
        assert not has_seen(tmp_path, root)
        RunRoot(root, journal).check()
        content = (root / ROOT_MARK).read_text()
        RunRoot(root, journal).check()
        assert (root / ROOT_MARK).read_text() == content
        assert has_seen(tmp_path, root)
        (root / ROOT_MARK).unlink()
        with pytest.raises(RootAway, match="make that file again"):
            RunRoot(root, journal).check()
        (root / ROOT_MARK).touch()
        RunRoot(root, journal).check()
        with pytest.raises(FileNotFoundError):
            RunRoot(tmp_path / "another", journal).check()
        assert not has_seen(tmp_path, tmp_path / "another")


def test_the_mark_of_another_worker_serves_as_well(tmp_path: Path) -> None:
    (tmp_path / ROOT_MARK).write_text("another's\n")
    with closing(Journal(tmp_path / FILE)) as journal:
        RunRoot(tmp_path, journal).check()
        assert (tmp_path / ROOT_MARK).read_text() == "another's\n"
        assert journal.knows_root(tmp_path)


def test_only_a_run_root_that_was_there_before_may_be_missing_at_the_start(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    arguments = ["--run-root", str(root), "--home", str(tmp_path / "home")]
    with pytest.raises(SpecError, match="does not exist"):
        read_settings(arguments)
    root.mkdir()
    read_settings(arguments)
    with closing(Journal(tmp_path / "home" / FILE)) as journal:
        RunRoot(root, journal).check()
    (root / ROOT_MARK).unlink()
    root.rmdir()
    assert read_settings(arguments).run_root == root
