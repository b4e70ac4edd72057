"""Slurm without Slurm: the batch script and the arguments of sbatch, and what Slurm prints, as pure functions.

Nothing that a user wrote becomes a line of the script: options of sbatch are arguments, and every string in the script
stands in it as one quoted word on one line.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from nanollama.spec.base import Problem, SpecError
from nanollama.spec.cluster import SlurmSpec
from nanollama.spec.rundir import CONFIG, LOCK, STDOUT, STOP_REQUESTED

# A trap runs only between two commands, so torchrun runs in the background and the script waits. A `wait` that a
# signal cut short says nothing about torchrun: the loop waits again, until one has come to its own end.
_SCRIPT = """\
#!/bin/bash
# Slurm signals before the time limit. torchrun would swallow the signal; the file asks the training loop to stop.
attempt_dir={attempt_dir}
stop_requested=$attempt_dir/{stop_requested}
child=
terminated=
trap 'signalled=1; touch -- "$stop_requested"' USR1
trap 'signalled=1; terminated=1; [ -z "$child" ] || kill -TERM "$child"' TERM
{preparation}
{command} &
child=$!
[ -z "$terminated" ] || kill -TERM "$child"
while :; do
  signalled=
  wait "$child"
  code=$?
  [ -n "$signalled" ] || break
done
{ending}
"""

EXIT_NOT_SHARED = 78
"""Of a job that cannot read what the worker has written."""

_NOT_SHARED = "error: this node does not see the files of the run: the run root is not on a file system that it shares"

# Kept until the last process of the script has ended. flock ends otherwise where the file system has no locks, or where
# there is no flock, which keeps nobody out.
_ONLY_RUN = (
    'run_dir="${attempt_dir%/*}"',
    f'exec 9>>"$run_dir/{LOCK}"',
    "flock --nonblock --conflict-exit-code 75 9",
    "if [ $? = 75 ]; then",
    '  echo "error: a run is under way in $run_dir: wait for its end, or choose another directory" >&2',
    "  exit 1",
    "fi",
)

_RENDEZVOUS = (
    'export N2N_HEAD_NODE="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"',
    'export N2N_HEAD_PORT="$((20000 + SLURM_JOB_ID % 20000))"',
)


@dataclass(frozen=True)
class Harness:
    """What a job of a worker has besides its command.

    Attributes:
        wrapper: program and arguments that get the command as their further arguments, and run it.
        setup: lines of bash that the worker's owner wants to come first.
        python_path: directory from which the interpreter takes the library.
        shared_file: file that the job must be able to read, on a file system that is shared with it, and
        token: what stands in that file.
        sweep: program and arguments that end what a wrapper which was killed has left.
    """

    wrapper: tuple[str, ...]
    setup: tuple[str, ...]
    python_path: Path
    shared_file: Path
    token: str
    sweep: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """What Slurm is asked to run.

    Attributes:
        name: name of the job, any text.
        attempt_dir: where the config is, the output goes and a stop is requested; absolute. Of an array, the directory
            in which every task has a link to its own, called by the task's number.
        work_dir: directory in which the command runs; absolute.
        python: interpreter that has the library.
        module: module that every rank runs.
        knows_attempts: whether the module is told its attempt directory besides its config.
        nproc_per_node: ranks per node.
        tasks: numbers of an array's tasks; empty for a single job.
        throttle: tasks that may run at a time; None for as many as fit.
        torchrun: whether the module runs as ranks; otherwise it is one process.
        cpus_per_node: CPUs of each node for all ranks there; `nb_cpus` of the spec for each rank when absent.
        harness: what a job of a worker has besides.
    """

    name: str
    attempt_dir: Path
    work_dir: Path
    python: str
    module: str
    knows_attempts: bool
    nproc_per_node: int
    tasks: tuple[int, ...] = ()
    throttle: int | None = None
    torchrun: bool = True
    cpus_per_node: int | None = None
    harness: Harness | None = None

    @property
    def arguments(self) -> list[str]:
        """The module's command line, for a job that is no array."""
        attempt = [f"attempt_dir={self.attempt_dir}"] if self.knows_attempts else []
        return [f"config={self.attempt_dir / CONFIG}", *attempt]


@dataclass(frozen=True)
class JobId:
    """Answer of `sbatch --parsable`; the cluster is named on federated systems only."""

    id: int
    cluster: str | None = None


def sbatch_arguments(spec: SlurmSpec, job: Job) -> list[str]:
    """Arguments of sbatch, without the script. The job is never requeued: another attempt has another directory.

    Raises:
        SpecError: an attempt directory to which Slurm cannot write its output.
    """
    if "\\" in str(job.attempt_dir):
        message = f"Slurm cannot write its output to {job.attempt_dir}: it drops the backslash"
        raise SpecError([Problem(path="launcher.log_dir", message=message, remedy="use a path without backslashes")])
    place = str(job.attempt_dir).replace("%", "%%")  # a lone % starts one of Slurm's own patterns
    output = f"{place}/%a/{STDOUT}" if job.tasks else f"{place}/{STDOUT}"
    arguments = [
        "--parsable",
        "--no-requeue",
        "--open-mode=append",
        f"--job-name={job.name}",
        f"--output={output}",
        f"--chdir={job.work_dir}",
        f"--signal=B:USR1@{spec.signal_time}",
        f"--nodes={spec.nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={_cpus_per_node(spec, job)}",
    ]
    if job.harness:
        arguments.append(f"--comment={job.name}")
    if job.tasks:
        limit = f"%{job.throttle}" if job.throttle is not None else ""
        arguments.append(f"--array={array_ranges(job.tasks)}{limit}")
    if spec.nb_gpus:
        arguments.append(f"--gpus-per-node={spec.nb_gpus}")
    optional = ("partition", "account", "qos", "constraint", "exclude", "mem", "time")
    values = {name: getattr(spec, name) for name in optional}
    return arguments + [f"--{name}={value}" for name, value in values.items() if value is not None]


def batch_script(spec: SlurmSpec, job: Job) -> str:
    """The script for bash that runs the ranks of the job, or of one task of its array, and ends with their code."""
    place = _quote(str(job.attempt_dir))
    words = f'"config=$attempt_dir/{CONFIG}"' + (' "attempt_dir=$attempt_dir"' if job.knows_attempts else "")
    return _SCRIPT.format(
        attempt_dir=f'"$(readlink -f -- {place}/"$SLURM_ARRAY_TASK_ID")"' if job.tasks else place,
        stop_requested=STOP_REQUESTED,
        preparation="\n".join(_preparation(spec, job)),
        command=f"{_starter(spec, job)} {_join(['-m', job.module])} {words}",
        ending="\n".join(_ending(job)),
    )


def _preparation(spec: SlurmSpec, job: Job) -> list[str]:
    """Lines before the command."""
    lines = list(_ONLY_RUN) if job.harness is None and job.knows_attempts else []
    if job.harness is not None:
        check = f"grep -qsF -e {_quote(job.harness.token)} -- {_quote(str(job.harness.shared_file))}"
        lines += [f"if ! {check}; then", f"  echo {_quote(_NOT_SHARED)} >&2", f"  exit {EXIT_NOT_SHARED}", "fi"]
        lines += job.harness.setup
        lines.append(f"export PYTHONPATH={_quote(str(job.harness.python_path))}${{PYTHONPATH:+:$PYTHONPATH}}")
    lines.append(f"export OMP_NUM_THREADS={max(1, _cpus_per_node(spec, job) // job.nproc_per_node)}")
    return lines + list(_RENDEZVOUS if spec.nodes > 1 else ())


def _ending(job: Job) -> list[str]:
    """Lines after the command."""
    sweep = [f'[ "$code" -lt 128 ] || {_join(job.harness.sweep)}'] if job.harness is not None else []
    return [*sweep, 'exit "$code"']


def _starter(spec: SlurmSpec, job: Job) -> str:
    """The words of the command up to the module, quoted."""
    wrapper = list(job.harness.wrapper) if job.harness is not None else []
    if not job.torchrun:
        return _join([*wrapper, job.python])
    torchrun = [job.python, "-m", "nanollama.cluster.torchrun", f"--nproc-per-node={job.nproc_per_node}"]
    if spec.nodes == 1:
        return _join([*wrapper, *torchrun, "--standalone"])  # a port of its own: jobs may share a node
    # srun does not take over --cpus-per-task from sbatch since Slurm 22.05
    shape = [f"--nodes={spec.nodes}", "--ntasks-per-node=1", f"--cpus-per-task={_cpus_per_node(spec, job)}"]
    fixed = ["srun", "--kill-on-bad-exit=1", *shape, *torchrun, f"--nnodes={spec.nodes}", "--rdzv-backend=c10d"]
    return _join([*wrapper, *fixed]) + ' --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$N2N_HEAD_NODE:$N2N_HEAD_PORT"'


def _cpus_per_node(spec: SlurmSpec, job: Job) -> int:
    return spec.nb_cpus * job.nproc_per_node if job.cpus_per_node is None else job.cpus_per_node


def array_ranges(tasks: Sequence[int]) -> str:
    """Numbers of tasks as sbatch's --array takes them: 0, 1, 2, 5 becomes 0-2,5."""
    ranges: list[list[int]] = []
    for task in sorted(tasks):
        if ranges and ranges[-1][1] == task - 1:
            ranges[-1][1] = task
        else:
            ranges.append([task, task])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def parse_job_id(output: str) -> JobId:
    """The job in the output of `sbatch --parsable`, which a site's own greeting may precede.

    Raises:
        ValueError: output that does not end in an id.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    match = re.fullmatch(r"(\d+)(?:;(\S+))?", lines[-1]) if lines else None
    if match is None:
        raise ValueError(f"sbatch printed no job id but {output!r}")
    return JobId(int(match[1]), match[2])


class Denial(Enum):
    """What became of a job whose sbatch has failed."""

    UNSENT = "unsent"  # the request has not left this machine
    LOST = "lost"  # no answer has come (a receive failure, for one): the job may have been accepted
    FULL = "full"  # it is refused for now
    REFUSED = "refused"


_UNSENT = re.compile(r"\(connect failure\)|connection refused|unable to establish", re.I)
_LOST = re.compile(
    r"unable to contact|timed out|timeout|zero bytes|send/recv|unexpected message|communication|transport|i/o error",
    re.I,
)
_FULL = re.compile(r"submit (job )?limit|maxsubmit|temporarily|try again|too many|maximum job count", re.I)


def read_denial(returncode: int, stderr: str) -> Denial:
    """What an sbatch says of the job that ended with an exit code other than 0, or by a signal (below 0)."""
    if _UNSENT.search(stderr):
        return Denial.UNSENT
    if _LOST.search(stderr) or returncode < 0 or "error" not in stderr:
        return Denial.LOST
    return Denial.FULL if _FULL.search(stderr) else Denial.REFUSED


class Stage(Enum):
    """What a word of Slurm for the state of a job means for the run."""

    WAITING = "waiting"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"  # no word of ours: nothing follows from it

    @property
    def ended(self) -> bool:
        """Whether the job has come to its end."""
        return self not in (Stage.WAITING, Stage.RUNNING, Stage.UNKNOWN)


_WORDS = {
    Stage.WAITING: "PENDING CONFIGURING REQUEUED REQUEUE_FED REQUEUE_HOLD SPECIAL_EXIT RESV_DEL_HOLD",
    Stage.RUNNING: "RUNNING COMPLETING SIGNALING STAGE_OUT SUSPENDED STOPPED RESIZING EXPEDITING POWER_UP_NODE",
    Stage.COMPLETED: "COMPLETED",
    Stage.FAILED: "FAILED OUT_OF_MEMORY DEADLINE",
    Stage.INTERRUPTED: "TIMEOUT PREEMPTED NODE_FAIL BOOT_FAIL REVOKED LAUNCH_FAILED RECONFIG_FAIL",
    Stage.CANCELLED: "CANCELLED",
}
_STAGES = {word: stage for stage, words in _WORDS.items() for word in words.split()}


@dataclass(frozen=True)
class JobState:
    """A job as Slurm tells of it. `exit_code` is that of the batch script, as `code:signal`, where it was asked for."""

    id: int
    name: str
    word: str
    reason: str | None = None
    exit_code: str | None = None

    @property
    def stage(self) -> Stage:
        """What the word means; `CANCELLED by 1000` and `CANCELLED+` are read as well."""
        words = self.word.split()
        return _STAGES.get(words[0].rstrip("+").upper(), Stage.UNKNOWN) if words else Stage.UNKNOWN


QUEUE_FORMAT = "%A|%T|%r|%j"
"""Of `squeue --noheader --states=all --format=…`: the name comes last, it may hold any character."""

ACCOUNTING_FORMAT = "JobIDRaw,State,ExitCode,JobName"
"""Of `sacct -X -n -P -o …`."""

_NO_REASON = ("", "None", "(null)")


def parse_queue(text: str) -> list[JobState]:
    """The jobs in the output of squeue; lines that are none, of names with line ends for example, are left out."""
    found = []
    for line in text.splitlines():
        id_, *rest = line.split("|", 3)
        if id_.isdecimal() and len(rest) == 3:
            word, reason, name = rest
            found.append(JobState(int(id_), name, word, None if reason in _NO_REASON else reason))
    return found


def parse_accounting(text: str) -> list[JobState]:
    """The jobs in the output of sacct."""
    found = []
    for line in text.splitlines():
        id_, *rest = line.split("|", 3)
        if id_.isdecimal() and len(rest) == 3:
            word, exit_code, name = rest
            found.append(JobState(int(id_), name, word, exit_code=exit_code))
    return found


def parse_details(text: str) -> JobState | None:
    """The job in the output of `scontrol --oneliner show job ID`; None when there is none."""
    values = dict(re.findall(r"\b(JobId|JobName|JobState|Reason|ExitCode)=(\S+)", text))
    if not {"JobId", "JobName", "JobState"} <= values.keys() or not values["JobId"].isdecimal():
        return None
    reason = values.get("Reason", "")
    return JobState(
        id=int(values["JobId"]),
        name=values["JobName"],
        word=values["JobState"],
        reason=None if reason in _NO_REASON else reason,
        exit_code=values.get("ExitCode"),
    )


def _join(words: Sequence[str]) -> str:
    return " ".join(_quote(word) for word in words)


def _quote(text: str) -> str:
    """The text as one word of bash, on one line: sbatch reads lines before bash reads quotes."""
    if not re.search(r"[\x00-\x1f\x7f]", text):
        return shlex.quote(text)
    escaped = re.sub(r"[\x00-\x1f\x7f'\\]", lambda match: f"\\x{ord(match[0]):02x}", text)
    return f"$'{escaped}'"
