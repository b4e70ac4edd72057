"""The Slurm executor against a Slurm in memory, with a clock that tests move."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from nanollama.api.status import AttemptState
from nanollama.cluster.slurm import JobState
from nanollama.spec.rundir import EXIT_CLAIM_LOST, STOPPED, Exit, Stopped, write_atomic
from tests.support.examples import experiment
from worker.executors import slurm_job
from worker.executors.base import Attempt, Busy, Phase, Refused
from worker.executors.claim import Claim, read_claim, take_claim
from worker.executors.slurm import SUBMISSION, SlurmExecutor, Submission, marker_of
from worker.executors.slurm_options import SlurmOptions
from worker.executors.slurm_query import Slurm, SlurmBusy, SlurmRefuses, SlurmSilent, job_environment


class FakeSlurm(Slurm):
    """Jobs in a list. `error` is raised by the next calls of what it names."""

    def __init__(self) -> None:
        super().__init__(user="me")
        self.jobs: list[JobState] = []
        self.hidden = False  # whether the queue lies empty
        self.errors: dict[str, Exception] = {}
        self.accepts = True  # whether a job is there after an error of sbatch
        self.submitted: list[Sequence[str]] = []
        self.cancelled: list[tuple[str, int | None]] = []

    def submit(self, arguments: Sequence[str], script: Path) -> int:
        assert script.exists()
        self._fail_if_told("submit_before")
        (name,) = (a.removeprefix("--job-name=") for a in arguments if a.startswith("--job-name="))
        self.submitted.append(arguments)
        job_id = len(self.submitted)
        if self.accepts:
            self.jobs.append(JobState(job_id, name, "PENDING", "Priority"))
        self._fail_if_told("submit")
        return job_id

    def queue(self) -> list[JobState]:
        self.commands += 1
        self._fail_if_told("queue")
        return [] if self.hidden else list(self.jobs)

    def witness(self, ids: Sequence[int]) -> dict[int, JobState | None]:
        self.commands += 1
        self._fail_if_told("witness")
        return {ids[0]: next((job for job in self.jobs if job.id == ids[0]), None)}

    def cancel(self, name: str, *, job_id: int | None = None, kill: bool = False) -> None:
        self._fail_if_told("cancel")
        if not kill:
            self.cancelled.append((name, job_id))
        for job in list(self.jobs):
            if job.name == name and job_id in (None, job.id) and not job.stage.ended:
                self.say(job.id, "CANCELLED")

    def say(self, job_id: int, word: str, reason: str | None = None, name: str | None = None) -> None:
        """Give a job another state."""
        (old,) = (job for job in self.jobs if job.id == job_id)
        self.jobs[self.jobs.index(old)] = JobState(job_id, name or old.name, word, reason)

    def _fail_if_told(self, what: str) -> None:
        if what in self.errors:
            raise self.errors[what]


class Bench:
    """An executor whose rounds and time are the test's."""

    def __init__(self, folder: Path, **options: object) -> None:
        self.now = 1000.0
        self.slurm = FakeSlurm()
        self.options = SlurmOptions.model_validate({"cpus": 2, "max_jobs": 2, **options})
        self.root = folder
        self.executor = self.restart()

    def restart(self) -> SlurmExecutor:
        """The executor of the worker's next life."""
        self.executor = SlurmExecutor(
            self.options, run_root=self.root, slurm=self.slurm, clock=lambda: self.now, background=False
        )
        return self.executor

    def attempt(self, run: str = "r1", number: int = 1, **sections: object) -> Attempt:
        config = experiment() | sections
        return Attempt(f"a-{run}-{number}", self.root / run / str(number), "gssm.train", config, experiment="e1")

    def rounds(self, count: int = 1, seconds: float = 61.0) -> None:
        for _ in range(count):
            self.now += seconds
            self.executor.watch.poll()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    (tmp_path / ".code" / "of").mkdir(parents=True)
    (tmp_path / ".code" / "of" / "e1").write_text("0" * 32)
    code = tmp_path / ".code" / ("0" * 32)
    code.mkdir()
    (code / "provenance.json").write_text('{"version": "1", "python": "3", "host": "h", "platform": "p"}')
    return Bench(tmp_path)


def claim(attempt: Attempt, job_id: int) -> None:
    assert take_claim(attempt.directory, Claim(holder="job", pid=1, slurm_job_id=job_id))


def account(attempt: Attempt, *, terminated: bool = False, code: int | None = 1, stopped: int | None = None) -> None:
    record = Exit(exit_code=code, signal=None if code is not None else 15, time=1e12, terminated=terminated)
    if stopped is not None:
        write_atomic(attempt.directory / STOPPED, Stopped(exit_code=stopped, step=3).model_dump_json().encode())
    write_atomic(attempt.directory / "exit.json", record.model_dump_json().encode())


def submission(attempt: Attempt) -> Submission:
    return Submission.model_validate_json((attempt.directory / SUBMISSION).read_bytes())


# -- submitting --------------------------------------------------------------------------------------------------------


def test_a_start_submits_once_and_the_queue_says_why_it_waits(bench: Bench) -> None:
    attempt = bench.attempt()
    assert bench.executor.look(attempt).phase is Phase.ABSENT
    bench.executor.start(attempt)
    bench.executor.start(attempt)
    assert len(bench.slurm.submitted) == 1
    assert {"--job-name=n2n-r1-1", "--comment=n2n-r1-1", "--no-requeue"} <= set(bench.slurm.submitted[0])
    assert submission(attempt).job_id == 1
    assert bench.executor.look(attempt).phase is Phase.STARTING  # nothing is known yet
    bench.rounds()
    status = bench.executor.look(attempt)
    assert (status.phase, status.reason) == (Phase.SUBMITTED, "Slurm job 1 waits: Priority")
    bench.slurm.say(1, "MELTING", "Sun")
    bench.rounds()
    status = bench.executor.look(attempt)
    assert (status.phase, status.reason) == (Phase.SUBMITTED, "Slurm job 1 waits: MELTING, Sun")


@pytest.mark.parametrize("error", [SlurmBusy("sbatch: no answer"), SlurmRefuses("sbatch: Invalid account")])
def test_a_job_that_was_not_accepted_leaves_no_intent(bench: Bench, error: Exception) -> None:
    attempt = bench.attempt()
    bench.slurm.errors["submit_before"] = error
    with pytest.raises(Refused if isinstance(error, SlurmRefuses) else Busy, match=str(error)):
        bench.executor.start(attempt)
    assert bench.executor.look(attempt).phase is Phase.ABSENT
    bench.slurm.errors.clear()
    if isinstance(error, SlurmBusy):
        with pytest.raises(Busy):  # it is not asked at once again
            bench.executor.start(attempt)
    bench.now += 31
    bench.executor.start(attempt)
    assert submission(attempt).job_id == 1


def test_a_lost_answer_is_looked_up_by_name_also_in_the_next_life(bench: Bench) -> None:
    attempt = bench.attempt()
    bench.slurm.errors["submit"] = SlurmSilent("sbatch gave no answer")
    bench.executor.start(attempt)
    assert submission(attempt).job_id is None
    bench.executor.start(attempt)
    executor = bench.restart()
    executor.start(attempt)
    assert executor.look(attempt).phase is Phase.STARTING
    bench.rounds()
    assert executor.look(attempt).phase is Phase.SUBMITTED
    assert submission(attempt).job_id == 1
    assert len(bench.slurm.submitted) == 1


def test_only_three_looks_a_minute_apart_make_a_submission_void(bench: Bench) -> None:
    attempt = bench.attempt()
    bench.slurm.accepts = False
    bench.slurm.errors["submit"] = SlurmSilent("sbatch gave no answer")
    bench.executor.start(attempt)
    bench.executor.look(attempt)
    bench.rounds(20, seconds=1)  # often, in less than a minute: that is one look
    bench.slurm.errors["queue"] = SlurmSilent("squeue failed")
    bench.rounds(10)  # and these say nothing
    del bench.slurm.errors["queue"]
    bench.rounds(1)
    assert bench.executor.look(attempt).phase is Phase.STARTING
    bench.rounds(1)
    status = bench.executor.look(attempt)
    assert (status.phase, status.verdict) == (Phase.FAILED_TO_START, AttemptState.VOID)
    assert bench.executor.forbid(attempt, "void")
    assert bench.executor.look(attempt).phase is Phase.FORBIDDEN


def test_the_cap_holds_back_what_is_too_much(bench: Bench) -> None:
    first, second, third = (bench.attempt(run) for run in ("r1", "r2", "r3"))
    bench.executor.start(first)
    bench.executor.start(second)
    with pytest.raises(Busy, match="max_jobs is 2"):
        bench.executor.start(third)
    bench.executor.forbid(first, "cancel")
    bench.executor.release(first)
    bench.executor.start(third)
    assert submission(third).job_id == 3


@pytest.mark.parametrize(
    ("options", "sections", "said"),
    [
        ({}, {"cluster": {"nproc_per_node": 4}}, "4 ranks on a node, and the worker asks Slurm for 2 CPUs"),
        ({}, {"cluster": {"device": "cuda"}}, "wants 1 GPUs on a node, and the worker asks Slurm for 0"),
        ({"nodes": 3}, {}, "batch_size 8 is not divisible by 3 ranks"),
        ({}, {"app": "gssm.trane"}, "of the app 'gssm.trane'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    bench: Bench, options: dict[str, object], sections: dict[str, object], said: str
) -> None:
    bench.options = SlurmOptions.model_validate(bench.options.model_dump() | options)
    attempt = bench.attempt(**sections)
    with pytest.raises(Refused, match=said):
        bench.restart().start(attempt)
    assert not attempt.directory.exists()


# -- running and ending ------------------------------------------------------------------------------------------------


@pytest.fixture
def running(bench: Bench) -> Attempt:
    attempt = bench.attempt()
    bench.executor.start(attempt)
    bench.slurm.say(1, "RUNNING")
    claim(attempt, 1)
    bench.executor.look(attempt)
    bench.rounds()
    assert bench.executor.look(attempt).phase is Phase.RUNNING
    return attempt


@pytest.mark.parametrize("word", ["RUNNING", "COMPLETING", "SUSPENDED", "STAGE_OUT", "SIGNALING", "MELTING", "PENDING"])
def test_whatever_is_no_end_leaves_it_running(bench: Bench, running: Attempt, word: str) -> None:
    bench.slurm.say(1, word)
    bench.rounds(5)
    assert bench.executor.look(running).phase is Phase.RUNNING


@pytest.mark.parametrize(
    ("word", "verdict", "said"),
    [
        ("TIMEOUT", AttemptState.INTERRUPTED, "the time limit was reached"),
        ("PREEMPTED", AttemptState.INTERRUPTED, "another job took its place"),
        ("NODE_FAIL", AttemptState.INTERRUPTED, "a node failed"),
        ("BOOT_FAIL", AttemptState.INTERRUPTED, "a node did not boot"),
        ("REVOKED", AttemptState.INTERRUPTED, "Slurm ended the job"),
        ("OUT_OF_MEMORY", AttemptState.FAILED, "it used more memory than the job was given"),
        ("DEADLINE", AttemptState.FAILED, "the job's deadline has passed"),
        ("FAILED", AttemptState.FAILED, "Slurm job 1: FAILED"),
        ("COMPLETED", AttemptState.FAILED, "is COMPLETED, but the run left no account of its end"),
        ("CANCELLED", AttemptState.CANCELLED, "was cancelled by hand"),
        ("CANCELLED by 0", AttemptState.CANCELLED, "was cancelled by hand"),
        ("CANCELLED+", AttemptState.CANCELLED, "was cancelled by hand"),
    ],
)
def test_slurms_word_decides_where_there_is_no_account(
    bench: Bench, running: Attempt, word: str, verdict: AttemptState, said: str
) -> None:
    bench.slurm.say(1, word)
    bench.rounds()
    assert bench.executor.look(running).phase is Phase.RUNNING  # its files may be on their way
    bench.now += 61  # as long as a client of NFS may believe that a file is not there
    assert bench.executor.look(running).phase is Phase.RUNNING
    bench.now += 10
    status = bench.executor.look(running)
    assert (status.phase, status.verdict) == (Phase.JUDGED, verdict)
    assert status.reason is not None
    assert said in status.reason


@pytest.mark.parametrize(
    ("word", "verdict"),
    [
        ("TIMEOUT", AttemptState.INTERRUPTED),
        ("PREEMPTED", AttemptState.INTERRUPTED),
        ("CANCELLED", AttemptState.CANCELLED),
    ],
)
def test_a_run_that_was_told_to_end_waits_for_the_word_why(
    bench: Bench, running: Attempt, word: str, verdict: AttemptState
) -> None:
    account(running, terminated=True, code=None)
    assert bench.executor.look(running).phase is Phase.RUNNING
    bench.slurm.say(1, word)
    bench.rounds()
    status = bench.executor.look(running)
    assert (status.phase, status.verdict) == (Phase.JUDGED, verdict)


def test_a_run_that_was_ended_from_here_waits_for_no_word(bench: Bench, running: Attempt) -> None:
    bench.executor.stop(running)
    account(running, terminated=True, code=None)
    assert bench.executor.look(running).phase is Phase.ENDED


def test_a_run_that_ends_by_itself_waits_for_no_word(bench: Bench, running: Attempt) -> None:
    account(running, code=1, stopped=75)
    assert bench.executor.look(running).phase is Phase.ENDED


def test_a_failure_is_its_own_unless_memory_ran_out(bench: Bench, running: Attempt) -> None:
    account(running, code=1)
    assert bench.executor.look(running).phase is Phase.RUNNING
    bench.slurm.say(1, "FAILED")
    bench.rounds()
    assert bench.executor.look(running).phase is Phase.ENDED
    bench.slurm.say(1, "OUT_OF_MEMORY")
    bench.restart().look(running)
    bench.rounds()
    assert bench.executor.look(running).verdict is AttemptState.FAILED


def test_a_job_that_is_gone_without_account_is_for_a_person(bench: Bench, running: Attempt) -> None:
    bench.slurm.jobs.clear()
    bench.rounds(2)
    assert bench.executor.look(running).phase is Phase.RUNNING
    bench.rounds(1)
    status = bench.executor.look(running)
    assert status.phase is Phase.UNKNOWN
    assert status.reason == "job 1 has run, Slurm does not know it any more, and it left no account of its end"
    account(running, code=1, stopped=2)  # it shows up after all
    assert bench.executor.look(running).phase is Phase.ENDED


def test_a_run_whose_files_are_gone_is_as_slurm_says_and_nothing_is_cancelled(bench: Bench, running: Attempt) -> None:
    shutil.rmtree(running.directory)
    executor = bench.restart()
    assert executor.look(running).phase is Phase.ABSENT
    assert executor.look_without_files(running).phase is Phase.UNKNOWN
    bench.rounds()
    status = executor.look_without_files(running)
    assert (status.phase, status.reason) == (
        Phase.UNKNOWN,
        f"its files are gone from {running.directory}; Slurm job 1 is RUNNING",
    )
    bench.slurm.say(1, "TIMEOUT")
    bench.rounds(2, seconds=80)
    status = executor.look_without_files(running)
    assert (status.phase, status.verdict) == (Phase.JUDGED, AttemptState.INTERRUPTED)
    assert bench.slurm.cancelled == []


def test_a_number_that_slurm_gave_to_another_job_is_not_ours(bench: Bench, running: Attempt) -> None:
    bench.slurm.say(1, "RUNNING", name="other")
    bench.rounds(3)
    assert bench.executor.look(running).phase is Phase.UNKNOWN


def test_a_queue_that_lies_empty_is_found_out(bench: Bench, running: Attempt) -> None:
    bench.slurm.hidden = True
    bench.rounds(10)
    assert bench.executor.look(running).phase is Phase.RUNNING
    bench.slurm.errors["witness"] = SlurmSilent("scontrol failed")
    bench.rounds(10)
    assert bench.executor.look(running).phase is Phase.RUNNING


def test_a_second_job_of_an_attempt_is_cancelled(bench: Bench, running: Attempt) -> None:
    bench.slurm.jobs.append(JobState(7, "n2n-r1-1", "PENDING"))
    bench.slurm.jobs.insert(0, JobState(8, "n2n-r1-1", "PENDING"))
    bench.rounds()
    assert sorted(bench.slurm.cancelled) == [("n2n-r1-1", 7), ("n2n-r1-1", 8)]
    assert bench.executor.look(running).phase is Phase.RUNNING


def test_a_second_job_that_runs_is_left_alone_for_it_may_hold_the_claim(bench: Bench) -> None:
    """Of two jobs the one that was not known has started: its claim is seen only at the next look at the files."""
    attempt = bench.attempt()
    bench.executor.start(attempt)
    bench.rounds()
    bench.slurm.jobs.append(JobState(7, "n2n-r1-1", "RUNNING"))
    claim(attempt, 7)
    bench.rounds()
    assert bench.slurm.cancelled == []
    assert bench.executor.look(attempt).phase is Phase.RUNNING
    bench.rounds()
    assert bench.slurm.cancelled == [("n2n-r1-1", 1)]
    assert bench.executor.look(attempt).phase is Phase.RUNNING


# -- before the claim --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "reason", "verdict"),
    [
        ("CANCELLED", None, AttemptState.CANCELLED),
        ("NODE_FAIL", None, AttemptState.INTERRUPTED),
        ("FAILED", "JobLaunchFailure", None),
        ("COMPLETED", None, None),
    ],
)
def test_a_job_that_ends_before_the_start(
    bench: Bench, word: str, reason: str | None, verdict: AttemptState | None
) -> None:
    attempt = bench.attempt()
    bench.executor.start(attempt)
    bench.slurm.say(1, word, reason)
    bench.rounds()
    assert bench.executor.look(attempt).phase is Phase.STARTING
    bench.now += 11
    status = bench.executor.look(attempt)
    assert (status.phase, status.verdict) == (Phase.FAILED_TO_START, verdict)
    assert status.reason is not None
    assert ("shared with the nodes" in status.reason) == (reason == "JobLaunchFailure")


def test_a_start_that_is_forbidden_leaves_the_queue_even_where_slurm_is_away(bench: Bench) -> None:
    attempt = bench.attempt()
    bench.executor.start(attempt)
    bench.slurm.errors["cancel"] = SlurmSilent("scancel failed")
    assert bench.executor.forbid(attempt, "cancel")
    assert not bench.executor.forbid(attempt, "void")
    bench.executor.release(attempt)
    bench.rounds()
    assert bench.slurm.cancelled == []
    bench.slurm.errors.clear()
    bench.rounds()
    assert bench.slurm.cancelled == [("n2n-r1-1", None)]
    bench.rounds()
    assert len(bench.slurm.cancelled) == 1


def test_a_round_asks_slurm_at_most_twice(bench: Bench) -> None:
    bench.options = bench.options.model_copy(update={"max_jobs": 200})
    bench.restart()
    for number in range(200):
        bench.executor.start(bench.attempt(f"r{number}"))
    for hidden in (False, True):
        bench.slurm.hidden = hidden
        before = bench.slurm.commands
        bench.rounds()
        assert bench.slurm.commands - before <= 2
    bench.slurm.hidden = False
    for job in list(bench.slurm.jobs):
        bench.slurm.say(job.id, "CANCELLED")
    bench.rounds()
    before = bench.slurm.commands
    bench.rounds()
    assert bench.slurm.commands == before  # all have ended: there is nothing to ask


# -- the job's side ----------------------------------------------------------------------------------------------------


@pytest.fixture
def prologue(tmp_path: Path, bench: Bench) -> Callable[..., int]:
    """Runs the job's program in a process of its own for an attempt; returns the exit code."""
    attempt = bench.attempt()
    bench.executor.start(attempt)

    def run(*command: str, **environment: str) -> int:
        program = [sys.executable, "-m", "worker.executors.slurm_job", attempt.id, str(attempt.directory), "1"]
        variables = {**os.environ, "SLURM_JOB_ID": "42", **environment}
        root = Path(slurm_job.__file__).parents[2]
        return subprocess.run([*program, *command], env=variables, cwd=root, timeout=60, check=False).returncode

    return run


def test_a_job_takes_the_claim_and_ends_with_the_code(bench: Bench, prologue: Callable[..., int]) -> None:
    attempt = bench.attempt()
    assert prologue("sh", "-c", f"echo ran >> {bench.root}/ran; exit 3") == 3
    held = read_claim(attempt.directory)
    assert held is not None
    assert (held.holder, held.slurm_job_id) == ("job", 42)
    assert prologue("sh", "-c", f"echo ran >> {bench.root}/ran") == EXIT_CLAIM_LOST
    assert (bench.root / "ran").read_text() == "ran\n"


def test_a_requeued_job_runs_nothing(bench: Bench, prologue: Callable[..., int]) -> None:
    assert prologue("touch", str(bench.root / "ran"), SLURM_RESTART_COUNT="1") == EXIT_CLAIM_LOST
    assert not (bench.root / "ran").exists()
    assert read_claim(bench.attempt().directory) is None


def test_what_a_job_inherits() -> None:
    given = {"PATH": "/bin", "N2N_TOKEN": "secret", "SBATCH_PARTITION": "x", "SLURM_JOB_ID": "3", "SLURM_CONF": "/c"}
    assert job_environment(given) == {"PATH": "/bin", "SLURM_CONF": "/c"}


def test_the_marker() -> None:
    assert marker_of(Attempt("a", Path("/runs/r9/12"), "gssm.train", {})) == "n2n-r9-12"
