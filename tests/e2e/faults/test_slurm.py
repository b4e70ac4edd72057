"""Faults between the service and workers of a real Slurm: leases that pass from one to the other, answers lost."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from nanollama.api.status import AttemptState, RunState
from nanollama.spec.rundir import EXIT, START_CLAIM
from tests.support.faults import FaultWorld, fault_world
from tests.support.slurm import Programs, SlurmCluster, slurm_cluster  # noqa: F401 - a fixture
from tests.support.waiting import eventually

pytestmark = pytest.mark.xdist_group("slurm")

PROGRAM = "tests.support.slurm_worker"


class Cluster:
    """A world whose workers submit to Slurm, each by programs of its own."""

    def __init__(self, world: FaultWorld, cluster: SlurmCluster) -> None:
        self.world, self.cluster = world, cluster
        self.programs: dict[str, Programs] = {}
        self.config = world.folder / "slurm.yaml"
        slurm = {"poll_seconds": 1.0, "command_seconds": 3.0, "cpus": 1}
        self.config.write_text(yaml.safe_dump({"executor": "slurm", "slurm": slurm}))

    def start_worker(self, name: str = "a") -> None:
        if name not in self.programs:
            self.programs[name] = Programs(self.world.folder / f"bin-{name}")
        environment = {**self.cluster.environment, "PATH": self.programs[name].path, "OMP_NUM_THREADS": "1"}
        self.world.start_worker(name, "--config", str(self.config), program=PROGRAM, environment=environment)

    def adopted(self, run_id: str) -> bool:
        return "adopted" in [event.kind for event in self.world.client.events(run_id)]

    def active(self, run_id: str, attempt: int) -> list[str]:
        jobs = self.cluster.jobs(f"n2n-{run_id}-{attempt}")
        return [f"Slurm job {job.id} ({job.word})" for job in jobs if not job.stage.ended]


@pytest.fixture(scope="module")
def shared(slurm_cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:  # noqa: F811
    with fault_world(tmp_path_factory.mktemp("slurm-faults")) as world:
        cluster = Cluster(world, slurm_cluster)
        try:
            cluster.start_worker()
            yield cluster
        finally:
            slurm_cluster.run("scancel", f"--user={os.environ.get('USER') or 'root'}", check=False)


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    yield shared
    shared.world.settle(shared.active)


def test_a_job_goes_on_without_service_and_worker(cluster: Cluster) -> None:
    world = cluster.world
    run_id = world.submit()
    world.wait_for_steps(run_id)
    world.kill_server()
    world.kill_worker()
    world.tell(run_id, "finish")
    eventually((world.run_dir(run_id) / "1" / EXIT).exists, what="the end")
    cluster.start_worker()
    world.start_server()
    assert world.wait_for(run_id, RunState.SUCCEEDED).attempt == 1


def test_lost_answers_submit_nothing_twice(cluster: Cluster) -> None:
    world, turns = cluster.world, itertools.cycle((True, False, False))
    world.proxy.lose_some(lambda: next(turns))
    runs = [world.submit() for _ in range(2)]
    for run_id in runs:
        world.wait_for_start(run_id)
        world.tell(run_id, "finish")
    for run_id in runs:
        assert world.wait_for(run_id, RunState.SUCCEEDED).attempt == 1
        assert len(cluster.cluster.jobs(f"n2n-{run_id}-1")) == 1


def test_a_worker_that_sleeps_past_its_lease_is_replaced(cluster: Cluster) -> None:
    world = cluster.world
    run_id = world.submit()
    world.wait_for_steps(run_id)
    world.pause_worker()
    cluster.start_worker("b")
    try:
        eventually(lambda: cluster.adopted(run_id), what="the adoption")
        world.wait_for_steps(run_id)
        world.wake_worker()
        world.tell(run_id, "finish")
        assert world.wait_for(run_id, RunState.SUCCEEDED).attempt == 1
        assert len(cluster.cluster.jobs(f"n2n-{run_id}-1")) == 1
    finally:
        world.kill_worker("b")


@pytest.mark.faults
def test_a_submission_that_arrives_after_its_attempt_was_given_up_runs_nothing(cluster: Cluster) -> None:
    """The first worker sleeps while its sbatch is on the way; minutes later the job is accepted after all."""
    world = cluster.world
    cluster.programs["a"].set("sbatch", "slow")
    calls = len(cluster.programs["a"].calls("sbatch")) + 1  # tests before this one have submitted too
    run_id = world.submit()
    eventually(lambda: len(cluster.programs["a"].calls("sbatch")) == calls, what="a submission")
    world.pause_worker()
    cluster.start_worker("b")
    try:
        eventually(lambda: len(world.attempts(run_id)) == 2, within=600, what="three looks, a minute apart")
        world.wait_for_start(run_id, attempt=2)
        cluster.programs["a"].set("sbatch", "real")
        late = eventually(lambda: cluster.cluster.jobs(f"n2n-{run_id}-1"), what="the job of the first attempt")
        eventually(lambda: not cluster.active(run_id, 1), what="its end")
        world.wake_worker()
        world.tell(run_id, "finish")
        assert world.wait_for(run_id, RunState.SUCCEEDED).attempt == 2
        first, _ = world.attempts(run_id)
        assert first.state is AttemptState.VOID
        assert [attempt for attempt, _, _ in world.starts(run_id)] == [2]
        assert len(late) == 1
        assert len(cluster.programs["a"].calls("sbatch")) == calls
        assert '"void"' in Path(world.run_dir(run_id) / "1" / START_CLAIM).read_text()
    finally:
        world.kill_worker("b")
