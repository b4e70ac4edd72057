"""Processes killed outright at random moments of a run, under `n2n up`: nothing is lost, nothing is counted twice."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nanollama.api.client import Client
from nanollama.api.errors import Unavailable
from nanollama.api.status import RunState
from tests.support.examples import tiny_yaml
from tests.support.ports import free_ports
from tests.support.waiting import eventually

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("faults")]

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


def child(up: psutil.Process, module: str) -> psutil.Process:
    def find() -> psutil.Process | None:
        return next((p for p in up.children() if p.cmdline()[1:3] == ["-m", module]), None)

    return eventually(find, what=module)


@pytest.mark.parametrize("number", range(8))
def test_a_run_survives(stack: tuple[psutil.Process, Client, Path], number: int) -> None:
    up, client, home = stack
    chance = random.Random(number)
    module = ("worker", "backend")[number % 2]
    run = client.submit(yaml=tiny_yaml(STEPS, checkpoint={"period": 100, "keep_only": 2})).runs[0]
    moment = chance.randrange(STEPS - 100)
    eventually(lambda: client.run(run.id).progress.step > moment or client.run(run.id).state.terminal, within=120)
    child(up, module).kill()

    def ended() -> bool:
        try:
            return client.run(run.id).state.terminal
        except Unavailable:
            return False

    eventually(ended, within=180, what=f"the end of a run whose {module} was killed after step {moment}")
    final = client.run(run.id)
    assert (final.state, final.attempt) == (RunState.SUCCEEDED, 1), final.reason
    for key, series in client.metrics(run.id, ["loss", "bound", "excess"], max_points=10_000).series.items():
        assert series.step == list(range(1, STEPS + 1)), key
    directory = home / "runs" / run.id / "1"
    stored = client.logs(run.id, stream="stdout.log", tail_bytes=1 << 20).text
    assert stored == (directory / "stdout.log").read_text()
    states = [e.to_state for e in client.events(run.id) if e.kind == "transition"]
    assert states == ["QUEUED", "LEASED", "RUNNING", "SUCCEEDED"]


def test_a_run_whose_training_is_killed_fails_in_words(stack: tuple[psutil.Process, Client, Path]) -> None:
    _, client, _ = stack
    run = client.submit(yaml=tiny_yaml(100_000)).runs[0]
    eventually(lambda: client.run(run.id).progress.step > 50, within=120)
    ranks = [p for p in psutil.process_iter() if is_rank_of(p, run.id)]
    assert ranks
    for rank in ranks:
        rank.kill()
    eventually(lambda: client.run(run.id).state.terminal, within=120)
    final = client.run(run.id)
    assert final.state is RunState.FAILED
    assert "SIGKILL" in (final.reason or "")


def is_rank_of(process: psutil.Process, run_id: str) -> bool:
    """Whether it is a rank itself, not the torchrun or the supervisor above it."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return words[1:4] == ["-u", "-m", "nanollama.apps.gssm.train"] and run_id in words[-1]
