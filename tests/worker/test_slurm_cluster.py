"""The worker on a real Slurm of three nodes: what users do, and what becomes of their runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanollama.api.status import AttemptState, RunState
from nanollama.spec.rundir import RESULT
from tests.support.invariants import find_supervisors
from tests.support.slurm import SlurmCluster, slurm_cluster  # noqa: F401 - a fixture
from tests.support.slurm_laboratory import SlurmLaboratory, slurm_laboratory
from tests.support.waiting import eventually

pytestmark = pytest.mark.xdist_group("slurm")


@pytest.fixture(scope="module")
def laboratory(
    slurm_cluster: SlurmCluster,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[SlurmLaboratory]:
    with slurm_laboratory(tmp_path_factory.mktemp("slurm"), slurm_cluster) as laboratory:
        yield laboratory


@pytest.fixture(autouse=True)
def _promises(laboratory: SlurmLaboratory) -> Iterator[None]:
    """After each story, what the protocol promises is checked."""
    yield
    laboratory.check_all()


def test_a_run_succeeds_with_all_that_it_has_written(laboratory: SlurmLaboratory) -> None:
    run_id = laboratory.submit()
    _, job_id, node = laboratory.wait_for_start(run_id)
    laboratory.tell(run_id, "finish")
    run = laboratory.wait_for(run_id, RunState.SUCCEEDED)
    attempt_dir = laboratory.run_dir(run_id) / "1"
    assert laboratory.client.run(run_id).result == json.loads((attempt_dir / RESULT).read_text())
    assert run.attempt == 1
    assert laboratory.stored_steps(run_id) == laboratory.written_steps(run_id)
    stdout = (attempt_dir / "stdout.log").read_text()
    assert "finished at step" in stdout
    assert laboratory.client.logs(run_id, stream="stdout.log").text == stdout
    (attempt,) = laboratory.attempts(run_id)
    assert attempt.provenance is not None
    assert (laboratory.root / ".code" / attempt.provenance["snapshot"] / "nanollama" / "__init__.py").exists()
    if laboratory.cluster.isolated:
        assert attempt.provenance["host"] == node
    (job,) = laboratory.jobs(run_id)
    assert job.id == job_id
    passed = [(event.from_state, event.to_state) for event in laboratory.client.events(run_id) if event.to_state]
    assert ("SUBMITTED", "RUNNING") in passed or ("LEASED", "RUNNING") in passed


def test_a_job_that_waits_says_why_and_is_cancelled_without_a_start(laboratory: SlurmLaboratory) -> None:
    cluster = laboratory.cluster
    cluster.run("scontrol", "update", "partitionname=batch", "state=down")
    try:
        run_id = laboratory.submit()
        run = laboratory.wait_for(run_id, RunState.SUBMITTED)
        assert run.reason is not None
        assert "waits: PartitionDown" in run.reason
        laboratory.client.cancel(run_id)
        run = laboratory.wait_for(run_id, RunState.CANCELLED)
        assert run.reason == "cancelled before it started"
        laboratory.wait_for_quiet(run_id)
        assert [job.word for job in laboratory.jobs(run_id)] == ["CANCELLED"]
    finally:
        cluster.run("scontrol", "update", "partitionname=batch", "state=up")
    assert laboratory.starts(run_id) == []


@pytest.mark.parametrize("deaf", [False, pytest.param(True, marks=pytest.mark.faults)])
def test_a_cancel_of_a_running_job_ends_it(laboratory: SlurmLaboratory, deaf: bool) -> None:
    run_id = laboratory.submit()
    if deaf:
        laboratory.tell(run_id, "stubborn")
    laboratory.wait_for_start(run_id)
    laboratory.wait_for(run_id, RunState.RUNNING)
    laboratory.client.cancel(run_id)
    run = laboratory.wait_for(run_id, RunState.CANCELLED)
    assert run.attempt == 1
    laboratory.wait_for_quiet(run_id)
    assert laboratory.stored_steps(run_id) == laboratory.written_steps(run_id)


def test_a_job_that_is_cancelled_by_hand_is_called_so(laboratory: SlurmLaboratory) -> None:
    run_id = laboratory.submit()
    _, job_id, _ = laboratory.wait_for_start(run_id)
    laboratory.wait_for(run_id, RunState.RUNNING)
    laboratory.cluster.run("scancel", str(job_id))
    run = laboratory.wait_for(run_id, RunState.CANCELLED)
    assert run.reason == f"Slurm job {job_id} was cancelled by hand (scancel)"
    assert not run.cancel_requested


def test_a_crash_of_the_node_opens_the_next_attempt_with_the_same_code(laboratory: SlurmLaboratory) -> None:
    cluster = laboratory.cluster
    run_id = laboratory.submit()
    laboratory.tell(run_id, "save")
    _, _, node = laboratory.wait_for_start(run_id)
    eventually(lambda: laboratory.client.checkpoints(run_id), what="a checkpoint")
    cluster.crash_node(node)
    cluster.mark_down(node)
    try:
        laboratory.wait_for_start(run_id, attempt=2)
        laboratory.tell(run_id, "finish")
        laboratory.wait_for(run_id, RunState.SUCCEEDED)
    finally:
        cluster.start_node(node)
    first, second = laboratory.attempts(run_id)
    assert first.state is AttemptState.INTERRUPTED
    assert first.reason is not None
    assert "a node failed (NODE_FAIL" in first.reason
    assert second.provenance is not None
    assert first.provenance is not None
    assert first.provenance["snapshot"] == second.provenance["snapshot"]
    steps = [json.loads(line)["step"] for line in _lines(laboratory.run_dir(run_id) / "2")]
    assert steps[0] == laboratory.client.checkpoints(run_id)[0].step + 1
    assert [start[0] for start in laboratory.starts(run_id)] == [1, 2]


@pytest.mark.faults
def test_a_run_whose_supervisor_is_killed_on_the_node_ends_with_it(laboratory: SlurmLaboratory) -> None:
    run_id = laboratory.submit()
    laboratory.wait_for_start(run_id)
    laboratory.wait_for(run_id, RunState.RUNNING)
    (attempt,) = laboratory.attempts(run_id)
    (supervisor,) = find_supervisors([attempt.id])
    supervisor.kill()
    run = laboratory.wait_for(run_id, RunState.FAILED)
    assert run.reason is not None
    assert "FAILED, NonZeroExitCode" in run.reason


@pytest.mark.faults
def test_a_run_whose_script_is_killed_on_the_node_is_interrupted(laboratory: SlurmLaboratory) -> None:
    run_id = laboratory.submit()
    laboratory.tell(run_id, "save")
    laboratory.wait_for_start(run_id)
    eventually(lambda: laboratory.client.checkpoints(run_id), what="a checkpoint")
    (attempt,) = laboratory.attempts(run_id)
    (supervisor,) = find_supervisors([attempt.id])
    script = supervisor.parent()
    assert script is not None
    script.kill()
    laboratory.wait_for_start(run_id, attempt=2)
    laboratory.tell(run_id, "finish")
    laboratory.wait_for(run_id, RunState.SUCCEEDED)
    assert laboratory.attempts(run_id)[0].state is AttemptState.INTERRUPTED


def test_preemption_by_a_higher_partition_opens_the_next_attempt(laboratory: SlurmLaboratory) -> None:
    cluster = laboratory.cluster
    run_id = laboratory.submit()
    laboratory.tell(run_id, "save")
    _, _, node = laboratory.wait_for_start(run_id)
    eventually(lambda: laboratory.client.checkpoints(run_id), what="a checkpoint")
    urgent = ("--exclusive", "-p", "urgent", "-w", node, "-J", "urgent", "-o", "/dev/null")
    job = cluster.run("sbatch", "--parsable", *urgent, "--wrap", "sleep 600").stdout.strip()
    try:
        laboratory.wait_for_start(run_id, attempt=2)
    finally:
        cluster.run("scancel", job)
    laboratory.tell(run_id, "finish")
    laboratory.wait_for(run_id, RunState.SUCCEEDED)
    first, _ = laboratory.attempts(run_id)
    assert first.state is AttemptState.INTERRUPTED
    assert first.reason is not None
    assert "another job took its place (PREEMPTED" in first.reason


def test_a_controller_that_restarts_changes_nothing(laboratory: SlurmLaboratory) -> None:
    run_id = laboratory.submit()
    laboratory.wait_for_start(run_id)
    laboratory.cluster.stop_controller()
    failing = len(laboratory.programs.calls("squeue"))
    other = laboratory.submit()
    eventually(lambda: len(laboratory.programs.calls("squeue")) > failing, what="a look that fails")
    laboratory.cluster.start_controller()
    laboratory.tell(run_id, "finish")
    assert laboratory.wait_for(run_id, RunState.SUCCEEDED).attempt == 1
    laboratory.tell(other, "finish")
    laboratory.wait_for(other, RunState.SUCCEEDED)
    assert len(laboratory.starts(other)) == len({start[0] for start in laboratory.starts(other)})


@pytest.mark.faults
def test_a_controller_that_crashes_costs_a_run_nothing(laboratory: SlurmLaboratory) -> None:
    cluster = laboratory.cluster
    run_id = laboratory.submit()
    laboratory.wait_for_start(run_id)
    laboratory.wait_for(run_id, RunState.RUNNING)
    began = time.time()
    news = cluster.run(
        "sbatch", "--parsable", "--hold", "-J", "news", "-o", "/dev/null", "--wrap", "true"
    ).stdout.strip()
    eventually(lambda: cluster.has_written_down(f"n2n-{run_id}-1", began), what="what the controller remembers")
    cluster.kill_controller()
    failing = len(laboratory.programs.calls("squeue"))
    eventually(lambda: len(laboratory.programs.calls("squeue")) > failing, what="a look that fails")
    cluster.start_controller()
    cluster.run("scancel", news)
    laboratory.tell(run_id, "finish")
    assert laboratory.wait_for(run_id, RunState.SUCCEEDED).attempt == 1
    assert len(laboratory.starts(run_id)) == 1


@pytest.mark.faults
def test_a_controller_that_crashes_before_it_has_answered_starts_nothing_twice(laboratory: SlurmLaboratory) -> None:
    """It has taken the job and forgets it, or not: the job is looked for, and submitted again only when it is gone."""
    cluster = laboratory.cluster
    cluster.run("scontrol", "update", "partitionname=batch", "state=down")  # so that the job waits
    laboratory.programs.set("sbatch", "late")
    try:
        run_id = laboratory.submit()
        eventually(lambda: laboratory.jobs(run_id), what="a job")
        cluster.kill_controller()
        kept = cluster.has_written_down(f"n2n-{run_id}-1", 0.0)
    finally:
        laboratory.programs.set("sbatch", "real")
        cluster.start_controller()
        cluster.run("scontrol", "update", "partitionname=batch", "state=up")
    number = 1 if kept else 2
    eventually(lambda: laboratory.starts(run_id), within=300, what="three looks, a minute apart, and a start")
    laboratory.tell(run_id, "finish")
    assert laboratory.wait_for(run_id, RunState.SUCCEEDED).attempt == number
    assert [attempt for attempt, _, _ in laboratory.starts(run_id)] == [number]
    assert [attempt.state for attempt in laboratory.attempts(run_id)[:-1]] == [AttemptState.VOID] * (number - 1)


@pytest.mark.parametrize(
    "mode", ["fail", *(pytest.param(mode, marks=pytest.mark.faults) for mode in ("empty", "hang"))]
)
def test_a_queue_that_fails_lies_or_hangs_decides_nothing(laboratory: SlurmLaboratory, mode: str) -> None:
    run_id = laboratory.submit()
    laboratory.wait_for_start(run_id)
    laboratory.wait_for(run_id, RunState.RUNNING)
    laboratory.programs.set("squeue", mode)
    before = len(laboratory.programs.calls("squeue"))
    eventually(lambda: len(laboratory.programs.calls("squeue")) >= before + 3, what="three looks")
    assert laboratory.client.run(run_id).state is RunState.RUNNING
    laboratory.programs.set("squeue", "real")
    laboratory.tell(run_id, "finish")
    run = laboratory.wait_for(run_id, RunState.SUCCEEDED)
    assert (run.attempt, run.unknown_since) == (1, None)


def test_a_submission_whose_answer_is_late_is_found_by_its_name(laboratory: SlurmLaboratory) -> None:
    laboratory.programs.set("sbatch", "late")
    run_id = laboratory.submit()
    laboratory.wait_for_start(run_id)
    laboratory.programs.set("sbatch", "real")
    laboratory.tell(run_id, "finish")
    assert laboratory.wait_for(run_id, RunState.SUCCEEDED).attempt == 1
    assert len(laboratory.jobs(run_id)) == 1
    assert len(laboratory.starts(run_id)) == 1


def test_a_worker_killed_between_submission_and_record_submits_no_second_job(laboratory: SlurmLaboratory) -> None:
    laboratory.programs.set("sbatch", "late")
    run_id = laboratory.submit()
    eventually(lambda: laboratory.jobs(run_id), what="a job")
    laboratory.kill_worker()
    laboratory.programs.set("sbatch", "real")
    attempt_dir = laboratory.run_dir(run_id) / "1"
    assert json.loads((attempt_dir / "submission.json").read_text())["job_id"] is None
    laboratory.start_worker()
    laboratory.wait_for_start(run_id)
    laboratory.tell(run_id, "finish")
    assert laboratory.wait_for(run_id, RunState.SUCCEEDED).attempt == 1
    assert len(laboratory.jobs(run_id)) == 1
    claim = json.loads((attempt_dir / "start.claim").read_text())
    assert [claim["slurm_job_id"]] == [job for _, job, _ in laboratory.starts(run_id)]


def test_a_job_that_slurm_refuses_fails_with_its_words(laboratory: SlurmLaboratory) -> None:
    laboratory.programs.set("sbatch", "refuse")
    run_id = laboratory.submit()
    run = laboratory.wait_for(run_id, RunState.FAILED)
    laboratory.programs.set("sbatch", "real")
    assert run.reason is not None
    assert run.reason.startswith("Slurm refuses the job: sbatch: Batch job submission failed: Invalid account")


def _lines(attempt_dir: Path) -> list[str]:
    return (attempt_dir / "metrics" / "rank0.jsonl").read_text().splitlines()
