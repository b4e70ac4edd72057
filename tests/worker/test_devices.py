"""Accelerators and CPUs of local runs: nobody has what another has, whatever restarts."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nanollama.api.schemas import Lease
from nanollama.api.status import AttemptState
from tests.support.examples import experiment
from tests.support.waiting import eventually
from worker.executors.base import Attempt, Busy, Refused
from worker.executors.devices import Devices, find_supervised
from worker.executors.local import LocalExecutor
from worker.journal import Journal, Record

SHOW = "import os, time; print(*(os.environ.get(k) for k in ('CUDA_VISIBLE_DEVICES', 'OMP_NUM_THREADS')), flush=True); "


class Machine:
    """A worker's memory, and runs that show what they were given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = Journal(folder / "worker.sqlite")
        self.attempts: dict[str, Attempt] = {}
        self.executors: list[LocalExecutor] = []
        self.code = SHOW + "time.sleep(600)"

    def executor(self, *names: str, cpus: int | None = None) -> LocalExecutor:
        """The executor of a life of the worker."""
        devices = Devices(names, self.journal)
        command = [sys.executable, "-c", self.code]
        executor = LocalExecutor(grace=0.5, command=lambda _attempt, _spec: command, devices=devices, cpus=cpus)
        self.executors.append(executor)
        return executor

    def attempt(self, name: str, **cluster: object) -> Attempt:
        """An attempt, held by the worker."""
        attempt_id = f"{name}-{uuid.uuid4().hex}"
        directory = self.folder / "runs" / name / "1"
        config = experiment() | {"cluster": cluster}
        attempt = self.attempts[name] = Attempt(attempt_id, directory, "gssm.train", config)
        lease = Lease(
            attempt_id=attempt_id,
            run_id=name,
            run_name=name,
            number=1,
            epoch=1,
            state=AttemptState.LEASED,
            app="gssm.train",
            config=config,
        )
        self.journal.hold(Record(lease, directory, AttemptState.LEASED))
        return attempt

    def forget(self, attempt: Attempt) -> None:
        """The worker does not hold it any more."""
        for record in self.journal.held():
            if record.lease.attempt_id == attempt.id:
                self.journal.forget(record)

    def shown(self, attempt: Attempt) -> str:
        """What the run has printed."""
        path = attempt.directory / "stdout.log"
        return eventually(lambda: path.exists() and path.read_text()).strip()

    def close(self) -> None:
        for attempt in self.attempts.values():
            LocalExecutor().kill(attempt)
            for executor in self.executors:
                executor.release(attempt)
        self.journal.close()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    machine = Machine(tmp_path)
    yield machine
    machine.close()


def test_two_runs_see_different_accelerators_and_a_third_waits(machine: Machine) -> None:
    executor = machine.executor("4", "GPU-7a", "5")
    one, two, three = machine.attempt("one", nproc_per_node=2), machine.attempt("two"), machine.attempt("three")
    executor.start(one)
    executor.start(two)
    with pytest.raises(Busy, match="it wants 1 accelerators, and 0 of 3 are free"):
        executor.start(three)
    assert not three.directory.exists()
    assert machine.shown(one).split()[0] == "4,GPU-7a"
    assert machine.shown(two).split()[0] == "5"
    executor.kill(two)
    executor.release(two)
    executor.start(three)
    assert machine.shown(three).split()[0] == "5"


def test_a_restarted_worker_remembers_who_has_what(machine: Machine) -> None:
    first, one, two = machine.executor("0", "1"), machine.attempt("one"), machine.attempt("two")
    first.start(one)
    second = machine.executor("0", "1")
    second.start(two)
    assert machine.shown(one).split()[0] == "0"
    assert machine.shown(two).split()[0] == "1"


def test_what_was_meant_for_a_run_that_was_not_started_is_its_own(machine: Machine) -> None:
    one, two = machine.attempt("one"), machine.attempt("two")
    Devices(["0", "1"], machine.journal).take(one.id, 1)  # and then the worker was killed
    later = Devices(["0", "1"], machine.journal)
    assert later.take(two.id, 1) == ("1",)
    assert later.take(one.id, 1) == ("0",)
    machine.forget(one)
    assert Devices(["0", "1"], machine.journal).take(machine.attempt("three").id, 1) == ("0",)


def test_a_run_that_the_journal_does_not_know_keeps_its_accelerator(machine: Machine) -> None:
    executor, one, two = machine.executor("0", "1"), machine.attempt("one"), machine.attempt("two")
    executor.start(one)
    machine.shown(one)
    machine.forget(one)
    machine.journal.unassign(one.id)
    assert machine.executor("0", "1")._devices.take(two.id, 1) == ("1",)  # type: ignore[union-attr] # it has some
    (stray,) = [run for run in find_supervised() if run.attempt_id == one.id]
    assert (stray.devices, stray.directory) == (("0",), one.directory)
    words = executor.find_strays(machine.folder / "runs")[one.id]
    assert f"{one.directory} is executed here by process {stray.pid}, of which this worker's journal does not" in words
    assert one.id not in executor.find_strays(machine.folder / "elsewhere")


def test_a_run_on_the_cpu_sees_none(machine: Machine) -> None:
    machine.code = "import os; print(repr(os.environ.get('CUDA_VISIBLE_DEVICES')))"
    executor, one = machine.executor("0"), machine.attempt("one", device="cpu")
    executor.start(one)
    assert machine.shown(one) == "''"


def test_more_ranks_than_accelerators_are_refused(machine: Machine) -> None:
    with pytest.raises(Refused, match="it wants 4 accelerators, one for each rank, and this worker has 2"):
        machine.executor("0", "1").start(machine.attempt("one", nproc_per_node=4))


@pytest.mark.parametrize(
    ("cpus", "ranks", "outer", "shown"), [(12, 1, None, "12"), (12, 4, None, "3"), (2, 4, None, "1"), (12, 1, "5", "5")]
)
def test_slots_and_ranks_share_the_cpus(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, cpus: int, ranks: int, outer: str | None, shown: str
) -> None:
    if outer is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", outer)
    executor, one = machine.executor(cpus=cpus), machine.attempt("one", nproc_per_node=ranks)
    executor.start(replace(one))
    assert machine.shown(one) == f"None {shown}"
    assert os.environ.get("OMP_NUM_THREADS") == outer
