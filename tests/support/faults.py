"""A service and workers as processes that are killed, stopped, cut off and put out of time, with a proxy in between."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from nanollama.api.client import Client
from nanollama.api.errors import Unavailable
from nanollama.api.status import RunState
from nanollama.spec.rundir import START_CLAIM
from tests.support.invariants import Executing, nothing
from tests.support.ports import free_ports
from tests.support.proxy import Proxy
from tests.support.service import sqlite_url
from tests.support.small_runs import SmallRuns
from tests.support.waiting import eventually
from worker.executors.claim import read_claim
from worker.executors.processes import find_tree

ROOT = Path(__file__).resolve().parents[2]


class FaultWorld(SmallRuns):
    """The parts. Workers reach the service through the proxy, the test reaches it directly.

    Args:
        folder: where everything is kept.
        proxy: in front of the service.
        port: of the service.
        database_url: of the service; SQLite in the folder when absent.
        root: the run root; in the folder when absent.
    """

    def __init__(
        self, folder: Path, proxy: Proxy, port: int, database_url: str | None = None, root: Path | None = None
    ) -> None:
        client = Client(f"http://127.0.0.1:{port}", timeout=30.0)
        super().__init__(client, root or folder / "runs", folder / "worker.log")
        self.root.mkdir(exist_ok=True)
        self.folder, self.proxy, self._port = folder, proxy, port
        self.database_url = database_url or sqlite_url(folder)
        self.server: subprocess.Popen[str] | None = None
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.step_clock(0.0)

    # -- the service ---------------------------------------------------------------------------------------------------

    def start_server(self) -> None:
        """Start the service, for the first time or again; returns when it answers."""
        command = [sys.executable, "-m", "tests.support.fault_server", self.database_url]
        with open(self.folder / "server.log", "a") as log:
            self.server = subprocess.Popen(
                [*command, str(self._port), str(self.folder)], cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.server.stdout is not None
        said = self.server.stdout.readline()
        assert said == "serving\n", (self.folder / "server.log").read_text()[-3000:]
        eventually(self._answers, what="the service")

    def _answers(self) -> bool:
        try:
            self.client.health()
        except Unavailable:
            return False
        return True

    def kill_server(self) -> None:
        """SIGKILL."""
        if self.server is not None:
            self.server.kill()
            self.server.communicate()
            self.server = None

    def step_clock(self, seconds: float) -> None:
        """Have the service's clock ahead by so much from now on."""
        new = self.folder / "clock.new"
        new.write_text(str(seconds))
        new.replace(self.folder / "clock")

    # -- workers -------------------------------------------------------------------------------------------------------

    def start_worker(
        self,
        name: str = "a",
        *options: str,
        program: str = "tests.support.fault_worker",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start a worker, for the first time or again; workers differ in name and home and are of one pool."""
        command = [sys.executable, "-m", program, "--url", self.proxy.url, "--run-root", str(self.root), "--name", name]
        home = ["--home", str(self.folder / f"home-{name}"), "--grace", "1", "--slots", "4", "--pool", "pool"]
        with open(self.log, "ab") as log:
            self.workers[name] = subprocess.Popen(
                [*command, *home, *options], cwd=ROOT, stdout=log, stderr=log, env=environment
            )

    def kill_worker(self, name: str = "a") -> None:
        """SIGKILL; what it has started goes on."""
        worker = self.workers.pop(name, None)
        if worker is not None:
            worker.kill()
            worker.wait()

    def end_worker(self, name: str = "a") -> int:
        """SIGTERM; the exit code."""
        worker = self.workers.pop(name)
        worker.terminate()
        return worker.wait(120)

    def pause_worker(self, name: str = "a") -> None:
        """SIGSTOP: it does nothing, and does not know."""
        self.workers[name].send_signal(signal.SIGSTOP)

    def wake_worker(self, name: str = "a") -> None:
        """SIGCONT."""
        self.workers[name].send_signal(signal.SIGCONT)

    # -- what a worker has started -------------------------------------------------------------------------------------

    def kill_supervisor(self, run_id: str, attempt: int = 1) -> None:
        """SIGKILL of the supervisor of an attempt."""
        eventually((self.run_dir(run_id) / str(attempt) / START_CLAIM).exists, what="the claim")
        claim = read_claim(self.run_dir(run_id) / str(attempt))
        assert claim is not None
        assert claim.pid is not None
        with suppress(psutil.NoSuchProcess):
            psutil.Process(claim.pid).kill()

    def processes(self, run_id: str, attempt: int = 1) -> list[psutil.Process]:
        """What executes of an attempt, without its supervisor."""
        (attempt_id,) = (a.id for a in self.client.attempts(run_id) if a.number == attempt)
        return list(find_tree(attempt_id))

    def steps_made(self, run_id: str) -> int:
        """The newest step that has been written."""
        written = self.written_steps(run_id)
        return written[-1] if written else 0

    def lines_written(self, run_id: str) -> int:
        """Lines of metrics that the attempts of a run have written."""
        files = self.run_dir(run_id).glob("[0-9]*/metrics/rank0.jsonl")
        return sum(file.read_bytes().count(b"\n") for file in files)

    def wait_for_steps(self, run_id: str, more: int = 1) -> None:
        """Until so many steps more are stored than now, and it is known to run, which may be told a moment later."""
        goal = len(self.stored_steps(run_id)) + more

        def reached() -> bool:
            waits = self.client.run(run_id).state in (RunState.QUEUED, RunState.LEASED, RunState.SUBMITTED)
            return not waits and len(self.stored_steps(run_id)) >= goal

        eventually(reached, within=120, what=f"{goal} steps of a run that is known to run")

    def settle(self, executing: Executing = nothing) -> None:
        """Undo what was done to service, clock and network, and check the promises for what was submitted."""
        self.proxy.set("pass")
        self.proxy.lose_some(lambda: False)
        if self.server is None:
            self.start_server()
        for worker in self.workers.values():
            worker.send_signal(signal.SIGCONT)
        self.check(self.database_url, executing)
        self.step_clock(0.0)

    def close(self) -> None:
        """End everything that is left."""
        for name in list(self.workers):
            self.wake_worker(name)
            self.kill_worker(name)
        if self.server is not None:
            with suppress(Unavailable):
                for run in self.client.runs(limit=500).items:
                    for attempt in self.client.attempts(run.id):
                        for process in find_tree(attempt.id):
                            process.kill()
        self.kill_server()
        self.client.close()


def is_rank(process: psutil.Process) -> bool:
    """Whether it is a rank of a training itself, not the torchrun or the supervisor above it."""
    try:
        return process.cmdline()[1:4] == ["-u", "-m", "nanollama.apps.gssm.train"]
    except psutil.Error:
        return False


@contextmanager
def fault_world(folder: Path, database_url: str | None = None, root: Path | None = None) -> Iterator[FaultWorld]:
    """A world whose service answers; workers are started by the test."""
    (port,) = free_ports(1)
    with Proxy(port) as proxy:
        world = FaultWorld(folder, proxy, port, database_url, root)
        try:
            world.start_server()
            yield world
        finally:
            world.close()
