"""A whole laboratory for tests in the browser: service, worker and page, each a process that can be started again."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from nanollama.api.client import Client
from nanollama.api.schemas import Run
from tests.support.ports import free_ports
from tests.support.waiting import eventually

SECONDS = 900.0  # only a broken test waits this long

# Four widths by three seeds on the graph of configs/gssm/debug.yaml: seconds each, and far enough to tell them apart.
SWEEP_YAML = """\
# How much of the bound does width buy?
data:
  seq_len: 64
  batch_size: 64
  seed: 3
  gssm:
    nodes:
      - {name: Z, state_dim: 8, alpha: 0.1}
      - {name: X, state_dim: 16, alpha: 0.1, parents: [Z], observed: true}
model: {emb_dim: 32, nb_layers: 2, block: {nb_heads: 4}}
optim: {steps: 300, lr: 3e-3, warmup: 20}
orchestration:
  name: width
  logging: {period: 5}
  checkpoint: {period: 100}
evaluation: {period: 50, num_sequences: 256}
grid:
  model.emb_dim: [8, 16, 32, 64]
  orchestration.utils.seed: [0, 1, 2]
"""


class Laboratory:
    """Service, worker and page over one folder. A context: what it has started ends with it.

    Attributes:
        api_url: root of the service; the same after a restart, as is `page_url`.
        page_url: root of the page.
    """

    def __init__(self, folder: Path, *, slots: int = 4) -> None:
        self.folder = folder
        self.slots = slots
        self.api_port, self.page_port = free_ports(2)
        self.api_url = f"http://127.0.0.1:{self.api_port}"
        self.page_url = f"http://127.0.0.1:{self.page_port}"
        self.database_url = f"sqlite:///{folder / 'n2n.db'}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Laboratory:
        migrate = [sys.executable, "-m", "backend", "migrate", "--database-url", self.database_url]
        subprocess.run(migrate, check=True, stdout=subprocess.DEVNULL)
        self.start_service()
        self.start_page()
        return self

    def __exit__(self, *_error: object) -> None:
        for name in ("worker", "page", "service"):
            self.stop(name)

    def start_service(self) -> None:
        """Start the service and wait until it answers."""
        self._start("service", "backend", "serve", "--port", str(self.api_port), "--database-url", self.database_url)
        self._await("service", lambda: _answers(f"{self.api_url}/api/v1/health"))

    def start_page(self) -> None:
        """Start the page and wait until it answers."""
        self._start("page", "dashboard", "--port", str(self.page_port), "--api-url", self.api_url)
        self._await("page", lambda: _answers(f"{self.page_url}/_stcore/health"))

    def start_worker(self) -> None:
        """Start a worker; its runs end with it."""
        (self.folder / "runs").mkdir(exist_ok=True)
        options = {"--url": self.api_url, "--run-root": self.folder / "runs", "--home": self.folder / "home"}
        given = [str(word) for option in options.items() for word in option]
        given += ["--name", "workstation", "--pool", "laboratory"]
        self._start("worker", "worker", *given, "--slots", str(self.slots), "--stop-jobs-on-exit")

    def stop(self, name: str) -> None:
        """End one of the processes, if it is there."""
        process = self._processes.pop(name, None)
        if process is not None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def pid(self, name: str) -> int:
        """The process id of the service, the worker or the page."""
        return self._processes[name].pid

    def wait_for_end(self, client: Client, experiment: str) -> list[Run]:
        """Wait until all runs of an experiment have ended; the runs, oldest first."""

        def ended() -> list[Run]:
            runs = client.runs(filter=f"experiment:{experiment}", limit=500).items
            self._check("worker")
            return runs if runs and all(run.state.terminal for run in runs) else []

        return list(reversed(eventually(ended, within=SECONDS, what=f"the end of experiment {experiment}")))

    def _start(self, name: str, *arguments: str) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            command = [sys.executable, "-m", *arguments]
            self._processes[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _check(self, name: str) -> None:
        ended = name in self._processes and self._processes[name].poll() is not None
        assert not ended, (self.folder / f"{name}.log").read_text(errors="replace")[-4000:]

    def _await(self, name: str, probe: Callable[[], bool]) -> None:
        def answers() -> bool:
            self._check(name)
            return probe()

        eventually(answers, within=120, what=f"an answer of the {name}")


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=10).is_success
    except httpx.HTTPError:
        return False


@contextlib.contextmanager
def laboratory(folder: Path) -> Iterator[tuple[Laboratory, Client]]:
    """A laboratory without runs or worker, and a client of it."""
    with Laboratory(folder) as started, Client(started.api_url, timeout=60) as client:
        yield started, client
