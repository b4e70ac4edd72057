"""Start a config without any server: torchrun here, or a job on Slurm. A grid is started run by run, or as one array.

    python -m nanollama.launcher script=nanollama.apps.gssm.train config=configs/gssm/debug.yaml [key.sub=value …]

`cluster.nproc_per_node` says how many ranks, `launcher.kind` where, `launcher.parallel` how many runs of a grid at a
time. A training app gets the next attempt of its run directory; any other module that can be run with `python -m` gets
the config alone. A grid has a directory for each run, under its name; what is finished there is not run again.

Exit codes: that of the script, of a grid 0 when every run has finished and 1 when one has failed; 2 on bad input; on
Slurm 0 once the job is submitted, 1 when Slurm refuses it or does not answer. Here the first Ctrl-C (SIGINT), or USR1,
asks training apps to save and to stop, which ends with 75; the same command continues. Every other signal is passed on.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from nanollama.cluster.slurm import Denial, Job, batch_script, parse_job_id, read_denial, sbatch_arguments
from nanollama.monitor.attempt import (
    check_idle,
    create_attempt,
    discard_attempt,
    finished_result,
    only_run,
    placed_by,
    run_directory,
)
from nanollama.monitor.summary import describe
from nanollama.processes import Runner, Start, run_all
from nanollama.spec.base import Problem, Spec, SpecError, did_you_mean, parse
from nanollama.spec.cluster import ClusterSpec, LauncherSpec, SlurmSpec
from nanollama.spec.command import run_command
from nanollama.spec.data import DatasetSpec
from nanollama.spec.experiment import TRAINING_MODULES, ExperimentSpec
from nanollama.spec.grid import Variant, expand
from nanollama.spec.load import Document, read_document
from nanollama.spec.monitor import OrchestrationSpec
from nanollama.spec.rundir import write_atomic
from nanollama.spec.yaml_text import dump_yaml

SCRIPT = "script="
BATCH_SCRIPT = "job.sh"
SUBMISSIONS = "submissions"
"""In the directory of a grid on Slurm: a directory for each submission, with the script and a link to each attempt."""

DATA_SCRIPT = "nanollama.apps.gssm.data"


class LaunchSpec(BaseModel):
    """The sections of a config that say how it is started; the others are the script's own affair."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    cluster: ClusterSpec = Field(default_factory=ClusterSpec)
    launcher: LauncherSpec = Field(default_factory=LauncherSpec)
    orchestration: OrchestrationSpec = Field(default_factory=OrchestrationSpec)


class AnyConfig(Spec):
    """The config of a script that checks it by itself."""

    model_config = ConfigDict(extra="allow")


@dataclass(frozen=True)
class Run:
    """One run that is to be started.

    Attributes:
        variant: its number and name; of a config without a grid, 0 and `run`.
        run_dir: where its attempts are.
        config: YAML of its config.
        launch: how it is started.
        is_app: whether it is a training app, which knows attempts.
        placed_by: the key that has placed the directory.
    """

    variant: Variant[Spec]
    run_dir: Path
    config: str
    launch: LaunchSpec
    is_app: bool
    placed_by: str

    def check_idle(self) -> None:
        """Raises SpecError when it is under way already."""
        if self.is_app:
            check_idle(self.run_dir, placed_by=self.placed_by)

    def new_attempt(self) -> Path:
        """The directory of its next attempt, with the config in it."""
        return create_attempt(self.run_dir, self.config, placed_by=self.placed_by)


def main(arguments: Sequence[str]) -> int:
    """Start the script that the arguments name; returns the exit code.

    Raises:
        SpecError: bad input, with nothing created or started.
    """
    document = read_document([argument for argument in arguments if not argument.startswith(SCRIPT)])
    launcher = document.data.get("launcher")
    module = script_module(arguments, launcher.get("script") if isinstance(launcher, dict) else None)
    for note in document.notes:
        print(f"note: {note}", file=sys.stderr)
    runs = plan(document, module)
    launch = _sections(document, document.data)
    slurm = launch.launcher.kind == "slurm"
    if slurm and shutil.which("sbatch") is None:
        remedy = "start this on a login node of the cluster, or use launcher.kind=local"
        raise SpecError([Problem(path="launcher.kind", message="there is no sbatch on this machine", remedy=remedy)])
    if not runs:
        return 0
    is_grid = "grid" in document.data
    job = Job(
        name=launch.orchestration.name,
        attempt_dir=runs[0].run_dir,
        work_dir=Path.cwd(),
        python=sys.executable,
        module=module,
        knows_attempts=runs[0].is_app,
        nproc_per_node=runs[0].launch.cluster.nproc_per_node,
    )
    for run in runs if slurm else ():
        run.check_idle()
    if slurm and is_grid:
        return submit_array(job, runs, launch)
    if slurm:
        return submit(replace(job, attempt_dir=runs[0].new_attempt()), launch.launcher.slurm)
    parallel = launch.launcher.parallel or 1
    runner = Runner(keep_output=parallel > 1 and is_grid)
    return run_all(runner, [_start(run, job, runner) for run in runs], parallel=parallel, summarise=is_grid)


def plan(document: Document, module: str) -> list[Run]:
    """The runs of the config that are not finished; what is finished is printed.

    Raises:
        SpecError: a config that is not valid, or a directory that holds a run with another one.
    """
    is_app = module in TRAINING_MODULES
    model: type[Spec] = ExperimentSpec if is_app else DatasetSpec if module == DATA_SCRIPT else AnyConfig
    variants = expand(document, model)
    launch = _sections(document, document.data)
    place, directory = placed_by(launch.launcher), run_directory(launch.launcher, launch.orchestration).absolute()
    runs = []
    for variant in variants:
        run_dir = directory / variant.name if "grid" in document.data else directory
        spec = variant.spec
        if isinstance(spec, ExperimentSpec):
            if "grid" in document.data:  # so that the run finds its directory when it is started by hand
                spec = spec.model_copy(
                    update={"launcher": spec.launcher.model_copy(update={"log_dir": str(run_dir), "parallel": None})}
                )
            result = finished_result(run_dir, spec)
            if result is not None:
                print(f"{run_dir} is finished: {describe(result)}")
                continue
            config = dump_yaml(spec)
        else:
            config = dump_yaml({key: value for key, value in variant.data.items() if key != "launcher"})
        runs.append(Run(variant, run_dir, config, _sections(document, variant.data), is_app, place))
    return runs


def script_module(arguments: Sequence[str], configured: object = None) -> str:
    """The module that `script=` names, or else the config's `launcher.script`.

    Raises:
        SpecError: it is not named once, or there is no such program.
    """
    names = [argument.removeprefix(SCRIPT) for argument in arguments if argument.startswith(SCRIPT)]
    if not names and isinstance(configured, str):
        names = [configured]
    known = [*TRAINING_MODULES, DATA_SCRIPT]
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


def submit(job: Job, spec: SlurmSpec) -> int:
    """Hand the job to Slurm and print its id; returns the exit code. What a refusal leaves behind is removed."""
    try:
        code = _sbatch(job, spec, job.attempt_dir / BATCH_SCRIPT)
    except SpecError:
        discard_attempt(job.attempt_dir)
        raise
    if code is None:
        discard_attempt(job.attempt_dir)
        return 1
    return code


def submit_array(job: Job, runs: Sequence[Run], launch: LaunchSpec) -> int:
    """Hand the runs to Slurm as one array whose tasks have the numbers of the runs; returns the exit code.

    Raises:
        SpecError: runs that ask for different resources.
    """
    _check_one_shape(runs)
    place = run_directory(launch.launcher, launch.orchestration).absolute() / SUBMISSIONS
    links = next(path for path in (place / str(i) for i in count(1)) if not path.exists())
    attempts = [run.new_attempt() for run in runs]
    links.mkdir(parents=True)
    for run, attempt_dir in zip(runs, attempts, strict=True):
        (links / str(run.variant.index)).symlink_to(attempt_dir)
    tasks = tuple(run.variant.index for run in runs)
    array = replace(job, attempt_dir=links, tasks=tasks, throttle=launch.launcher.parallel)
    try:
        code = _sbatch(array, launch.launcher.slurm, links / BATCH_SCRIPT)
    except SpecError:
        _discard_array(links, attempts)
        raise
    if code is None:
        _discard_array(links, attempts)
        return 1
    return code


def _check_one_shape(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs:
        for key, ours, theirs in (
            ("cluster.nproc_per_node", run.launch.cluster.nproc_per_node, first.launch.cluster.nproc_per_node),
            ("launcher.slurm", run.launch.launcher.slurm, first.launch.launcher.slurm),
        ):
            if ours != theirs:
                message = f"differs between {first.variant.name} and {run.variant.name}, but an array has one shape"
                raise SpecError([Problem(path=key, message=message, remedy="start a grid for each shape")])


def _discard_array(links: Path, attempts: Sequence[Path]) -> None:
    for attempt_dir in attempts:
        discard_attempt(attempt_dir)
    discard_attempt(links)
    if not any(links.parent.parent.iterdir()):
        links.parent.parent.rmdir()


def _sbatch(job: Job, spec: SlurmSpec, script: Path) -> int | None:
    """Write the script and submit it: 0 with its id printed, 1 when it may have been accepted, None when it was not."""
    arguments = sbatch_arguments(spec, job)
    write_atomic(script, batch_script(spec, job).encode())
    answer = subprocess.run(["sbatch", *arguments, str(script)], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        reason = answer.stderr.strip() or f"it ended with code {answer.returncode} and said nothing"
        if read_denial(answer.returncode, answer.stderr) is not Denial.LOST:
            print(f"error: sbatch refused the job: {reason}", file=sys.stderr)
            return None
        return _unsure(f"sbatch got no answer: {reason}", job)
    try:
        job_id = parse_job_id(answer.stdout)
    except ValueError as error:
        return _unsure(str(error), job)
    what = f"submitted {len(job.tasks):,} runs; links to their output" if job.tasks else "submitted; output"
    print(f"{what} will be in {job.attempt_dir}", file=sys.stderr)
    print(job_id.id)
    return 0


def _unsure(what: str, job: Job) -> int:
    """Tell that the job may have been accepted; returns the exit code."""
    print(f"error: {what}; look for a job named {job.name} in squeue before you start it again", file=sys.stderr)
    return 1


def _start(run: Run, job: Job, runner: Runner) -> Start:
    """What starts one run here and waits for its end."""

    def start() -> int:
        lock = only_run(run.run_dir, placed_by=run.placed_by) if run.is_app else nullcontext()
        with lock:
            ranks = run.launch.cluster.nproc_per_node
            return runner.run(replace(job, attempt_dir=run.new_attempt(), nproc_per_node=ranks))

    return Start(run.variant.name, start)


def _sections(document: Document, data: dict[str, Any]) -> LaunchSpec:
    try:
        return parse(LaunchSpec, data)
    except SpecError as error:
        raise SpecError(document.locate(error.problems)) from None


if __name__ == "__main__":
    sys.exit(run_command(main, usage=__doc__))
