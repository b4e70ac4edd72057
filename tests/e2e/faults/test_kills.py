"""Processes killed outright at random moments: nothing is lost, nothing is counted twice, nothing runs twice."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nanollama.api.client import Client
from nanollama.api.errors import Unavailable
from nanollama.api.schemas import Run
from nanollama.api.status import AttemptState, RunState
from nanollama.stack import MAX_RESTARTS
from tests.support.examples import tiny_yaml
from tests.support.faults import FaultWorld, fault_world, is_rank
from tests.support.invariants import check_invariants, find_marked
from tests.support.ports import free_ports
from tests.support.waiting import eventually

pytestmark = pytest.mark.xdist_group("kills")

# -- the small program, killed at any moment ---------------------------------------------------------------------------

VICTIMS = ("worker", "service", "supervisor", "program", "sleep")
RUNS = 3


class Storm:
    """Runs under way, and one thing after another that is killed."""

    def __init__(self, world: FaultWorld, chance: random.Random) -> None:
        self.world, self.chance = world, chance
        self.going: list[str] = []
        self.submitted: list[str] = []
        self.killed: set[str] = set()  # runs whose program was killed

    def refill(self) -> None:
        """As many runs as there should be, those that have ended replaced."""
        self.going = [run_id for run_id in self.going if not self.world.client.run(run_id).state.terminal]
        while len(self.going) < RUNS:
            self.going.append(self.world.submit())
            self.submitted.append(self.going[-1])
            self.world.tell(self.going[-1], "saving")

    def strike(self, victim: str) -> None:
        """Wait for a moment of some run, and kill."""
        run_id = self.chance.choice(self.going)
        self.await_moment(run_id, self.chance.randrange(60))
        if victim == "worker":
            self.world.kill_worker()
            self.world.start_worker()
        elif victim == "service":
            self.world.kill_server()
            self.world.start_server()
        elif victim == "sleep":
            self.sleep(run_id)
        elif victim == "supervisor":
            self.world.kill_supervisor(run_id, self.world.client.run(run_id).attempt)
        else:
            self.killed.add(run_id)
            for process in self.world.processes(run_id, self.world.client.run(run_id).attempt):
                process.kill()

    def await_moment(self, run_id: str, steps: int) -> None:
        """Some steps from now, if it has begun."""
        goal = self.world.lines_written(run_id) + steps
        eventually(lambda: self.world.lines_written(run_id) >= goal or self.ended(run_id), within=180, what="steps")

    def ended(self, run_id: str) -> bool:
        return self.world.client.run(run_id).state.terminal

    def sleep(self, run_id: str) -> None:
        """The worker sleeps until another has its run, and wakes when that one is killed."""

        def adopted() -> bool:
            run = self.world.client.run(run_id)
            return run.state.terminal or any(attempt.epoch > 1 for attempt in self.world.attempts(run_id))

        self.world.pause_worker()
        self.world.start_worker("b")
        eventually(adopted, within=180, what="an adoption")
        self.world.wake_worker()
        self.world.kill_worker("b")


def check_storm(world: FaultWorld, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    storm = Storm(world, chance)
    losses, lock = random.Random(seed), threading.Lock()

    def loses() -> bool:
        with lock:
            return losses.random() < 0.02

    world.proxy.lose_some(loses)
    order = [VICTIMS[i % len(VICTIMS)] for i in range(kills)]
    chance.shuffle(order)
    for victim in order:
        storm.refill()
        storm.strike(victim)
    for run_id in storm.going:
        world.tell(run_id, "finish")
    world.settle()
    for run_id in storm.submitted:
        run = world.client.run(run_id)
        explained = run_id in storm.killed or "both saved no new checkpoint" in (run.reason or "")
        assert run.state is RunState.SUCCEEDED or (run.state is RunState.FAILED and explained), run


def test_five_kills_at_random_moments(tmp_path: Path) -> None:
    with fault_world(tmp_path) as world:
        world.start_worker()
        check_storm(world, 5, seed=1)


@pytest.mark.faults
@pytest.mark.parametrize("seed", [2, 3])
def test_twenty_five_kills_at_random_moments(tmp_path: Path, seed: int) -> None:
    with fault_world(tmp_path) as world:
        world.start_worker()
        check_storm(world, 25, seed)


# -- training under `n2n up` -------------------------------------------------------------------------------------------

STEPS = 600


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[psutil.Process, Client, Path]]:
    home = tmp_path_factory.mktemp("faults") / "home"
    api, page = free_ports(2)
    ports = ["--api-port", str(api), "--page-port", str(page)]
    command = [sys.executable, "-m", "nanollama.cli", "up", "--home", str(home), *ports, "--stop-runs"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process, Client(f"http://127.0.0.1:{api}") as client:
        try:
            eventually(lambda: answers(client), within=120, what="the service")
            yield psutil.Process(process.pid), client, home
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def answers(client: Client) -> bool:
    try:
        return any(worker.alive for worker in client.workers())
    except Unavailable:
        return False


def find(up: psutil.Process, home: Path, run: Run, victim: str) -> psutil.Process:
    """The process to be killed."""

    def look() -> psutil.Process | None:
        if victim in ("worker", "backend"):
            return next((p for p in up.children() if p.cmdline()[1:3] == ["-m", victim]), None)
        of_run = [p for p in psutil.process_iter() if str(home / "runs" / run.id) in " ".join(words(p))]
        if victim == "supervisor":
            return next((p for p in of_run if "worker.executors.supervisor" in words(p)), None)
        ranks = [p for p in of_run if is_rank(p)]
        return (ranks[0].parent() if victim == "torchrun" else ranks[-1]) if ranks else None

    found = eventually(look, what=victim)
    assert found is not None
    return found


def words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def train_and_kill(stack: tuple[psutil.Process, Client, Path], victim: str, moment: int) -> Run:
    """A run of which the victim is killed after a step; the run, once it has ended and every promise is checked."""
    up, client, home = stack
    run = client.submit(yaml=tiny_yaml(STEPS, checkpoint={"period": 100, "keep_only": 2})).runs[0]
    eventually(lambda: client.run(run.id).progress.step > moment or client.run(run.id).state.terminal, within=120)
    find(up, home, run, victim).kill()
    database = f"sqlite:///{home / 'n2n.sqlite'}"

    def ended() -> bool:
        try:
            return client.run(run.id).state.terminal
        except Unavailable:
            return False

    eventually(ended, within=240, what=f"the end of a run whose {victim} was killed after step {moment}")
    check_invariants(database, home / "runs", client, run_ids=[run.id])
    return client.run(run.id)


@pytest.mark.faults
@pytest.mark.parametrize("number", range(MAX_RESTARTS))  # `up` ends when a part dies more often within a minute
@pytest.mark.parametrize("victim", ["worker", "backend"])
def test_training_survives(stack: tuple[psutil.Process, Client, Path], victim: str, number: int) -> None:
    final = train_and_kill(stack, victim, random.Random(number).randrange(STEPS - 100))
    assert (final.state, final.attempt) == (RunState.SUCCEEDED, 1), final.reason
    for key, series in stack[1].metrics(final.id, ["loss", "bound", "excess"], max_points=10_000).series.items():
        assert series.step == list(range(1, STEPS + 1)), key
    states = [e.to_state for e in stack[1].events(final.id) if e.kind == "transition"]
    assert states == ["QUEUED", "LEASED", "RUNNING", "SUCCEEDED"]


@pytest.mark.faults
@pytest.mark.parametrize("number", range(2))
def test_training_without_its_supervisor_goes_on_from_a_checkpoint(
    stack: tuple[psutil.Process, Client, Path], number: int
) -> None:
    final = train_and_kill(stack, "supervisor", random.Random(number).randrange(120, STEPS - 100))
    assert (final.state, final.attempt) == (RunState.SUCCEEDED, 2), final.reason
    first = next(attempt for attempt in stack[1].attempts(final.id) if attempt.number == 1)
    assert first.state is AttemptState.INTERRUPTED
    assert stack[1].metrics(final.id, ["loss"], max_points=10_000).series["loss"].step == list(range(1, STEPS + 1))


@pytest.mark.faults
@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("victim", ["torchrun", "rank"])
def test_training_that_is_killed_fails_in_words(
    stack: tuple[psutil.Process, Client, Path], victim: str, number: int
) -> None:
    final = train_and_kill(stack, victim, random.Random(f"{victim} {number}").randrange(STEPS - 100))
    assert final.state is RunState.FAILED
    assert "SIGKILL" in (final.reason or "")
    ids = {attempt.id for attempt in stack[1].attempts(final.id)}
    assert not ids & find_marked().keys()
