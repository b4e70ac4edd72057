"""Longer stories on a real Slurm: time limits, chains of attempts, several nodes, and kills at any moment."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest
import yaml

from nanollama.api.status import AttemptState, RunState
from tests.support.examples import tiny_yaml
from tests.support.slurm import SlurmCluster, slurm_cluster  # noqa: F401 - a fixture
from tests.support.slurm_laboratory import SlurmLaboratory, slurm_laboratory
from tests.support.waiting import eventually

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("slurm")]

MINUTES = 300.0
TRAINER = "tests.support.slurm_trainer"
MOMENTS = ("config.yaml", "job.sh", "submission.json", "start.claim", "proc.json", "metrics")
"""Files of an attempt directory, in the order in which they come."""


def steps_of(laboratory: SlurmLaboratory, run_id: str, attempt: int) -> list[int]:
    path = laboratory.run_dir(run_id) / str(attempt) / "metrics" / "rank0.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_run_longer_than_its_limit_is_chained_without_gap_or_jump(
    slurm_cluster: SlurmCluster,  # noqa: F811
    tmp_path: Path,
) -> None:
    with slurm_laboratory(tmp_path, slurm_cluster, time=1, signal_time=30) as laboratory:
        run_id = laboratory.submit()
        for number in (1, 2, 3):
            eventually(lambda n=number: laboratory.client.run(run_id).attempt >= n, within=MINUTES, what="an attempt")
            laboratory.wait_for_start(run_id, attempt=number)
        laboratory.tell(run_id, "finish")
        laboratory.wait_for(run_id, RunState.SUCCEEDED)
        first, second, third = laboratory.attempts(run_id)
        assert [first.state, second.state, third.state] == [
            AttemptState.INTERRUPTED,
            AttemptState.INTERRUPTED,
            AttemptState.SUCCEEDED,
        ]
        assert first.exit_code == 75
        steps = laboratory.written_steps(run_id)
        assert steps == list(range(1, len(steps) + 1))
        assert laboratory.stored_steps(run_id) == steps
        assert len({attempt.provenance["snapshot"] for attempt in (first, second, third) if attempt.provenance}) == 1


def test_a_run_that_does_not_stop_in_time_is_interrupted_by_slurm(
    slurm_cluster: SlurmCluster,  # noqa: F811
    tmp_path: Path,
) -> None:
    with slurm_laboratory(tmp_path, slurm_cluster, time=1, signal_time=0) as laboratory:
        run_id = laboratory.submit()
        laboratory.tell(run_id, "save")
        laboratory.tell(run_id, "stubborn")
        laboratory.wait_for_start(run_id)
        eventually(lambda: laboratory.client.run(run_id).attempt == 2, within=MINUTES, what="the next attempt")
        laboratory.wait_for_start(run_id, attempt=2)
        laboratory.tell(run_id, "finish")
        laboratory.wait_for(run_id, RunState.SUCCEEDED)
        first, _ = laboratory.attempts(run_id)
        assert first.state is AttemptState.INTERRUPTED
        assert first.reason is not None
        assert first.reason.startswith("the time limit was reached (TIMEOUT")
        saved = laboratory.client.checkpoints(run_id)[0].step
        assert steps_of(laboratory, run_id, 2)[0] == saved + 1


def test_a_power_cut_of_a_node_is_noticed_by_slurm_itself(
    slurm_cluster: SlurmCluster,  # noqa: F811
    tmp_path: Path,
) -> None:
    with slurm_laboratory(tmp_path, slurm_cluster) as laboratory:
        run_id = laboratory.submit()
        laboratory.tell(run_id, "save")
        _, _, node = laboratory.wait_for_start(run_id)
        eventually(lambda: laboratory.client.checkpoints(run_id), what="a checkpoint")
        slurm_cluster.crash_node(node)
        try:
            laboratory.wait_for_start(run_id, attempt=2)
        finally:
            slurm_cluster.start_node(node)
        laboratory.tell(run_id, "finish")
        laboratory.wait_for(run_id, RunState.SUCCEEDED)


def test_a_worker_killed_at_any_moment_starts_each_attempt_once(
    slurm_cluster: SlurmCluster,  # noqa: F811
    tmp_path: Path,
) -> None:
    rng = random.Random(7)
    with slurm_laboratory(tmp_path, slurm_cluster) as laboratory:
        runs = []
        for _ in range(8):
            runs.append(laboratory.submit())
            reached = laboratory.run_dir(runs[-1]) / "1" / rng.choice(MOMENTS)
            eventually(reached.exists, what=f"{reached}")
            laboratory.kill_worker()
            laboratory.start_worker()
        for run_id in runs:
            laboratory.tell(run_id, "finish")
        for run_id in runs:
            laboratory.wait_for(run_id, RunState.SUCCEEDED, within=MINUTES)
            # an intent without a submission is void after three looks, a minute apart
            *void, last = laboratory.attempts(run_id)
            assert [attempt.state for attempt in void] in ([], [AttemptState.VOID])
            assert [attempt for attempt, _, _ in laboratory.starts(run_id)] == [last.number]
            assert all(len(laboratory.jobs(run_id, attempt.number)) == (attempt is last) for attempt in [*void, last])
            assert laboratory.stored_steps(run_id) == laboratory.written_steps(run_id)


def test_training_on_two_nodes_meets_and_ends(
    slurm_cluster: SlurmCluster,  # noqa: F811
    tmp_path: Path,
) -> None:
    with slurm_laboratory(tmp_path, slurm_cluster, program=TRAINER, nodes=2, cpus=1) as laboratory:
        run_id = laboratory.submit(config=yaml.safe_load(tiny_yaml(30)))
        eventually(lambda: laboratory.client.run(run_id).state.terminal, within=MINUTES, what="the end")
        run = laboratory.client.run(run_id)
        attempt_dir = laboratory.run_dir(run_id) / "1"
        assert run.state is RunState.SUCCEEDED, f"{run.reason}\n{(attempt_dir / 'stdout.log').read_text()[-3000:]}"
        assert laboratory.stored_steps(run_id) == list(range(1, 31))
        assert sorted(path.name for path in (attempt_dir / "logs").iterdir()) == ["rank0.log", "rank1.log"]
        (job,) = laboratory.jobs(run_id)
        assert job.word == "COMPLETED"


def test_the_launcher_uses_the_same_functions_without_a_service(
    slurm_cluster: SlurmCluster,  # noqa: F811
    tmp_path: Path,
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(tiny_yaml(3))
    launcher = [sys.executable, "-m", "nanollama.launcher", "script=nanollama.apps.gssm.train", f"config={config}"]
    keys = ["launcher.kind=slurm", f"launcher.log_dir={tmp_path / 'out'}", "grid.orchestration.utils.seed=[1, 2]"]
    said = slurm_cluster.run(*launcher, *keys).stdout
    assert said.strip().isdecimal()

    def ended() -> bool:
        return all(job.stage.ended for job in slurm_cluster.jobs("tiny"))

    eventually(ended, within=MINUTES, what="the end of the array")
    assert [job.word for job in slurm_cluster.jobs("tiny")] == ["COMPLETED", "COMPLETED"]
    assert len(list((tmp_path / "out").glob("*/1/result.json"))) == 2
