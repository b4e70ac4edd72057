"""`n2n submit` and `clone`: new runs."""

from __future__ import annotations

import functools
import operator
from enum import Enum
from typing import Annotated, Any

import typer

from nanollama.api import schemas
from nanollama.api.client import Client
from nanollama.commands.following import watch_experiment, watch_run
from nanollama.commands.groups import new_app
from nanollama.commands.options import OVERRIDES, AsJson, complete_run, served, words
from nanollama.commands.output import print_json, print_notes, say
from nanollama.spec.base import parse
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.grid import expand
from nanollama.spec.load import apply_override, read_document
from nanollama.spec.paths import absolute_paths


class Reuse(str, Enum):
    """What becomes of runs that would learn what an earlier one has learnt."""

    NEVER = "never"
    ASK = "ask"
    ALWAYS = "always"


class Executor(str, Enum):
    """What starts runs."""

    LOCAL = "local"
    SLURM = "slurm"


Name = Annotated[str | None, typer.Option(help="Name of the experiment; orchestration.name when absent.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="A tag; may be repeated.")]
Notes = Annotated[str, typer.Option(help="Free text kept with the experiment.")]
ReuseOption = Annotated[
    Reuse,
    typer.Option(
        help="Earlier results in the place of runs that would learn the same; ask: list them, submit nothing."
    ),
]
Retries = Annotated[int, typer.Option(min=0, max=1000, help="Attempts that may fail without ending a run.")]
Interruptions = Annotated[
    int | None,
    typer.Option("--max-interruptions", min=0, help="Attempts that may be interrupted; any number if absent."),
]
ExecutorOption = Annotated[Executor | None, typer.Option(help="Only workers that start runs so.")]
Accelerators = Annotated[int, typer.Option(min=0, help="GPUs that each run needs.")]
Cpus = Annotated[int, typer.Option(min=0, help="CPU cores that each run needs.")]
Memory = Annotated[float, typer.Option("--memory-gb", min=0, help="Memory that each run needs.")]
Labels = Annotated[list[str] | None, typer.Option("--label", help="A label that a worker must have; may be repeated.")]
Follow = Annotated[bool, typer.Option("--watch", help="Show a live bar until all have ended; exit code as of watch.")]

app = new_app()


@app.command(context_settings=OVERRIDES)
@served
def submit(
    client: Client,
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE [key.sub=value …]", help="A training config, and overrides.")],
    name: Name = None,
    tag: Tags = None,
    notes: Notes = "",
    priority: Annotated[int, typer.Option(min=-100, max=100, help="Higher runs first.")] = 0,
    reuse: ReuseOption = Reuse.NEVER,
    retries: Retries = 0,
    max_interruptions: Interruptions = None,
    executor: ExecutorOption = None,
    accelerators: Accelerators = 0,
    cpus: Cpus = 0,
    memory_gb: Memory = 0,
    label: Labels = None,
    follow: Follow = False,
    as_json: AsJson = False,
) -> None:
    """Queue a training config, or each run of its grid; `$VARIABLES` and relative paths of data are this shell's."""
    document = read_document([f"config={file}", *context.args])
    print_notes(document.notes)
    expand(document, ExperimentSpec)  # every problem with its line, before anything is sent
    needs = _resources(executor, accelerators, cpus, memory_gb, label)
    experiment = client.submit(
        config=absolute_paths(document.data),
        name=name,
        tags=tag or [],
        notes=notes,
        priority=priority,
        resources=needs,
        reuse=reuse.value,
        retries=retries,
        max_interruptions=max_interruptions,
    )
    _announce(client, experiment, follow=follow, as_json=as_json)


@app.command(context_settings=OVERRIDES)
@served
def clone(
    client: Client,
    context: typer.Context,
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN [key.sub=value …]", help="Id of a run, and overrides.", autocompletion=complete_run
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Name of the new experiment; the run's when absent.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="In the place of the run's tags; may be repeated.")
    ] = None,
    notes: Notes = "",
    priority: Annotated[int | None, typer.Option(min=-100, max=100, help="The run's when absent.")] = None,
    reuse: ReuseOption = Reuse.NEVER,
    retries: Retries = 0,
    max_interruptions: Interruptions = None,
    from_checkpoint: Annotated[
        int | None,
        typer.Option("--from-checkpoint", min=0, metavar="STEP", help="Go on from this checkpoint of the run."),
    ] = None,
    follow: Follow = False,
    as_json: AsJson = False,
) -> None:
    """Run a run's config again: `n2n clone RUN optim.lr=3e-4`, `'grid.optim.lr=[1e-3, 1e-4]'` for several."""
    given: dict[str, Any] = {
        "overrides": _overrides(context.args),
        "name": name,
        "notes": notes,
        "tags": tag or None,
        "priority": priority,
        "reuse": reuse.value,
        "retries": retries,
        "max_interruptions": max_interruptions,
        "from_checkpoint": from_checkpoint,
    }
    body = parse(schemas.Clone, {key: value for key, value in given.items() if value is not None})
    _announce(client, client.clone(run, body), follow=follow, as_json=as_json)


def _overrides(arguments: list[str]) -> dict[str, Any]:
    """The values of `key.sub=value …` by dotted key.

    Raises:
        SpecError: an argument without `=`, or a value that is not YAML.
    """
    found: dict[str, Any] = {}
    for argument in arguments:
        nested: dict[str, Any] = {}
        apply_override(nested, argument)
        key = argument.partition("=")[0]
        found[key] = functools.reduce(operator.getitem, key.split("."), nested)
    return found


def _resources(
    executor: Executor | None, accelerators: int, cpus: int, memory_gb: float, labels: list[str] | None
) -> schemas.Resources | None:
    given = {
        "executor": executor.value if executor else None,
        "accelerators": accelerators,
        "cpus": cpus,
        "memory_gb": memory_gb,
        "labels": words(labels),
    }
    asked = {key: value for key, value in given.items() if value}
    return parse(schemas.Resources, asked) if asked else None


def _announce(client: Client, experiment: schemas.Experiment, *, follow: bool, as_json: bool) -> None:
    print_notes(experiment.spec_notes)
    if as_json and not follow:
        print_json(experiment)
    elif not as_json:
        for run in experiment.runs:
            say(f"{run.id}  {run.name}  {run.state.value.lower()}")
        more = experiment.num_runs - len(experiment.runs)
        if more:
            say(f"and {more:,} more")
        if experiment.num_runs > 1:
            say(f"experiment {experiment.id}: {experiment.num_runs:,} runs")
    if follow and experiment.num_runs == 1:
        watch_run(client, experiment.runs[0].id, as_json=as_json)
    elif follow:
        watch_experiment(client, experiment.id, as_json=as_json)
