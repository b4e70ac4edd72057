"""The programs of Slurm: submit, look, cancel. Each has a deadline, and one that fails says nothing about any job."""

from __future__ import annotations

import getpass
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from nanollama.cluster.slurm import (
    ACCOUNTING_FORMAT,
    QUEUE_FORMAT,
    Denial,
    JobState,
    parse_accounting,
    parse_details,
    parse_job_id,
    parse_queue,
    read_denial,
)


class SlurmSilent(Exception):
    """A program of Slurm failed or did not answer in time: nothing is known, and what was asked for may be done."""


class SlurmRefuses(Exception):
    """Slurm will not have the job, with its reason; nothing was submitted."""


class SlurmBusy(Exception):
    """Slurm takes no job at the moment, with its reason; nothing was submitted."""


_NO_SUCH_JOB = re.compile(r"invalid job id", re.I)


class Slurm:
    """Slurm, as this user sees it.

    Args:
        seconds: after which a program that has not answered is given up.
        user: whose jobs are looked at; who calls when absent.
    """

    def __init__(self, *, seconds: float = 30.0, user: str | None = None) -> None:
        self._seconds = seconds
        self._user = user or getpass.getuser()
        self._accounting: bool | None = None  # whether sacct has something to say; None: not tried yet
        self.commands = 0
        """How many programs were started."""

    def submit(self, arguments: Sequence[str], script: Path) -> int:
        """Submit a job; its id.

        Raises:
            SlurmRefuses, SlurmBusy: nothing was submitted.
            SlurmSilent: it may have been submitted.
        """
        done = self._run(["sbatch", *arguments, str(script)])
        if done.returncode == 0:
            try:
                return parse_job_id(done.stdout).id
            except ValueError as error:
                raise SlurmSilent(str(error)) from None
        denial = read_denial(done.returncode, done.stderr)
        if denial is Denial.LOST:
            raise SlurmSilent(_said(done))
        raise SlurmRefuses(_said(done)) if denial is Denial.REFUSED else SlurmBusy(_said(done))

    def queue(self) -> list[JobState]:
        """Every job of this user that Slurm still knows, ended ones too.

        Raises:
            SlurmSilent: nothing is known.
        """
        done = self._run(["squeue", "--noheader", "--states=all", f"--user={self._user}", f"--format={QUEUE_FORMAT}"])
        if done.returncode != 0:
            raise SlurmSilent(_said(done))
        return parse_queue(done.stdout)

    def witness(self, ids: Sequence[int]) -> dict[int, JobState | None]:
        """What a second program says of jobs that the queue does not show; None: Slurm knows no such job.

        With accounting all are asked about at once, without it the controller about the first alone. It is asked too
        when accounts say that jobs go on: those of a controller that has crashed may say so for ever. Of the others
        nothing is said.

        Raises:
            SlurmSilent: nothing is known.
        """
        if self._accounting is not False:
            listed = ",".join(str(i) for i in ids)
            done = self._run(["sacct", "-X", "-n", "-P", "-o", ACCOUNTING_FORMAT, "-j", listed])
            if done.returncode == 0 and "error" not in done.stderr:
                self._accounting = True
                known = {state.id: state for state in parse_accounting(done.stdout)}
                live = [i for i in ids if i in known and not known[i].stage.ended]
                said = {i: known.get(i) for i in ids if i not in live}
                try:
                    return said | (self._ask_controller(live[0]) if live else {})
                except SlurmSilent:
                    if said:
                        return said  # what accounts say of the others holds all the same
                    raise
            if "disabled" not in done.stderr:
                raise SlurmSilent(_said(done))
            self._accounting = False
            return {}  # two programs have been asked in this round: the next one asks another
        return self._ask_controller(ids[0])

    def _ask_controller(self, job_id: int) -> dict[int, JobState | None]:
        """What the controller says of one job."""
        done = self._run(["scontrol", "--oneliner", "show", "job", str(job_id)])
        if done.returncode != 0:
            if _NO_SUCH_JOB.search(done.stderr + done.stdout):
                return {job_id: None}
            raise SlurmSilent(_said(done))
        state = parse_details(done.stdout)
        if state is None:
            raise SlurmSilent(f"scontrol told of no job: {done.stdout[:200]!r}")
        return {job_id: state}

    def cancel(self, name: str, *, job_id: int | None = None, kill: bool = False) -> None:
        """Cancel this user's jobs of a name; nothing happens where there are none.

        Args:
            name: the marker of an attempt.
            job_id: only the job with this id, if it has that name and still waits.
            kill: send SIGKILL to all that runs, instead of asking first.

        Raises:
            SlurmSilent: it may not have been done.
        """
        force = ["--signal=KILL", "--full"] if kill else []
        which = [] if job_id is None else ["--state=PENDING", str(job_id)]
        done = self._run(["scancel", *force, f"--user={self._user}", f"--name={name}", *which])
        if done.returncode != 0:
            raise SlurmSilent(_said(done))

    def _run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a program in a session of its own, so that nothing of it is left when it is given up."""
        self.commands += 1
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env=job_environment(os.environ),
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise SlurmSilent(f"cannot run {command[0]}: {error.strerror}") from None
        try:
            stdout, stderr = process.communicate(timeout=self._seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # not waited for yet, so the group is its own
            process.communicate()
            raise SlurmSilent(f"{command[0]} gave no answer within {self._seconds:.0f} s") from None
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def job_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What a job gets of the worker's environment: nothing that would change what Slurm is asked for, no secret."""
    foreign = ("SBATCH_", "SLURM_", "SQUEUE_", "SCANCEL_", "SACCT_", "SCONTROL_", "N2N_")
    kept = {key: value for key, value in environment.items() if not key.startswith(foreign)}
    if "SLURM_CONF" in environment:
        kept["SLURM_CONF"] = environment["SLURM_CONF"]
    return kept


def _said(done: subprocess.CompletedProcess[str]) -> str:
    """What a failed program has said, on one line."""
    program = Path(done.args[0]).name
    text = " ".join((done.stderr.strip() or done.stdout.strip()).split())
    text = re.sub(rf"\b{program}: (error: )?", "", text)
    return f"{program}: {text[:500]}" if text else f"{program} ended with code {done.returncode} and said nothing"
