"""Slurm without Slurm: the batch script and the arguments of sbatch, as pure functions of a spec.

Nothing that a user wrote becomes a line of the script: options of sbatch are arguments, and every string in the script
stands in it as one quoted word on one line.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nanollama.spec.base import Problem, SpecError
from nanollama.spec.cluster import SlurmSpec
from nanollama.spec.rundir import CONFIG, STDOUT, STOP_REQUESTED

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
{environment}
{command} &
child=$!
[ -z "$terminated" ] || kill -TERM "$child"
while :; do
  signalled=
  wait "$child"
  code=$?
  [ -n "$signalled" ] || break
done
exit "$code"
"""

_RENDEZVOUS = (
    'export N2N_HEAD_NODE="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"',
    'export N2N_HEAD_PORT="$((20000 + SLURM_JOB_ID % 20000))"',
)


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
        f"--cpus-per-task={spec.nb_cpus * job.nproc_per_node}",
    ]
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
    environment = [f"export OMP_NUM_THREADS={spec.nb_cpus}"]
    command = [job.python, "-m", "nanollama.cluster.torchrun", f"--nproc-per-node={job.nproc_per_node}"]
    rendezvous = ""
    if spec.nodes > 1:
        environment += _RENDEZVOUS
        # srun does not take over --cpus-per-task from sbatch since Slurm 22.05
        shape = [f"--nodes={spec.nodes}", "--ntasks-per-node=1", f"--cpus-per-task={spec.nb_cpus * job.nproc_per_node}"]
        command = ["srun", "--kill-on-bad-exit=1", *shape, *command]
        command += [f"--nnodes={spec.nodes}", "--rdzv-backend=c10d"]
        rendezvous = ' --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$N2N_HEAD_NODE:$N2N_HEAD_PORT"'
    place = _quote(str(job.attempt_dir))
    words = f'"config=$attempt_dir/{CONFIG}"' + (' "attempt_dir=$attempt_dir"' if job.knows_attempts else "")
    return _SCRIPT.format(
        attempt_dir=f'"$(readlink -f -- {place}/"$SLURM_ARRAY_TASK_ID")"' if job.tasks else place,
        stop_requested=STOP_REQUESTED,
        environment="\n".join(environment),
        command=f"{_join(command)}{rendezvous} {_join(['-m', job.module])} {words}",
    )


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


def _join(words: Sequence[str]) -> str:
    return " ".join(_quote(word) for word in words)


def _quote(text: str) -> str:
    """The text as one word of bash, on one line: sbatch reads lines before bash reads quotes."""
    if not re.search(r"[\x00-\x1f\x7f]", text):
        return shlex.quote(text)
    escaped = re.sub(r"[\x00-\x1f\x7f'\\]", lambda match: f"\\x{ord(match[0]):02x}", text)
    return f"$'{escaped}'"
