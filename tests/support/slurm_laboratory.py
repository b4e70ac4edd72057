"""A service, a real Slurm, and a worker between them that runs small programs; to be killed, and started again."""

from __future__ import annotations

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
from nanollama.cluster.slurm import JobState
from tests.support.service import serve_new_sqlite, sqlite_url
from tests.support.slurm import Programs, SlurmCluster
from tests.support.small_runs import SECONDS, SmallRuns
from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]


class SlurmLaboratory(SmallRuns):
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
        super().__init__(Client(url), folder / "runs", folder / "worker.log")
        self._program = program
        self._database_url = sqlite_url(folder)
        self.cluster = cluster
        self.root.mkdir()
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

    def jobs(self, run_id: str, attempt: int = 1) -> list[JobState]:
        """The jobs of an attempt that Slurm remembers."""
        return self.cluster.jobs(f"n2n-{run_id}-{attempt}")

    def wait_for_quiet(self, run_id: str) -> None:
        """Wait until Slurm executes nothing for a run any more."""
        attempts = self.client.run(run_id).attempt

        def quiet() -> bool:
            return all(state.stage.ended for n in range(1, attempts + 1) for state in self.jobs(run_id, n))

        eventually(quiet, within=SECONDS, what="the end of every job")

    def check_all(self) -> None:
        """The runs that were submitted since the last time end, and the protocol's promises hold for them."""
        self.check(self._database_url, self._active)

    def _active(self, run_id: str, attempt: int) -> list[str]:
        return [f"{job.id} {job.word}" for job in self.jobs(run_id, attempt) if not job.stage.ended]

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
            laboratory.check_all()
        finally:
            laboratory.close()
