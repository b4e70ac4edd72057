"""One fault at a time, on real processes: what a user sees; the promises of the protocol are checked after each."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nanollama.api.schemas import Run
from nanollama.api.status import AttemptState, RunState
from nanollama.spec.rundir import EXIT, START_CLAIM
from tests.support.examples import tiny_yaml
from tests.support.faults import FaultWorld, fault_world, is_rank
from tests.support.postgres import start_or_skip
from tests.support.waiting import eventually

pytestmark = pytest.mark.xdist_group("faults")


def succeed(world: FaultWorld, run_id: str, *, attempt: int = 1) -> None:
    world.tell(run_id, "finish")
    assert world.wait_for(run_id, RunState.SUCCEEDED).attempt == attempt


def passed(world: FaultWorld, run_id: str) -> list[str | None]:
    return [event.to_state for event in world.client.events(run_id) if event.kind == "transition"]


# -- kills -------------------------------------------------------------------------------------------------------------


def test_a_killed_worker_costs_nothing(world: FaultWorld) -> None:
    run_id = world.submit()
    world.wait_for_steps(run_id)
    world.kill_worker()
    before = world.steps_made(run_id)
    eventually(lambda: world.steps_made(run_id) > before + 10, what="steps without a worker")
    world.start_worker()
    succeed(world, run_id)
    assert passed(world, run_id) == ["QUEUED", "LEASED", "RUNNING", "SUCCEEDED"]


def test_a_killed_service_costs_nothing(world: FaultWorld) -> None:
    run_id = world.submit()
    world.wait_for_steps(run_id)
    world.kill_server()
    before = world.steps_made(run_id)
    eventually(lambda: world.steps_made(run_id) > before + 10, what="steps without a service")
    world.start_server()
    succeed(world, run_id)
    assert passed(world, run_id) == ["QUEUED", "LEASED", "RUNNING", "SUCCEEDED"]


def test_a_killed_supervisor_interrupts_the_run_which_goes_on_from_its_checkpoint(world: FaultWorld) -> None:
    run_id = world.submit()
    world.wait_for_steps(run_id)
    world.tell(run_id, "save")
    eventually(lambda: world.client.checkpoints(run_id), what="a checkpoint")
    world.kill_supervisor(run_id)
    world.wait_for_start(run_id, attempt=2)
    succeed(world, run_id, attempt=2)
    first, second = world.attempts(run_id)
    assert (first.state, second.state) == (AttemptState.INTERRUPTED, AttemptState.SUCCEEDED)
    assert "supervisor has vanished without an account" in (first.reason or "")


def test_a_killed_program_fails_in_words(world: FaultWorld) -> None:
    run_id = world.submit()
    world.wait_for_steps(run_id)
    (program,) = world.processes(run_id)
    program.kill()
    run = world.wait_for(run_id, RunState.FAILED)
    assert (run.reason or "").startswith("killed (SIGKILL)")


@pytest.mark.faults
def test_a_killed_rank_takes_the_others_with_it_and_fails_in_words(tmp_path: Path) -> None:
    with fault_world(tmp_path) as world:
        world.start_worker(program="worker")
        cluster = {"nproc_per_node": 2, "device": "cpu"}
        run_id = world.submit(config=None, yaml=f"{tiny_yaml(100_000)}cluster: {cluster}\n")
        world.wait_for_steps(run_id, 20)
        ranks = [p for p in world.processes(run_id) if is_rank(p)]
        assert len(ranks) == 2
        ranks[1].kill()
        run = world.wait_for(run_id, RunState.FAILED)
        assert "a rank was killed (SIGKILL)" in (run.reason or "")
        world.settle()


# -- the service is out of reach ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["refuse", pytest.param("swallow", marks=pytest.mark.faults)])
@pytest.mark.parametrize("moment", ["start", "run", "end"])
def test_a_service_out_of_reach_is_waited_for(world: FaultWorld, moment: str, mode: str) -> None:
    run_id = world.submit()
    if moment == "start":
        eventually((world.run_dir(run_id) / "1" / START_CLAIM).exists, what="the claim")
    else:
        world.wait_for_steps(run_id)
    world.proxy.set("refuse" if mode == "refuse" else "swallow")
    if moment == "run":
        before = world.steps_made(run_id)
        eventually(lambda: world.steps_made(run_id) > before + 20, what="steps out of reach")
    else:
        world.tell(run_id, "finish")
        eventually((world.run_dir(run_id) / "1" / EXIT).exists, what="the end")
        assert not world.client.run(run_id).state.terminal
    world.proxy.set("pass")
    succeed(world, run_id)
    assert passed(world, run_id) == ["QUEUED", "LEASED", "RUNNING", "SUCCEEDED"]


def test_lost_answers_change_nothing(world: FaultWorld) -> None:
    """Every third answer is lost after the service has done what it was asked."""
    before, turns = world.proxy.lost, itertools.cycle((True, False, False))
    world.proxy.lose_some(lambda: next(turns))
    runs = [world.submit() for _ in range(3)]
    for run_id in runs:
        world.wait_for_start(run_id)
        world.tell(run_id, "finish")
    for run_id in runs:
        assert world.wait_for(run_id, RunState.SUCCEEDED).attempt == 1
        assert passed(world, run_id) == ["QUEUED", "LEASED", "RUNNING", "SUCCEEDED"]
    assert world.proxy.lost >= before + 3


# -- leases and clocks -------------------------------------------------------------------------------------------------


def test_a_worker_that_sleeps_past_its_lease_is_replaced_and_changes_nothing_when_it_wakes(world: FaultWorld) -> None:
    run_id = world.submit()
    world.wait_for_steps(run_id)
    world.pause_worker()
    world.start_worker("b")
    try:
        eventually(lambda: "adopted" in [e.kind for e in world.client.events(run_id)], what="the adoption")
        world.wait_for_steps(run_id)
        world.wake_worker()
        words = "this worker does not hold it any more; its process is left alone"
        eventually(lambda: words in world.log_tail(), what="the end of the old lease")
        succeed(world, run_id)
        (attempt,) = world.attempts(run_id)
        assert attempt.epoch == 2
    finally:
        world.kill_worker("b")


@pytest.mark.parametrize("seconds", [3600.0, pytest.param(-3600.0, marks=pytest.mark.faults)])
def test_a_step_of_the_clock_starts_nothing_twice(world: FaultWorld, seconds: float) -> None:
    run_id = world.submit()
    world.wait_for_steps(run_id)
    world.start_worker("b")
    try:
        eventually(lambda: sum(worker.alive for worker in world.client.workers()) >= 2, what="the second worker")
        world.step_clock(seconds)
        world.wait_for_steps(run_id)
        other = world.submit()
        world.wait_for_start(other)
        world.step_clock(0.0)
        for each in (run_id, other):
            succeed(world, each)
    finally:
        world.kill_worker("b")


def test_a_worker_that_dies_as_the_clock_is_put_back_is_replaced(world: FaultWorld) -> None:
    run_id = world.submit()
    world.wait_for_steps(run_id)
    world.kill_worker()
    world.step_clock(-3600.0)
    world.start_worker("b")
    try:
        world.wait_for_steps(run_id)
        succeed(world, run_id)
        assert "adopted" in [event.kind for event in world.client.events(run_id)]
    finally:
        world.kill_worker("b")
        world.start_worker()


# -- cancels -----------------------------------------------------------------------------------------------------------


def test_a_cancel_of_a_queued_run_is_done_at_once(world: FaultWorld) -> None:
    world.client.pause_queue()
    try:
        run_id = world.submit()
        assert world.client.cancel(run_id).state is RunState.CANCELLED
    finally:
        world.client.resume_queue()
    assert world.starts(run_id) == []


def test_a_cancel_of_a_leased_run_forbids_its_start(world: FaultWorld) -> None:
    """The answer with the lease is lost: the service has leased it, and the worker does not know."""
    before = world.submit()
    world.wait_for_start(before)
    succeed(world, before)  # the worker is known, and asks for more
    world.proxy.set("lose")
    run_id = world.submit()
    world.wait_for(run_id, RunState.LEASED)
    world.client.cancel(run_id)
    world.proxy.set("pass")
    run = world.wait_for(run_id, RunState.CANCELLED)
    assert run.reason == "cancelled before it started"
    assert world.starts(run_id) == []


@pytest.mark.parametrize("deaf", [False, True])
def test_a_cancel_of_a_running_run_ends_it(world: FaultWorld, deaf: bool) -> None:
    run_id = world.submit()
    if deaf:
        world.tell(run_id, "stubborn")
    world.wait_for_steps(run_id)
    world.client.cancel(run_id)
    world.wait_for(run_id, RunState.CANCELLED)
    assert world.processes(run_id) == []


def test_a_cancel_without_a_worker_is_carried_out_by_its_next_life(world: FaultWorld) -> None:
    run_id = world.submit()
    world.wait_for_steps(run_id)
    world.kill_worker()
    assert world.client.cancel(run_id).state is RunState.RUNNING
    world.start_worker()
    world.wait_for(run_id, RunState.CANCELLED)
    assert world.processes(run_id) == []


def test_a_cancel_after_the_end_changes_nothing(world: FaultWorld) -> None:
    run_id = world.submit()
    world.wait_for_start(run_id)
    succeed(world, run_id)
    assert world.client.cancel(run_id).state is RunState.SUCCEEDED


# -- disks and databases -----------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own whose size can be changed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def resize(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


@pytest.mark.faults
def test_a_run_whose_disk_is_full_goes_on_when_there_is_room(small_disk: Path, tmp_path: Path) -> None:
    with fault_world(tmp_path, root=small_disk) as world:
        world.start_worker()
        run_id = world.submit()
        world.wait_for_steps(run_id)
        world.tell(run_id, "save")
        eventually(lambda: world.client.checkpoints(run_id), what="a checkpoint")
        (program,) = world.processes(run_id)
        used = os.statvfs(small_disk)
        resize(small_disk, str((used.f_blocks - used.f_bfree) * used.f_frsize))
        eventually(lambda: not program.is_running() or program.status() == psutil.STATUS_ZOMBIE, what="its end")
        attempt_dir = world.run_dir(run_id) / "1"
        seen = attempt_dir.stat().st_mtime_ns
        eventually(lambda: attempt_dir.stat().st_mtime_ns != seen, what="a try to write how it has ended")
        assert not (attempt_dir / EXIT).exists()
        assert not world.client.run(run_id).state.terminal
        resize(small_disk, "2g")
        world.wait_for_start(run_id, attempt=2)
        succeed(world, run_id, attempt=2)
        first, _ = world.attempts(run_id)
        assert first.state is AttemptState.INTERRUPTED
        assert "was full" in (first.reason or "")
        world.settle()


@pytest.mark.faults
def test_a_worker_whose_home_is_full_ends_its_runs_and_is_there_again_when_there_is_room(
    small_disk: Path, tmp_path: Path
) -> None:
    with fault_world(tmp_path) as world:
        options = ("--home", str(small_disk), "--stop-jobs-on-exit")
        world.start_worker("a", *options)
        run_id = world.submit()
        world.wait_for_steps(run_id)
        (program,) = world.processes(run_id)
        used = os.statvfs(small_disk)
        resize(small_disk, str((used.f_blocks - used.f_bfree) * used.f_frsize))
        assert world.end_worker() == 0
        assert not program.is_running() or program.status() == psutil.STATUS_ZOMBIE
        assert "is the disk full?; the runs are ended all the same" in world.log_text()
        world.start_worker("a", *options)
        eventually(lambda: "the worker waits for room" in world.log_text(), what="the next life of the worker")
        assert "Traceback" not in world.log_text()
        assert not world.client.run(run_id).state.terminal
        resize(small_disk, "2g")
        world.wait_for_start(run_id, attempt=2)
        succeed(world, run_id, attempt=2)
        assert world.attempts(run_id)[0].state is AttemptState.INTERRUPTED
        world.settle()


def test_a_run_root_that_is_not_mounted_when_the_worker_starts_is_waited_for(world: FaultWorld) -> None:
    run_id = world.submit()
    world.wait_for_steps(run_id)
    world.kill_worker()
    elsewhere = world.root.with_name("elsewhere")
    world.root.rename(elsewhere)
    world.root.mkdir()
    try:
        world.start_worker()
        run = eventually(lambda: lost(world, run_id), what="word that nobody knows")
        assert run.state is RunState.RUNNING
        assert f"the run root {world.root} is away" in world.log_tail()
        assert len(world.processes(run_id)) == 1
    finally:
        world.root.rmdir()
        elsewhere.rename(world.root)
    world.wait_for_steps(run_id)
    eventually(lambda: world.client.run(run_id).unknown_since is None, what="word that it is found")
    succeed(world, run_id)
    assert passed(world, run_id) == ["QUEUED", "LEASED", "RUNNING", "SUCCEEDED"]


def lost(world: FaultWorld, run_id: str) -> Run | None:
    run = world.client.run(run_id)
    return run if run.unknown_since is not None else None


@pytest.mark.faults
@pytest.mark.postgres
def test_a_database_that_restarts_while_runs_are_claimed_loses_none(tmp_path: Path) -> None:
    postgres = start_or_skip()
    try:
        url = postgres.create("n2n")
        postgres.commit_for_good("n2n")
        with fault_world(tmp_path, database_url=url) as world:
            runs = [world.submit() for _ in range(4)]
            for run_id in runs:
                world.tell(run_id, "finish")
            world.start_worker()
            for reached in (runs[0], runs[3]):
                eventually((world.run_dir(reached) / "1").exists, what="a start")
                postgres.crash()
            for run_id in runs:
                assert world.wait_for(run_id, RunState.SUCCEEDED).attempt == 1
            world.settle()
    finally:
        postgres.stop()
