"""`n2n slurm`: what Slurm would be asked for, without asking it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from nanollama.cluster.slurm import Job, batch_script, sbatch_arguments
from nanollama.commands.groups import new_app
from nanollama.monitor.attempt import run_directory
from nanollama.spec.base import Problem, SpecError
from nanollama.spec.experiment import APPS, ExperimentSpec
from nanollama.spec.grid import expand
from nanollama.spec.load import read_document

SCRIPT = "job.sh"

app = new_app("slurm", "Jobs of Slurm.")


@app.command(context_settings={"allow_extra_args": True})
def render(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE [key.sub=value …]", help="A training config, and overrides.")],
) -> None:
    """Print the batch script of a config, under the call of sbatch that the launcher would make. Nothing is written."""
    sys.stdout.write(render_job([f"config={file}", *context.args]))


def render_job(arguments: Sequence[str]) -> str:
    """The batch script of a config, with the call of sbatch as a comment after its first line.

    Of a grid it is the array of all its runs; in the place of links that do not exist yet stand those of a first
    submission.

    Raises:
        SpecError: a config that is not valid.
    """
    document = read_document(arguments)
    variants = expand(document, ExperimentSpec)
    first = variants[0].spec
    is_grid = "grid" in document.data
    for variant in variants[1:]:
        other = variant.spec
        if (other.launcher.slurm, other.cluster.nproc_per_node) != (first.launcher.slurm, first.cluster.nproc_per_node):
            message = (
                f"{variants[0].name} and {variant.name} ask Slurm for different things, but an array has one shape"
            )
            raise SpecError([Problem(path="launcher.slurm", message=message, remedy="render a grid for each shape")])
    directory = run_directory(first.launcher, first.orchestration).absolute()
    job = Job(
        name=first.orchestration.name,
        attempt_dir=directory / "submissions" / "1" if is_grid else directory / "1",
        work_dir=Path.cwd(),
        python=sys.executable,
        module=APPS[first.app].module,
        knows_attempts=True,
        nproc_per_node=first.cluster.nproc_per_node,
        tasks=tuple(variant.index for variant in variants) if is_grid else (),
        throttle=first.launcher.parallel if is_grid else None,
    )
    spec = first.launcher.slurm
    words = ["sbatch", *sbatch_arguments(spec, job), str(job.attempt_dir / SCRIPT)]
    # $'…' keeps what a shell would read as the end of a line, and of the comment, on it
    call = " ".join(shlex.quote(word) if word.isprintable() else f"$'{_escape(word)}'" for word in words)
    shebang, _, rest = batch_script(spec, job).partition("\n")
    return f"{shebang}\n# {call}\n{rest}"


def _escape(word: str) -> str:
    return word.encode("unicode_escape").decode().replace("'", "\\'")
