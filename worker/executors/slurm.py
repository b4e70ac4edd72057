"""Executes attempts as jobs of a Slurm cluster that shares the run root.

What survives a crash stands in the attempt directory: submission.json, written before sbatch is called and again with
the number of the job, the claim, and exit.json. Whether user code runs is decided by the claim alone, which the job
takes before anything else; Slurm's words say what the files cannot.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from nanollama.cluster.slurm import Harness, batch_script, sbatch_arguments
from nanollama.cluster.slurm import Job as SlurmJob
from nanollama.spec.base import Spec, SpecError
from nanollama.spec.experiment import APPS, ExperimentSpec
from nanollama.spec.rundir import CONFIG, EXIT, PROVENANCE, RESULT, STOPPED, Exit, write_atomic
from nanollama.spec.yaml_text import dump_yaml
from worker.executors.base import Attempt, Busy, ExecutorKind, Forbidder, Phase, Refused, Status
from worker.executors.claim import Claim, read_claim, take_claim
from worker.executors.commands import nproc_per_node, read_spec
from worker.executors.slurm_options import SlurmOptions
from worker.executors.slurm_query import Slurm, SlurmBusy, SlurmRefuses, SlurmSilent
from worker.executors.slurm_verdict import after_the_claim, before_the_claim
from worker.executors.slurm_watch import Sighting, Watch
from worker.executors.snapshot import provenance_of, snapshot_of

log = logging.getLogger(__name__)

SUBMISSION = "submission.json"
BATCH_SCRIPT = "job.sh"
_LOOKS_PER_SECOND = 6.0
"""At all attempts together: a look and what it ships take some thousandths of a second."""

_CLAIM_SECONDS = 10.0
"""How long after a job's end a claim of it may take to be seen. To wait too little is no harm: nobody can take it then,
and the executor that tries to is told."""

_TURN_SECONDS = 0.5
"""How long a submission waits for others, before its turn comes later."""


class Submission(BaseModel):
    """submission.json: that the job of an attempt was to be submitted, and, once it is known, its number."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    marker: str
    token: str
    time: float
    job_id: int | None = None


@dataclass(frozen=True)
class _Evidence:
    """What lies in an attempt directory."""

    claim: Claim | None
    submission: Submission | None
    exit: Exit | None
    clean: bool  # the run has come to its own end and has said how, or was ended from here


class SlurmExecutor:
    """Attempts as jobs of Slurm.

    Args:
        options: what Slurm is asked for.
        run_root: where the attempts are; shared with the nodes.
        grace: seconds that a job which is told to end has, before what is left of it is killed.
        slurm: Slurm's programs; those on the path when absent.
        clock: tells the time in seconds, from any origin.
        background: whether the queue is looked at by a thread; otherwise by calls of `watch.poll`.
        look_seconds: the least between two looks at the files of an attempt; they ask a file system of a cluster.
        settle_seconds: how long after a job's end its files may take to be seen here. NFS by default lets a client
            believe for up to a minute that a file is not there.
        command: what a job runs instead of its app, for tests.
    """

    def __init__(
        self,
        options: SlurmOptions,
        *,
        run_root: Path,
        grace: float = 5.0,
        slurm: Slurm | None = None,
        clock: Callable[[], float] = time.monotonic,
        background: bool = True,
        look_seconds: float = 1.0,
        settle_seconds: float = 70.0,
        command: Callable[[SlurmJob], SlurmJob] = lambda job: job,
    ) -> None:
        self._options = options
        self._run_root = run_root
        self._grace = grace
        self._slurm = slurm or Slurm(seconds=options.command_seconds)
        self._clock = clock
        self._look_seconds = look_seconds
        self._settle_seconds = settle_seconds
        self._command = command
        self.watch = Watch(self._slurm, poll_seconds=options.poll_seconds, clock=clock, background=background)
        self._turn = threading.Lock()  # one submission at a time
        self._not_before = 0.0  # when Slurm may be asked again to take a job
        self._not_now = ""  # why it would not
        self._submissions: dict[str, Submission] = {}  # by marker, as written; once there is a number it stays
        self._told: set[str] = set()  # markers of jobs that were told from here to end: nobody need be asked why

    @property
    def kind(self) -> ExecutorKind:
        """The name of the executor on the wire."""
        return "slurm"

    @property
    def look_seconds(self) -> float:
        """How long to wait between two looks at an attempt that goes on; the more of them, the longer."""
        return max(self._look_seconds, self.watch.count_active() / _LOOKS_PER_SECOND)

    def start(self, attempt: Attempt) -> None:
        """Submit a job, unless one was, or may have been, submitted.

        Raises:
            Refused: an app or config that cannot be run, or a job that Slurm refuses.
            Busy: as many jobs as may be are in the queue, or Slurm takes none at the moment.
            OSError: a directory that cannot be written; nothing has been submitted.
        """
        spec = read_spec(attempt)
        self._check(spec)
        if not self._turn.acquire(timeout=_TURN_SECONDS):
            raise Busy("other jobs are being submitted")
        try:
            if self._read_submission(attempt) is None:
                self._wait_for_room()
                self._submit(attempt, spec)
        finally:
            self._turn.release()

    def look(self, attempt: Attempt) -> Status:
        """Where the attempt is, by the files in its directory and by what Slurm has said of its job.

        Raises:
            OSError: the files cannot be seen.
        """
        marker = marker_of(attempt)
        claim, submission = read_claim(attempt.directory), self._read_submission(attempt)
        if claim is None and submission is None:
            return Status(Phase.ABSENT)
        if claim is not None and claim.holder != "job":
            return Status(Phase.FORBIDDEN, forbidder=claim.holder)
        claimed = claim is not None
        job_id = claim.slurm_job_id if claim is not None else submission.job_id if submission is not None else None
        # first what Slurm says, then the files: a job writes before it ends, so what it has written is seen
        sighting = self.watch.follow(marker, job_id, claimed=claimed)
        evidence = self._evidence(attempt, told=marker in self._told)
        if evidence.claim is None:
            self._remember_number(attempt, evidence.submission, sighting)
            return before_the_claim(
                sighting, settled=self._ended_for(sighting) >= min(_CLAIM_SECONDS, self._settle_seconds)
            )
        if evidence.exit is not None and not evidence.clean:
            self.watch.hurry()
        return after_the_claim(
            sighting,
            exit_=evidence.exit,
            clean=evidence.clean,
            settled=self._ended_for(sighting) >= self._settle_seconds,
            silent=self._silent_since(evidence.exit),
        )

    def look_without_files(self, attempt: Attempt) -> Status:
        """What Slurm says of its job; one that goes on is left alone, until somebody cancels it."""
        sighting = self.watch.follow(marker_of(attempt), None, claimed=False)
        settled = self._ended_for(sighting) >= self._settle_seconds
        status = after_the_claim(sighting, exit_=None, clean=False, settled=settled, silent=0.0)
        if status.phase is not Phase.RUNNING:
            return status
        state = sighting.state
        said = "Slurm is asked for its job" if state is None else f"Slurm job {state.id} is {state.word}"
        return Status(Phase.UNKNOWN, reason=f"its files are gone from {attempt.directory}; {said}")

    def forbid(self, attempt: Attempt, by: Forbidder) -> bool:
        """Take the claim, so that no job can, and take the job out of the queue."""
        attempt.directory.mkdir(parents=True, exist_ok=True)
        won = take_claim(attempt.directory, Claim(holder=by))
        if won and self._read_submission(attempt) is not None:
            self.watch.cancel(marker_of(attempt))
        return won

    def stop(self, attempt: Attempt) -> None:
        """Let Slurm end the job, as soon as it can be reached."""
        self._told.add(marker_of(attempt))
        self.watch.cancel(marker_of(attempt))

    def kill(self, attempt: Attempt) -> None:
        """Let Slurm kill the job, as soon as it can be reached."""
        self._told.add(marker_of(attempt))
        self.watch.cancel(marker_of(attempt), kill=True)

    def release(self, attempt: Attempt) -> None:
        """Follow the job no more."""
        self._told.discard(marker_of(attempt))
        self._submissions.pop(marker_of(attempt), None)
        self.watch.forget(marker_of(attempt))

    # -- submitting --------------------------------------------------------------------------------------------------

    def _check(self, spec: Spec) -> None:
        ranks, nodes = nproc_per_node(spec), self._nodes(spec)
        if ranks > self._options.cpus:
            raise Refused(
                f"the run has {ranks} ranks on a node, and the worker asks Slurm for {self._options.cpus} CPUs there: "
                "raise `cpus` in the worker's `slurm` section, or lower cluster.nproc_per_node"
            )
        if not isinstance(spec, ExperimentSpec):
            return
        if spec.cluster.device == "cuda" and ranks > self._options.gpus_per_node:
            raise Refused(
                f"the run wants {ranks} GPUs on a node, and the worker asks Slurm for {self._options.gpus_per_node}: "
                "raise `gpus_per_node` in the worker's `slurm` section, or lower cluster.nproc_per_node"
            )
        parts = ranks * nodes * spec.optim.grad_acc_steps
        if spec.data.batch_size % parts:
            raise Refused(
                f"data.batch_size {spec.data.batch_size} is not divisible by {ranks * nodes} ranks "
                f"({nodes} nodes x {ranks}) x {spec.optim.grad_acc_steps} accumulation steps"
            )

    def _nodes(self, spec: Spec) -> int:
        return self._options.nodes if isinstance(spec, ExperimentSpec) else 1

    def _wait_for_room(self) -> None:
        if self._clock() < self._not_before:
            raise Busy(self._not_now)
        active = self.watch.count_active()
        if active >= self._options.max_jobs:
            raise Busy(f"{active} jobs of this worker are in Slurm's queue, and max_jobs is {self._options.max_jobs}")

    def _submit(self, attempt: Attempt, spec: Spec) -> None:
        marker, directory = marker_of(attempt), attempt.directory
        directory.mkdir(parents=True, exist_ok=True)
        code = snapshot_of(attempt.experiment or directory.parent.name, self._run_root)
        submission = Submission(marker=marker, token=uuid.uuid4().hex, time=time.time())
        job = self._command(self._job(attempt, spec, submission, code))
        resources = self._options.resources(nodes=self._nodes(spec))
        try:
            arguments = sbatch_arguments(resources, job)
        except SpecError as error:
            raise Refused(str(error)) from None
        write_atomic(directory / CONFIG, dump_yaml(spec).encode())
        write_atomic(directory / PROVENANCE, provenance_of(code).model_dump_json(indent=2).encode())
        write_atomic(directory / BATCH_SCRIPT, batch_script(resources, job).encode())
        _write(directory, submission)
        self.watch.follow(marker, None, claimed=False)
        try:
            job_id = self._slurm.submit(arguments, directory / BATCH_SCRIPT)
        except (SlurmRefuses, SlurmBusy) as error:
            (directory / SUBMISSION).unlink()
            self.watch.forget(marker)
            if isinstance(error, SlurmRefuses):
                remedy = "check the `slurm` section of the worker's config"
                raise Refused(f"Slurm refuses the job: {error} - {remedy}") from None
            self._not_before, self._not_now = (
                self._clock() + self._options.poll_seconds,
                f"Slurm takes no job now: {error}",
            )
            raise Busy(self._not_now) from None
        except SlurmSilent as error:
            log.warning("%s: %s; looking for the job before another is submitted", marker, error)
            return
        _write(directory, submission.model_copy(update={"job_id": job_id}))
        self.watch.follow(marker, job_id, claimed=True)

    def _job(self, attempt: Attempt, spec: Spec, submission: Submission, code: Path) -> SlurmJob:
        app = APPS[attempt.app]
        supervisor = [sys.executable, "-m", "worker.executors.slurm_job"]
        return SlurmJob(
            name=submission.marker,
            attempt_dir=attempt.directory,
            work_dir=code,
            python=sys.executable,
            module=app.module,
            knows_attempts=True,
            nproc_per_node=nproc_per_node(spec),
            torchrun=app.torchrun,
            cpus_per_node=self._options.cpus,
            harness=Harness(
                wrapper=(*supervisor, attempt.id, str(attempt.directory), str(self._grace)),
                setup=self._options.setup,
                python_path=code,
                shared_file=attempt.directory / SUBMISSION,
                token=submission.token,
                sweep=(sys.executable, "-m", "worker.executors.sweep", attempt.id),
            ),
        )

    # -- evidence ----------------------------------------------------------------------------------------------------

    def _evidence(self, attempt: Attempt, *, told: bool) -> _Evidence:
        directory = attempt.directory
        exit_ = _read_exit(directory)
        clean = exit_ is not None and told and self._options.nodes == 1
        if exit_ is not None and not exit_.terminated:
            written = RESULT if exit_.exit_code == 0 else STOPPED
            clean = clean or (directory / written).exists()
        return _Evidence(read_claim(directory), self._read_submission(attempt), exit_, clean)

    def _read_submission(self, attempt: Attempt) -> Submission | None:
        marker = marker_of(attempt)
        known = self._submissions.get(marker)
        if known is not None:
            return known
        try:
            found = Submission.model_validate_json((attempt.directory / SUBMISSION).read_bytes())
        except FileNotFoundError:
            return None
        if found.job_id is not None:
            self._submissions[marker] = found
        return found

    def _remember_number(self, attempt: Attempt, submission: Submission | None, sighting: Sighting) -> None:
        """Keep the number of a job that was found by its marker."""
        if submission is not None and sighting.state is not None and submission.job_id != sighting.job_id:
            log.info("%s: it is Slurm's job %s", submission.marker, sighting.job_id)
            self._submissions.pop(submission.marker, None)
            _write(attempt.directory, submission.model_copy(update={"job_id": sighting.job_id}))

    def _ended_for(self, sighting: Sighting) -> float:
        """For how many seconds Slurm has been known to have ended the job."""
        return 0.0 if sighting.ended_at is None else self._clock() - sighting.ended_at

    def _silent_since(self, exit_: Exit | None) -> float:
        """For how many seconds Slurm has had nothing to say of a run that has ended."""
        return 0.0 if exit_ is None else max(0.0, time.time() - exit_.time)


def marker_of(attempt: Attempt) -> str:
    """Name and comment of the job of an attempt."""
    return f"n2n-{attempt.directory.parent.name}-{attempt.directory.name}"


def _write(directory: Path, submission: Submission) -> None:
    write_atomic(directory / SUBMISSION, submission.model_dump_json().encode())


def _read_exit(directory: Path) -> Exit | None:
    try:
        return Exit.model_validate_json((directory / EXIT).read_bytes())
    except FileNotFoundError:
        return None
