"""The real worker against the real service, with real torchrun and real training."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from backend.database import Database
from backend.migrate import migrate
from nanollama.api.client import Client
from nanollama.api.schemas import Run
from nanollama.api.status import RunState
from tests.support.examples import tiny_yaml
from tests.support.service import serve_database
from tests.support.waiting import eventually
from worker.executors.processes import find_tree

ROOT = Path(__file__).resolve().parents[2]
TORCH_SECONDS = 240.0  # a start of torch takes 8 s on two free cores, and cores are rarely free


class Laboratory:
    """A service and a worker."""

    def __init__(self, folder: Path, url: str) -> None:
        self.client = Client(url)
        self.root = folder / "runs"
        self.root.mkdir()
        self.log = folder / "worker.log"
        self._home = folder / "home"
        self.worker = self.start_worker()

    def start_worker(self, *more: object) -> subprocess.Popen[bytes]:
        given = {"--url": self.client.url, "--run-root": self.root, "--home": self._home, "--grace": 2}
        pairs = (str(text) for pair in given.items() for text in pair)
        command = [sys.executable, "-m", "worker", *pairs, *map(str, more)]
        with open(self.log, "ab") as log:
            # one thread: those of torch fight for cores that others use
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            self.worker = subprocess.Popen(command, cwd=ROOT, stderr=log, env=environment)
        return self.worker

    def submit(self, steps: int) -> str:
        return self.client.submit(yaml=tiny_yaml(steps)).runs[0].id

    def wait_until_it_trains(self, run_id: str, step: int = 1) -> None:
        eventually(lambda: self._run(run_id).progress.step >= step, within=TORCH_SECONDS, what="training")

    def wait_for_the_end(self, run_id: str) -> Run:
        def ended() -> Run | None:
            run = self._run(run_id)
            return run if run.state.terminal else None

        run = eventually(ended, within=TORCH_SECONDS, what="the end")
        assert run is not None
        return run

    def _run(self, run_id: str) -> Run:
        run = self.client.run(run_id)
        assert run.state is not RunState.FAILED, run.reason
        return run

    def processes(self, run_id: str) -> int:
        """How many processes the run's attempts have."""
        return sum(len(list(find_tree(attempt.id))) for attempt in self.client.attempts(run_id))

    def close(self) -> None:
        self.worker.kill()
        self.worker.wait()
        for run in self.client.runs().items:
            for attempt in self.client.attempts(run.id):
                for process in find_tree(attempt.id):
                    process.kill()
        self.client.close()


@pytest.fixture
def laboratory(tmp_path: Path) -> Iterator[Laboratory]:
    database_url = f"sqlite:///{tmp_path / 'n2n.sqlite'}"
    database = Database(database_url)
    migrate(database)
    database.dispose()
    with serve_database(database_url) as url, contextlib.closing(Laboratory(tmp_path, url)) as laboratory:
        yield laboratory


def test_a_worker_killed_mid_run_ends_with_a_complete_success(laboratory: Laboratory) -> None:
    client, steps = laboratory.client, 100
    run_id = laboratory.submit(steps)
    laboratory.wait_until_it_trains(run_id)
    laboratory.worker.kill()
    laboratory.worker.wait()
    laboratory.start_worker()
    run = laboratory.wait_for_the_end(run_id)
    assert run.state is RunState.SUCCEEDED, run.reason
    assert run.attempt == 1
    attempt_dir = laboratory.root / run_id / "1"
    written = [json.loads(line) for line in (attempt_dir / "metrics/rank0.jsonl").read_text().splitlines()]
    stored = client.metrics(run_id, ["loss"], max_points=10_000).series["loss"]
    assert stored.step == [line["step"] for line in written] == list(range(1, steps + 1))
    assert stored.value == [line["loss"] for line in written]
    assert client.run(run_id).result == json.loads((attempt_dir / "result.json").read_text())
    assert [checkpoint.step for checkpoint in client.checkpoints(run_id)] == [steps]
    assert client.logs(run_id, stream="stdout.log").text == (attempt_dir / "stdout.log").read_text()
    (attempt,) = client.attempts(run_id)
    assert attempt.provenance == json.loads((attempt_dir / "provenance.json").read_text())
    (worker,) = client.workers()
    assert worker.cpus == len(os.sched_getaffinity(0))
    assert laboratory.processes(run_id) == 0


def test_a_cancel_mid_run_leaves_no_process(laboratory: Laboratory) -> None:
    run_id = laboratory.submit(1_000_000)
    laboratory.wait_until_it_trains(run_id)
    assert laboratory.processes(run_id) >= 2  # torchrun and its rank
    laboratory.client.cancel(run_id)
    run = laboratory.wait_for_the_end(run_id)
    assert run.state is RunState.CANCELLED, run.reason
    assert laboratory.processes(run_id) == 0


def test_a_bound_is_found_once_by_a_job_of_the_worker(laboratory: Laboratory) -> None:
    client = laboratory.client
    added = client.add_gssm(yaml=(ROOT / "configs/gssm/debug.yaml").read_text())
    asked = client.compute_bound(added.hash)
    assert asked.bound.state == "queued"
    run_id = asked.bound.run_id
    assert run_id is not None
    run = laboratory.wait_for_the_end(run_id)
    assert run.state is RunState.SUCCEEDED, run.reason
    found = client.gssm(added.hash)
    assert found.bound.state == "done"
    assert found.bound.num_sequences == 10_000
    assert found.bound.entropy == pytest.approx(1.5906, abs=0.0003)  # as the config says
    assert found.bound.entropy_stderr == pytest.approx(0.0014, abs=0.0002)
    curve = found.by_position
    assert curve is not None
    assert curve.positions == list(range(1, 64))
    assert sum(curve.entropy) / 63 == pytest.approx(found.bound.entropy, rel=1e-9)
    assert client.compute_bound(added.hash).bound == found.bound
    assert client.runs().items == []
    (job,) = client.runs(filter="app:gssm.entropy").items
    assert (job.id, job.progress.step) == (run_id, 10_000)
    assert job.progress.bound == pytest.approx(found.bound.entropy)
    assert [event.kind for event in client.events(run_id)][-2:] == ["finished", "transition"]
    assert laboratory.processes(run_id) == 0


def test_sets_in_the_folders_of_a_worker_are_listed_and_known_when_a_config_is_checked(
    laboratory: Laboratory, tmp_path: Path
) -> None:
    client, path = laboratory.client, tmp_path / "sets" / "train.h5"
    sets = tmp_path / "sets.yaml"
    graph = yaml.safe_load(tiny_yaml(1))["data"]["gssm"]
    content = {"gssm": graph, "seq_len": 8, "sets": [{"name": "train", "path": str(path), "n_data": 10}]}
    sets.write_text(yaml.safe_dump(content))
    subprocess.run([sys.executable, "-m", "nanollama.apps.gssm.data", f"config={sets}"], cwd=ROOT, check=True)
    laboratory.worker.kill()
    laboratory.worker.wait()
    laboratory.start_worker("--data-root", path.parent)
    (found,) = eventually(client.datasets, within=TORCH_SECONDS, what="the report of the sets")
    assert (found.path, found.num_sequences, found.seq_len, found.present) == (str(path), 10, 8, True)
    assert found.gssm_hash == client.add_gssm(yaml=tiny_yaml(1)).hash
    config = yaml.safe_load(tiny_yaml(1)) | {"data": {"path": str(path), "batch_size": 4}}
    estimate = client.validate(config=config).estimate
    assert estimate is not None
    assert (estimate.vocab, estimate.tokens_per_run, estimate.gssm_hash) == (8, 28, found.gssm_hash)
