"""Start a config without any server: torchrun here, or a job on Slurm.

    python -m nanollama.launcher script=nanollama.apps.gssm.train config=configs/gssm/debug.yaml [key.sub=value …]

`cluster.nproc_per_node` says how many ranks, `launcher.kind` where. A training app gets the next attempt of its run
directory; any other module that can be run with `python -m` gets the config alone. Exit codes: that of the script; 2 on
bad input; on Slurm 0 once the job is submitted, 1 when Slurm refuses it. Here the first Ctrl-C (SIGINT), or USR1, asks
a training app to save and to stop, which ends with 75; the same command continues. Every other signal is passed on.
"""

from __future__ import annotations

import importlib.util
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import FrameType

from pydantic import BaseModel, ConfigDict, Field

from nanollama.cluster.slurm import Job, batch_script, parse_job_id, sbatch_arguments
from nanollama.monitor.attempt import (
    create_attempt,
    discard_attempt,
    finished_result,
    only_run,
    placed_by,
    read_stopped,
    run_directory,
)
from nanollama.monitor.summary import describe
from nanollama.spec.base import Problem, SpecError, did_you_mean, parse
from nanollama.spec.cluster import ClusterSpec, LauncherSpec, SlurmSpec
from nanollama.spec.command import run_command
from nanollama.spec.experiment import APPS, ExperimentSpec
from nanollama.spec.load import dump_yaml, load_config, read_arguments
from nanollama.spec.monitor import OrchestrationSpec
from nanollama.spec.rundir import CONFIG, STOP_REQUESTED, write_atomic

SCRIPT = "script="
BATCH_SCRIPT = "job.sh"


class LaunchSpec(BaseModel):
    """The sections of a config that say how it is started; the others are the script's own affair."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    cluster: ClusterSpec = Field(default_factory=ClusterSpec)
    launcher: LauncherSpec = Field(default_factory=LauncherSpec)
    orchestration: OrchestrationSpec = Field(default_factory=OrchestrationSpec)


def main(arguments: Sequence[str]) -> int:
    """Start the script that the arguments name; returns the exit code.

    Raises:
        SpecError: bad input, with nothing created or started.
    """
    module = script_module(arguments)
    arguments = [argument for argument in arguments if not argument.startswith(SCRIPT)]
    data, _ = read_arguments(arguments)
    is_app = module in APPS.values()
    if is_app:
        spec = load_config(ExperimentSpec, arguments)
        config = dump_yaml(spec)
    else:
        config = dump_yaml({key: value for key, value in data.items() if key != "launcher"})
    launch = parse(LaunchSpec, data)
    run_dir = run_directory(launch.launcher, launch.orchestration).absolute()
    result = finished_result(run_dir, spec) if is_app else None
    if result is not None:
        print(f"{run_dir} is finished: {describe(result)}")
        return 0
    slurm = launch.launcher.kind == "slurm"
    if slurm and shutil.which("sbatch") is None:
        remedy = "start this on a login node of the cluster, or use launcher.kind=local"
        raise SpecError([Problem(path="launcher.kind", message="there is no sbatch on this machine", remedy=remedy)])
    place = placed_by(launch.launcher)
    with only_run(run_dir, placed_by=place) if is_app and not slurm else nullcontext():
        attempt_dir = create_attempt(run_dir, config, placed_by=place)
        job = Job(
            name=launch.orchestration.name,
            attempt_dir=attempt_dir,
            work_dir=Path.cwd(),
            python=sys.executable,
            module=module,
            arguments=[f"config={attempt_dir / CONFIG}", *([f"attempt_dir={attempt_dir}"] if is_app else [])],
            nproc_per_node=launch.cluster.nproc_per_node,
        )
        return submit(job, launch.launcher.slurm) if slurm else run_here(job)


def script_module(arguments: Sequence[str]) -> str:
    """The module that `script=` names.

    Raises:
        SpecError: it is not named once, or there is no such program.
    """
    names = [argument.removeprefix(SCRIPT) for argument in arguments if argument.startswith(SCRIPT)]
    known = [*APPS.values(), "nanollama.apps.gssm.data"]
    if len(names) != 1:
        message = "no script is named" if not names else "more than one script is named"
        raise SpecError([Problem(path="script", message=message, remedy=f"write script={known[0]}")])
    try:
        found = importlib.util.find_spec(names[0])
        if found is not None and found.submodule_search_locations is not None:
            found = importlib.util.find_spec(f"{names[0]}.__main__")
    except (ImportError, ValueError):
        found = None
    if found is None:
        message = f"python cannot run a module '{names[0]}'"
        raise SpecError([Problem(path="script", message=message, remedy=did_you_mean(names[0], known))])
    return names[0]


def run_here(job: Job) -> int:
    """Run the job's ranks on this machine until they end.

    Signals are passed on, but USR1 and an app's first SIGINT ask for a save and a stop.
    """
    ranks = [f"--nproc-per-node={job.nproc_per_node}", "-m", job.module, *job.arguments]
    # a session of its own, or torchrun would get the terminal's Ctrl-C twice: from the terminal and from here
    process = subprocess.Popen([job.python, "-m", "nanollama.cluster.torchrun", *ranks], start_new_session=True)

    request = job.attempt_dir / STOP_REQUESTED
    heeds_requests = f"attempt_dir={job.attempt_dir}" in job.arguments

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGUSR1 or (number == signal.SIGINT and heeds_requests and not request.exists()):
            request.touch()
        else:
            process.send_signal(number)

    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = {number: signal.signal(number, pass_on) for number in handled}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    stopped = read_stopped(job.attempt_dir)
    if stopped is not None:
        return stopped.exit_code
    return code if code >= 0 else 128 - code


def submit(job: Job, spec: SlurmSpec) -> int:
    """Hand the job to Slurm and print its id; returns the exit code."""
    script = job.attempt_dir / BATCH_SCRIPT
    try:
        arguments = sbatch_arguments(spec, job)
    except SpecError:
        discard_attempt(job.attempt_dir)
        raise
    write_atomic(script, batch_script(spec, job).encode())
    answer = subprocess.run(["sbatch", *arguments, str(script)], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        discard_attempt(job.attempt_dir)
        reason = answer.stderr.strip() or f"it ended with code {answer.returncode} and said nothing"
        print(f"error: sbatch refused the job: {reason}", file=sys.stderr)
        return 1
    try:
        job_id = parse_job_id(answer.stdout)
    except ValueError as error:
        print(f"error: {error}; look for a job named {job.name} in squeue", file=sys.stderr)
        return 1
    print(f"submitted; output will be in {job.attempt_dir}", file=sys.stderr)
    print(job_id.id)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, usage=__doc__))
