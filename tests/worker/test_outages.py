"""The daemon while the service is away or of another version, runs that have to wait, and runs that are refused."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nanollama.api.errors import Unauthorized
from nanollama.api.status import AttemptState
from tests.support.examples import experiment
from tests.support.waiting import eventually
from tests.support.worker_bench import Bench, finish
from worker.allow import Allowed
from worker.daemon import NotAccepted
from worker.executors.base import Attempt, Busy
from worker.executors.claim import Claim, take_claim
from worker.executors.fake import FakeExecutor
from worker.executors.local import LocalExecutor
from worker.journal import Record

MakeBench = Callable[..., Bench]


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[MakeBench]:
    made: list[Bench] = []

    def make(**parts: object) -> Bench:
        made.append(Bench(tmp_path, **parts))  # type: ignore[arg-type] # as Bench takes them
        return made[-1]

    yield make
    for bench in made:
        bench.close()


def test_an_hour_without_the_service_costs_nothing(make_bench: MakeBench) -> None:
    bench, names = make_bench(slots=6), [f"a{i}" for i in range(6)]
    for name in names:
        bench.service.add(name, experiment())
    bench.settle()
    bench.service.away = True
    for second in range(3600):
        bench.tick()
        for name in names if second % 10 == 0 else ():
            with open(bench.directory(name) / "stdout.log", "ab") as file:
                file.write(b"%d\n" % second)
    for name in names[:3]:
        finish(bench, name)
    bench.tick()
    assert bench.service.tries_while_away < 3600 / 5  # of all jobs together, not each
    assert len(bench.journal.held()) == 6
    bench.settle()
    for name in names[:3]:
        assert bench.states(name) == ["RUNNING", "SUCCEEDED"]
    for name in names:
        stored = bytes(bench.service.attempts[name].streams["stdout.log"])
        assert stored == (bench.directory(name) / "stdout.log").read_bytes()
        assert stored.count(b"\n") == 360


def test_a_cancel_is_carried_out_while_the_service_is_away(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.service.add("a", experiment())
    bench.settle()
    bench.service.cancel("a")
    bench.sync()
    bench.service.away = True
    for _ in range(30):
        bench.tick()
    assert bench.executor.executing == set()
    bench.settle()
    assert bench.states("a") == ["RUNNING", "CANCELLED"]


def test_a_run_waits_for_what_others_use(make_bench: MakeBench) -> None:
    class Crowded(FakeExecutor):
        """Has room for one."""

        def start(self, attempt: Attempt) -> None:
            if self.executing:
                raise Busy("it wants 1 accelerator, and 0 of 1 are free")
            super().start(attempt)

    executor = Crowded()
    bench = make_bench(executor=executor)
    bench.executor = executor
    for name in ("a", "b"):
        bench.service.add(name, experiment())
    bench.settle()
    assert [bench.states(name) for name in ("a", "b")] == [["RUNNING"], []]
    finish(bench, "a")
    bench.settle()
    assert bench.states("b") == ["RUNNING"]


def test_a_run_that_waits_can_be_cancelled(make_bench: MakeBench) -> None:
    class Full(FakeExecutor):
        def start(self, attempt: Attempt) -> None:
            raise Busy(f"nothing is free for {attempt.id}")

    bench = make_bench(executor=Full())
    bench.service.add("a", experiment())
    bench.settle()
    bench.service.cancel("a")
    bench.settle()
    assert bench.states("a") == ["CANCELLED"]


def test_what_the_worker_does_not_allow_fails_with_the_reason_and_the_next_run_starts(make_bench: MakeBench) -> None:
    bench = make_bench(allowed=Allowed(["gssm.train"], [Path("/sets")]), slots=1)
    other = bench.service.add("a", experiment(), app="gssm.entropy")
    file = {"path": "/etc/passwd", "batch_size": 8}
    elsewhere = bench.service.add("b", experiment() | {"data": file})
    bench.service.add("c", experiment())
    for _ in range(3):
        bench.settle()
    assert bench.states("a") == bench.states("b") == ["FAILED"]
    reason = "this worker does not run the app 'gssm.entropy'; its allow.apps are: gssm.train"
    assert other.ended.reason == reason
    assert elsewhere.ended.reason == "data.path: '/etc/passwd' is not below one of the worker's allow.roots: /sets"
    assert bench.states("c") == ["RUNNING"]
    assert bench.executor.starts == {"c": 1}


def test_a_restarted_machine_interrupts_its_runs(make_bench: MakeBench) -> None:
    bench = make_bench(executor=LocalExecutor(command=lambda _attempt, _spec: ["sleep", "600"]))
    attempt = bench.service.add("a", experiment())
    attempt.state, attempt.worker = AttemptState.RUNNING, None
    bench.directory("a").mkdir(parents=True)
    claim = Claim.of_this_process()._replace(boot_id="another")
    assert take_claim(bench.directory("a"), claim)
    bench.service.give_to("a", None)
    bench.settle()
    assert bench.states("a") == ["INTERRUPTED"]
    assert attempt.ended.reason == "the machine has been restarted"


# -- a service that does not take the worker, or not all of it ---------------------------------------------------------


def test_a_service_of_an_older_version_is_told_less(make_bench: MakeBench, caplog: pytest.LogCaptureFixture) -> None:
    bench = make_bench()
    bench.service.older = frozenset({"problems", "labels"})
    bench.service.add("a", experiment())
    bench.settle()
    assert bench.states("a") == ["RUNNING"]
    (registration,) = bench.service.workers.values()
    assert not {"problems", "labels"} & registration.keys()
    assert caplog.text.count("of an older version and does not know: labels, problems") == 1


def test_what_the_worker_says_of_itself_is_sent_when_it_changes(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.sync()
    (registration,) = bench.service.workers.values()
    assert registration["problems"] == []
    bench.settings.run_root.rmdir()
    bench.daemon._watch.step()
    bench.service.add("a", experiment())
    bench.sync()
    bench.sync()
    (registration,) = bench.service.workers.values()
    (problem,) = registration["problems"]
    assert "cannot write in the run root" in problem
    assert bench.service.attempts["a"].worker is None  # nothing is taken meanwhile
    bench.settings.run_root.mkdir()
    bench.daemon._watch.step()
    bench.settle()
    (registration,) = bench.service.workers.values()
    assert registration["problems"] == []
    assert bench.states("a") == ["RUNNING"]


def test_a_worker_with_runs_in_its_hands_outlasts_an_expired_token(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.service.add("a", experiment())
    bench.settle()
    bench.service.token = "another"
    bench.crash()
    with pytest.raises(Unauthorized):
        bench.daemon.sync()
    finish(bench, "a")
    bench.tick()
    bench.service.token = None
    bench.settle()
    assert bench.states("a") == ["RUNNING", "SUCCEEDED"]


def test_a_worker_without_any_ends_with_the_reason(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.service.token = "another"
    with pytest.raises(NotAccepted, match=r"token \(this token has expired\) - name a file with --token-file, or set"):
        bench.daemon.sync()


def test_a_home_without_room_is_told_and_the_lease_is_taken_later(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench()
    bench.service.add("a", experiment())

    def fail(_record: Record) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(bench.journal, "hold", fail)
        syncing = threading.Thread(target=bench.daemon._sync_forever, daemon=True)
        syncing.start()
        words = f"cannot write in {bench.folder}: database or disk is full - is the disk full?; jobs go on"
        eventually(lambda: words in caplog.text)
        assert bench.jobs == []
    eventually(lambda: bench.jobs, what="the lease, delivered again")
    bench.daemon._closed.set()
    syncing.join(60)
    assert not syncing.is_alive()
    assert caplog.text.count(words) == 1
    bench.settle()
    assert bench.states("a") == ["RUNNING"]


@pytest.mark.parametrize("told", [True, False])
def test_a_home_without_room_does_not_keep_a_worker_from_interrupting_its_runs(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, told: bool
) -> None:
    bench = make_bench()
    bench.service.add("a", experiment())
    bench.service.add("b", experiment())
    for _ in range(2):
        bench.sync()
    if told:  # that they run
        bench.settle()

    def fail(*_given: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        for writes in ("end", "intend", "acknowledge", "forget"):
            patch.setattr(bench.journal, writes, fail)
        for job in bench.jobs:
            job.step()
        bench.daemon._end_jobs("interrupt")
        bench.daemon._end_jobs("interrupt")
        for _ in range(3):
            bench.now += 60
            for job in bench.jobs:
                job.step()
    assert bench.executor.executing == set()
    assert all(job.ended for job in bench.jobs)
    words = f"cannot write in {bench.folder}: database or disk is full - is the disk full?"
    assert caplog.text.count(f"{words}; the runs are ended all the same") == 1
    assert caplog.text.count(f"{words}; trying again") == 2  # of each run, once
    bench.crash()
    bench.settle()
    for name in ("a", "b"):
        assert len(bench.states(name)) == 2, bench.states(name)
        assert bench.service.attempts[name].state.terminal


def test_a_lost_journal_is_made_good_by_adoption(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench()
    bench.service.add("a", experiment())
    bench.settle()
    bench.journal.close()
    for path in tmp_path.glob("worker.sqlite*"):
        path.unlink()
    bench.start_worker()
    bench.settle()
    assert bench.jobs == []  # it is another worker now, and the lease of the first has not expired
    bench.service.give_to("a", None)
    bench.settle()
    assert [job.attempt.id for job in bench.jobs] == ["a"]
    finish(bench, "a")
    bench.settle()
    assert bench.states("a") == ["RUNNING", "SUCCEEDED"]
    assert bench.executor.starts == {"a": 1}


def test_adopted_runs_count_against_the_slots(make_bench: MakeBench) -> None:
    bench = make_bench(slots=2)
    for i in range(3):
        stored = bench.service.add(f"old{i}", experiment())
        stored.state, stored.worker, stored.epoch = AttemptState.RUNNING, "gone", 1
    bench.sync()
    (worker,) = bench.service.workers
    for i in range(3):
        bench.service.give_to(f"old{i}", worker)
    bench.sync()
    assert len(bench.jobs) == 3
    bench.service.add("new", experiment())
    bench.sync()
    assert bench.service.attempts["new"].worker is None
