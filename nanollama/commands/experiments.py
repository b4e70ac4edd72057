"""`n2n experiments`: what was submitted together."""

from __future__ import annotations

from typing import Annotated

import typer

from nanollama.api import schemas
from nanollama.api.client import Client
from nanollama.commands.groups import new_app
from nanollama.commands.options import AsJson, ExperimentId, served
from nanollama.commands.output import print_fields, print_json, print_table, say, say_aside
from nanollama.commands.progress import counted
from nanollama.commands.runs import print_runs

app = new_app("experiments", "What was submitted together: a config, or all runs of its grid.", lists=True)


@app.command("list")
@served
def list_experiments(
    client: Client,
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many, newest first.")] = 30,
    cursor: Annotated[str | None, typer.Option(help="Go on after a page: its next_cursor.")] = None,
    as_json: AsJson = False,
) -> None:
    """List experiments, newest first, with how many runs are in each state."""
    page = client.experiments(limit=limit, cursor=cursor)
    if as_json:
        print_json(page)
        return
    if not page.items:
        say("no experiment" + ("" if cursor else " yet; `n2n submit FILE` makes one"))
        return
    rows = ((e.id, e.name, e.num_runs, counted(e) + (", paused" if e.paused_since else "")) for e in page.items)
    print_table(("experiment", "name", "runs", "states"), rows, right=("runs",), shrink=("name", "states"))
    if page.next_cursor:
        say_aside(f"there are more; --limit shows up to 500, and --cursor {page.next_cursor} what follows")


@app.command()
@served
def show(client: Client, experiment: ExperimentId, as_json: AsJson = False) -> None:
    """Show one with its first runs; `n2n runs --experiment EXPERIMENT` pages all."""
    found = client.experiment(experiment)
    if as_json:
        print_json(found)
        return
    _print(found)
    print_runs(found.runs)


@app.command()
@served
def pause(client: Client, experiment: ExperimentId, as_json: AsJson = False) -> None:
    """Let workers take none of its runs until it is resumed; those that run go on."""
    _answer(client.pause(experiment), as_json=as_json)


@app.command()
@served
def resume(client: Client, experiment: ExperimentId, as_json: AsJson = False) -> None:
    """Let workers take its runs again."""
    _answer(client.resume(experiment), as_json=as_json)


def _answer(experiment: schemas.Experiment, *, as_json: bool) -> None:
    if as_json:
        print_json(experiment)
    else:
        _print(experiment)


def _print(experiment: schemas.Experiment) -> None:
    print_fields(
        {
            "experiment": f"{experiment.id}  {experiment.name}",
            "runs": f"{experiment.num_runs:,}: {counted(experiment)}",
            "paused": f"since {experiment.paused_since:%Y-%m-%d %H:%M} UTC" if experiment.paused_since else "no",
            "tags": ", ".join(experiment.tags),
            "notes": experiment.notes,
        }
    )
