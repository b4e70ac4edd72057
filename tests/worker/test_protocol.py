"""The daemon and its jobs against the service in memory, under any order of events: the protocol's invariants."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nanollama.api.status import AttemptState
from tests.support.examples import experiment
from tests.support.worker_bench import RESULT, Bench, finish
from worker.executors.base import Attempt, Phase, Status
from worker.executors.fake import FakeExecutor
from worker.executors.local import LocalExecutor


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with closing(Bench(tmp_path)) as bench:
        yield bench


ENDS = ["success", "no result", "failure", "signal", "vanish"]


class ProtocolMachine(RuleBasedStateMachine):
    """Crashes, outages, lost replies, lost leases and cancels in any order."""

    @initialize(running=st.booleans(), ends=st.lists(st.sampled_from(ENDS), min_size=3, max_size=3))
    def begin(self, running: bool, ends: list[str]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.bench = Bench(Path(self._folder.name), slots=3)
        self.names = [f"a{i}" for i in range(3)]
        for name in self.names:
            self.bench.service.add(name, experiment())
        self.ends = dict(zip(self.names, ends, strict=True))
        self.ended_before: dict[str, AttemptState] = {}
        if running:
            self.bench.settle()

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        try:
            self.check_that_all_end()
        finally:
            self.bench.close()
            self._folder.cleanup()

    def check_that_all_end(self) -> None:
        bench = self.bench
        for attempt in bench.service.attempts.values():
            if attempt.worker == "another":
                attempt.worker = None
        for _ in self.names:
            bench.settle()
            for i in range(len(self.names)):
                self.run_ends(i)
        bench.settle()
        for name, attempt in bench.service.attempts.items():
            assert attempt.state.terminal, (name, attempt.state)
            if attempt.state is AttemptState.SUCCEEDED:
                assert attempt.ended.exit_code == 0
                assert attempt.ended.result == RESULT
            stdout = bench.directory(name) / "stdout.log"
            if stdout.exists():
                assert attempt.streams.get("stdout.log", b"") == stdout.read_bytes()
        assert bench.journal.held() == []
        assert bench.executor.executing == set()

    def phase(self, name: str) -> Phase | None:
        status = self.bench.executor.statuses.get(name)
        return status.phase if status else None

    @rule()
    def all_goes_well_for_a_while(self) -> None:
        self.bench.sync()
        self.bench.tick()
        self.bench.tick()

    @rule()
    def sync(self) -> None:
        self.bench.sync()

    @rule()
    def tick(self) -> None:
        self.bench.tick()

    @rule()
    def time_passes(self) -> None:
        self.bench.now += 30.0

    @rule()
    def crash(self) -> None:
        self.bench.crash()

    @rule()
    def toggle_outage(self) -> None:
        self.bench.service.away = not self.bench.service.away

    @rule(count=st.integers(1, 2))
    def lose_replies(self, count: int) -> None:
        self.bench.service.lose_replies = count

    @rule(i=st.integers(0, 2))
    def cancel(self, i: int) -> None:
        self.bench.service.cancel(self.names[i])

    @rule(i=st.integers(0, 2))
    def lease_expires(self, i: int) -> None:
        if self.bench.service.attempts[self.names[i]].worker is not None:
            self.bench.service.give_to(self.names[i], None)

    @rule(i=st.integers(0, 2), data=st.binary(min_size=1, max_size=20))
    def run_writes(self, i: int, data: bytes) -> None:
        if self.phase(self.names[i]) is Phase.RUNNING:
            with open(self.bench.directory(self.names[i]) / "stdout.log", "ab") as file:
                file.write(data)

    @rule(i=st.integers(0, 2))
    def run_ends(self, i: int) -> None:
        name, how = self.names[i], self.ends[self.names[i]]
        if self.phase(name) is not Phase.RUNNING:
            return
        if how == "success":
            finish(self.bench, name)
        elif how == "vanish":
            self.bench.executor.vanish(name)
        elif how == "signal":
            self.bench.executor.finish(name, exit_code=None, signal=9)
        else:
            self.bench.executor.finish(name, exit_code=0 if how == "no result" else 1)

    @rule()
    def worker_is_told_to_interrupt(self) -> None:
        for job in self.bench.jobs:
            job.end("interrupt")

    @precondition(lambda self: hasattr(self, "bench"))
    @invariant()
    def code_ran_at_most_once(self) -> None:
        assert all(count == 1 for count in self.bench.executor.starts.values())

    @precondition(lambda self: hasattr(self, "bench"))
    @invariant()
    def terminal_means_nothing_executes_and_is_absorbing(self) -> None:
        for name, attempt in self.bench.service.attempts.items():
            if attempt.state.terminal:
                assert name in self.bench.executor.statuses  # it has run, or was forbidden to
                assert name not in self.bench.executor.executing
                assert self.ended_before.setdefault(name, attempt.state) is attempt.state


TestProtocol = ProtocolMachine.TestCase
TestProtocol.settings = settings(deadline=None, max_examples=30, stateful_step_count=40)


def states(bench: Bench, attempt_id: str) -> list[str]:
    return [str(request.to) for request in bench.service.attempts[attempt_id].transitions]


def test_a_run_is_started_shipped_and_reported(bench: Bench) -> None:
    attempt = bench.service.add("a", experiment())
    bench.settle()
    assert states(bench, "a") == ["RUNNING"]
    assert attempt.transitions[0].attempt_dir == str(bench.directory("a"))
    (bench.directory("a") / "stdout.log").write_bytes(b"hello\nwor")
    finish(bench, "a")
    bench.settle()
    assert states(bench, "a") == ["RUNNING", "SUCCEEDED"]
    assert attempt.ended.result == RESULT
    assert attempt.streams["stdout.log"] == b"hello\nwor"
    assert bench.journal.held() == []


def test_never_asks_for_more_than_its_slots(bench: Bench) -> None:
    for i in range(5):
        bench.service.add(f"a{i}", experiment())
    bench.settle()
    assert sum(bench.executor.starts.values()) == 2


def test_asks_for_nothing_before_what_it_held_is_known(bench: Bench) -> None:
    bench.service.add("a1", experiment())
    bench.service.add("a2", experiment())
    bench.settle()
    for record in bench.journal.held():
        bench.journal.forget(record)  # the journal has lost them, the service has not
    bench.crash()
    bench.service.add("a3", experiment())
    bench.settle()
    assert len(bench.jobs) == 2
    assert bench.executor.starts == {"a1": 1, "a2": 1}


def test_a_report_is_repeated_under_its_id_until_acknowledged(bench: Bench) -> None:
    attempt = bench.service.add("a", experiment())
    bench.settle()
    finish(bench, "a")
    bench.service.lose_replies = 1
    bench.now += 60
    bench.tick()
    assert states(bench, "a") == ["RUNNING", "SUCCEEDED"]
    assert len(bench.journal.held()) == 1
    bench.crash()
    bench.settle()
    assert states(bench, "a") == ["RUNNING", "SUCCEEDED"]
    assert attempt.state is AttemptState.SUCCEEDED
    assert bench.journal.held() == []


def test_a_lost_reply_does_not_cost_the_lease(bench: Bench) -> None:
    attempt = bench.service.add("a", experiment())
    bench.sync()
    bench.sync()
    bench.tick()  # starts
    bench.service.lose_replies = 1
    bench.now += 60
    bench.tick()  # reports RUNNING, and does not learn that it was heard
    assert states(bench, "a") == ["RUNNING"]
    bench.settle()
    assert states(bench, "a") == ["RUNNING"]
    assert (attempt.epoch, len(bench.jobs)) == (1, 1)


def test_what_a_vanished_supervisor_has_left_is_ended_first(bench: Bench) -> None:
    bench.service.add("a", experiment())
    bench.settle()
    bench.executor.vanish("a")
    assert bench.executor.executing == {"a"}
    bench.settle()
    assert states(bench, "a") == ["RUNNING", "INTERRUPTED"]
    assert bench.executor.executing == set()


def test_cancel_before_the_start_forbids_it(bench: Bench) -> None:
    attempt = bench.service.add("a", experiment())
    attempt.cancel_requested = True
    bench.settle()
    assert states(bench, "a") == ["CANCELLED"]
    assert bench.executor.starts == {}


def test_cancel_ends_the_run(bench: Bench) -> None:
    bench.service.add("a", experiment())
    bench.settle()
    bench.service.cancel("a")
    bench.settle()
    assert states(bench, "a") == ["RUNNING", "CANCELLED"]


def test_a_run_that_succeeds_before_the_cancel_reaches_it_has_succeeded(bench: Bench) -> None:
    bench.service.add("a", experiment())
    bench.settle()
    finish(bench, "a")
    bench.service.cancel("a")
    bench.settle()
    assert states(bench, "a") == ["RUNNING", "SUCCEEDED"]


def test_what_does_not_obey_is_killed(bench: Bench) -> None:
    bench.executor.obedient = False
    bench.service.add("a", experiment())
    bench.settle()
    bench.service.cancel("a")
    bench.sync()
    bench.tick()
    assert states(bench, "a") == ["RUNNING"]
    bench.settle()
    assert states(bench, "a") == ["RUNNING", "CANCELLED"]


def test_an_interrupted_run_is_asked_first(bench: Bench) -> None:
    bench.service.add("a", experiment())
    bench.settle()
    bench.jobs[0].end("interrupt")
    bench.tick()
    assert (bench.directory("a") / "stop_requested").exists()
    bench.settle()
    assert states(bench, "a") == ["RUNNING", "INTERRUPTED"]


def test_a_lost_lease_leaves_the_process_alone(bench: Bench) -> None:
    bench.service.add("a", experiment())
    bench.settle()
    bench.service.give_to("a", "another")
    bench.settle()
    assert bench.jobs == []
    assert bench.journal.held() == []
    assert bench.executor.statuses["a"].phase is Phase.RUNNING


@pytest.mark.parametrize("call", ["streams", "transitions"])
def test_a_stale_epoch_drops_the_record(bench: Bench, call: str) -> None:
    bench.service.add("a", experiment())
    bench.settle()
    bench.service.give_to("a", "another")
    if call == "streams":
        (bench.directory("a") / "stdout.log").write_bytes(b"late\n")
    else:
        finish(bench, "a")
    bench.now += 60
    bench.tick()
    assert bench.jobs == []
    assert bench.journal.held() == []
    assert states(bench, "a") == ["RUNNING"]


def test_a_run_that_cannot_start_fails_with_the_reason(bench: Bench) -> None:
    bench.executor.refusal = "the disk is full"
    attempt = bench.service.add("a", experiment())
    bench.settle()
    assert states(bench, "a") == ["FAILED"]
    assert attempt.ended.reason == "the disk is full"


@pytest.fixture(params=[FakeExecutor, LocalExecutor])
def rootless(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A worker that has taken the run "a", and whose run root has become a file."""
    with closing(Bench(tmp_path, executor=request.param())) as bench:
        bench.settings.run_root.rmdir()
        bench.settings.run_root.write_text("")
        bench.service.add("a", experiment())
        for _ in range(2):
            bench.sync()
        yield bench


def bear(bench: Bench) -> None:
    """The job hopes for a while."""
    for _ in range(10):
        with pytest.raises(NotADirectoryError):
            bench.tick()


def test_a_run_root_that_cannot_be_written_fails_the_run_after_a_while(rootless: Bench) -> None:
    bear(rootless)
    assert states(rootless, "a") == []
    rootless.tick()
    assert states(rootless, "a") == ["FAILED"]
    reason = f"cannot write {rootless.directory('a')}: Not a directory - check the worker's --run-root"
    assert rootless.service.attempts["a"].ended.reason == reason
    assert (rootless.jobs, rootless.journal.held()) == ([], [])


def test_a_cancel_needs_no_run_root(rootless: Bench) -> None:
    bear(rootless)
    rootless.service.cancel("a")
    rootless.sync()
    for _ in range(2):
        rootless.tick()
    assert states(rootless, "a") == ["CANCELLED"]


def test_a_run_root_that_comes_back_in_time_costs_nothing(bench: Bench) -> None:
    bench.settings.run_root.rmdir()
    bench.settings.run_root.write_text("")
    bench.service.add("a", experiment())
    for _ in range(2):
        bench.sync()
    bear(bench)
    bench.settings.run_root.unlink()
    bench.settings.run_root.mkdir()
    for _ in range(2):
        bench.tick()
    assert states(bench, "a") == ["RUNNING"]


def test_a_step_of_an_ending_that_fails_is_taken_again(tmp_path: Path) -> None:
    class Deaf(FakeExecutor):
        """Cannot be told to stop at first: the file system of the claim does not answer."""

        deaf = 2

        def stop(self, attempt: Attempt) -> None:
            if self.deaf:
                self.deaf -= 1
                raise OSError(errno.EIO, "Input/output error")
            super().stop(attempt)

    with closing(Bench(tmp_path, executor=Deaf())) as bench:
        bench.service.add("a", experiment())
        for _ in range(2):
            bench.sync()
        bench.tick()
        bench.tick()
        bench.service.cancel("a")
        bench.sync()
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output"):
                bench.tick()
        for _ in range(2):
            bench.tick()  # a second each: long before the kill would be due
        assert states(bench, "a") == ["RUNNING", "CANCELLED"]


@pytest.mark.parametrize("life", ["same", "next"])
def test_what_may_run_out_of_sight_is_never_given_up(tmp_path: Path, life: str) -> None:
    class Hidden(FakeExecutor):
        """Loses sight of what it has started, before anybody has seen it."""

        def look(self, attempt: Attempt) -> Status:
            if attempt.id in self.starts:
                raise NotADirectoryError(20, "Not a directory")
            return super().look(attempt)

    with closing(Bench(tmp_path, executor=Hidden())) as bench:
        bench.service.add("a", experiment())
        for _ in range(2):
            bench.sync()
        bench.tick()
        if life == "next":
            bench.crash()
        bear(bench)
        bench.now += 1000
        bear(bench)
        assert states(bench, "a") == []


def test_a_run_id_that_leads_elsewhere_is_refused(bench: Bench) -> None:
    attempt = bench.service.add("a", experiment(), run_id="../../etc")
    bench.settle()
    assert states(bench, "a") == ["FAILED"]
    assert "cannot name a folder" in (attempt.ended.reason or "")
    assert list(bench.settings.run_root.iterdir()) == []


def test_a_service_that_has_forgotten_the_worker_is_told_again(bench: Bench) -> None:
    bench.sync()
    bench.service.workers.clear()
    bench.sync()
    bench.service.add("a", experiment())
    bench.settle()
    assert bench.executor.starts == {"a": 1}


def test_an_attempt_without_files_is_not_started_again(bench: Bench) -> None:
    attempt = bench.service.add("a", experiment())
    bench.settle()
    del bench.executor.statuses["a"]
    bench.settle()
    assert states(bench, "a") == ["RUNNING"]  # something of it is left
    assert "files are gone" in (attempt.unknown or "")
    bench.executor.executing.clear()
    bench.settle()
    assert states(bench, "a") == ["RUNNING", "INTERRUPTED"]
    assert bench.executor.starts == {"a": 1}
    assert "files are gone" in (attempt.ended.reason or "")


def test_a_run_that_ends_before_its_wait_could_be_told_has_run(bench: Bench) -> None:
    bench.service.add("a", experiment())
    for _ in range(2):
        bench.sync()
    bench.executor.statuses["a"] = Status(Phase.SUBMITTED, reason="it waits")
    bench.directory("a").mkdir(parents=True)
    bench.service.away = True
    bench.tick()
    bench.executor.statuses["a"] = Status(Phase.RUNNING)
    finish(bench, "a")
    bench.tick()
    bench.settle()
    assert states(bench, "a") == ["SUBMITTED", "RUNNING", "SUCCEEDED"]


def test_a_run_without_room_waits_for_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_attempt: Attempt) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    bench.service.add("a", experiment())
    for _ in range(2):
        bench.sync()
    with monkeypatch.context() as patch:
        patch.setattr(bench.executor, "start", full)
        for _ in range(30):
            with pytest.raises(OSError, match="No space left"):
                bench.tick()
    bench.tick()
    bench.tick()
    assert states(bench, "a") == ["RUNNING"]
