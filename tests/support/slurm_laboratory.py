"""A service, a real Slurm, and a worker between them that runs small programs; to be killed, and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from nanollama.api.client import Client
from nanollama.api.schemas import Attempt, Run
from nanollama.api.status import RunState
from nanollama.cluster.slurm import JobState
from tests.support.examples import experiment
from tests.support.service import serve_new_sqlite
from tests.support.slurm import Programs, SlurmCluster
from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120.0


class SlurmLaboratory:
    """The parts.

    Args:
        folder: where everything is kept.
        url: the service.
        cluster: Slurm.
        program: the module that is the worker.
        options: of the `slurm` section of the worker's config, over those for tests.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        cluster: SlurmCluster,
        *,
        program: str = "tests.support.slurm_worker",
        **options: Any,
    ) -> None:
        self._program = program
        self.client = Client(url)
        self.cluster = cluster
        self.root = folder / "runs"
        self.root.mkdir()
        self.log = folder / "worker.log"
        self.programs = Programs(folder / "bin")
        self._config = folder / "worker.yaml"
        slurm = {"poll_seconds": 1.0, "command_seconds": 3.0, "max_jobs": 8, "cpus": 1, **options}
        section = {"url": url, "run_root": str(self.root), "home": str(folder / "home"), "executor": "slurm"}
        self._config.write_text(yaml.safe_dump({**section, "grace": 1.0, "slurm": slurm}))
        self.worker: subprocess.Popen[bytes] | None = None

    # -- the worker --------------------------------------------------------------------------------------------------

    def start_worker(self) -> None:
        """Start the worker, for the first time or again."""
        environment = {**self.cluster.environment, "PATH": self.programs.path, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", self._program, "--config", str(self._config)]
        with open(self.log, "ab") as log:
            self.worker = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)

    def kill_worker(self) -> None:
        """Kill the worker, and whatever program of Slurm it is waiting for."""
        if self.worker is None:
            return
        children = psutil.Process(self.worker.pid).children(recursive=True)
        self.worker.send_signal(signal.SIGKILL)
        self.worker.wait()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        self.worker = None

    # -- runs --------------------------------------------------------------------------------------------------------

    def submit(self, **fields: Any) -> str:
        """Submit a run; its id."""
        return self.client.submit(**{"config": experiment(), **fields}).runs[0].id

    def run_dir(self, run_id: str) -> Path:
        """The directory of a run."""
        return self.root / run_id

    def tell(self, run_id: str, what: str) -> None:
        """Put a file into the directory of a run, which its program looks for."""
        self.run_dir(run_id).mkdir(exist_ok=True)
        (self.run_dir(run_id) / what).touch()

    def starts(self, run_id: str) -> list[tuple[int, int, str]]:
        """Attempt, job and node of each start of the run's program."""
        path = self.run_dir(run_id) / "starts"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(attempt), int(job), node) for attempt, job, node in (line.split() for line in lines)]

    def wait_for_start(self, run_id: str, attempt: int = 1) -> tuple[int, int, str]:
        """Wait until an attempt's program has started: attempt, job and node."""

        def started() -> tuple[int, int, str] | None:
            return next((start for start in self.starts(run_id) if start[0] == attempt), None)

        found = eventually(started, within=SECONDS, what=f"the start of attempt {attempt}")
        assert found is not None
        return found

    def wait_for(self, run_id: str, *states: RunState, within: float = SECONDS) -> Run:
        """Wait until a run is in one of the states; another end of it is an error."""

        def reached() -> Run | None:
            run = self.client.run(run_id)
            assert run.state in states or not run.state.terminal, f"{run.state}: {run.reason}\n{self.log_tail()}"
            return run if run.state in states else None

        try:
            run = eventually(reached, within=within, what=f"{[str(state) for state in states]}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.client.run(run_id)!r}\n{self.log_tail()}") from None
        assert run is not None
        return run

    def wait_for_attempt(self, run_id: str, number: int) -> None:
        """Wait until a run has got so many attempts."""
        eventually(lambda: self.client.run(run_id).attempt >= number, within=SECONDS, what=f"attempt {number}")

    def attempts(self, run_id: str) -> list[Attempt]:
        """The attempts of a run, in order."""
        return sorted(self.client.attempts(run_id), key=lambda attempt: attempt.number)

    def jobs(self, run_id: str, attempt: int = 1) -> list[JobState]:
        """The jobs of an attempt that Slurm remembers."""
        return self.cluster.jobs(f"n2n-{run_id}-{attempt}")

    def wait_for_quiet(self, run_id: str) -> None:
        """Wait until Slurm executes nothing for a run any more."""
        attempts = self.client.run(run_id).attempt

        def quiet() -> bool:
            return all(state.stage.ended for n in range(1, attempts + 1) for state in self.jobs(run_id, n))

        eventually(quiet, within=SECONDS, what="the end of every job")

    def stored_steps(self, run_id: str) -> list[int]:
        """Steps of the stored loss."""
        series = self.client.metrics(run_id, ["loss"], max_points=100_000).series
        return series["loss"].step if "loss" in series else []

    def written_steps(self, run_id: str) -> list[int]:
        """Steps of all lines that the attempts of a run have written, in their order."""
        files = sorted(self.run_dir(run_id).glob("[0-9]*/metrics/rank0.jsonl"), key=lambda p: int(p.parts[-3]))
        return [json.loads(line)["step"] for file in files for line in file.read_text().splitlines()]

    def log_tail(self) -> str:
        """The end of the worker's log."""
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""

    def close(self) -> None:
        """End the worker, and the jobs that are left."""
        self.kill_worker()
        self.cluster.run("scancel", f"--user={os.environ.get('USER') or 'root'}", check=False)
        self.client.close()


@contextmanager
def slurm_laboratory(folder: Path, cluster: SlurmCluster, **options: Any) -> Iterator[SlurmLaboratory]:
    """A laboratory with a new database and a worker that runs."""
    with serve_new_sqlite(folder) as url:
        laboratory = SlurmLaboratory(folder, url, cluster, **options)
        try:
            laboratory.start_worker()
            yield laboratory
        finally:
            laboratory.close()
