"""`n2n queue`: jobs that wait."""

from __future__ import annotations

from typing import Annotated

import typer

from nanollama.api import schemas
from nanollama.api.client import Client
from nanollama.commands.groups import new_app
from nanollama.commands.options import AsJson, Filter, OfExperiment, RunIds, Yes, served
from nanollama.commands.output import print_json, print_table, say, say_aside
from nanollama.commands.selecting import change_in_parts, select

app = new_app("queue", "Jobs that wait, and why.", lists=True)


@app.command("list")
@served
def list_queue(
    client: Client,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, next first.")] = 30,
    as_json: AsJson = False,
) -> None:
    """List jobs in the order in which workers take them, each with the reason why it waits."""
    queue = client.queue(limit=limit)
    if as_json:
        print_json(queue)
        return
    _say_paused(queue)
    if not queue.items:
        say("nothing waits")
        return
    rows = ((entry.position, entry.run_id, entry.run_name, entry.priority, entry.detail) for entry in queue.items)
    print_table(
        ("place", "run", "name", "priority", "waits because"),
        rows,
        right=("place", "priority"),
        shrink=("name", "waits because"),
    )
    if queue.waiting > len(queue.items):
        say_aside(f"{queue.waiting:,} wait; --limit shows more")


@app.command()
@served
def pause(client: Client, as_json: AsJson = False) -> None:
    """Let workers take nothing until the queue is resumed; what runs goes on."""
    _show(client.pause_queue(), as_json=as_json)


@app.command()
@served
def resume(client: Client, as_json: AsJson = False) -> None:
    """Let workers take jobs again."""
    _show(client.resume_queue(), as_json=as_json)


@app.command()
@served
def priority(
    client: Client,
    to: Annotated[int, typer.Option("--to", min=-100, max=100, help="The new priority; higher runs first.")],
    run: RunIds = None,
    filter: Filter = None,  # noqa: A002 - the option's name
    experiment: OfExperiment = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Change the priority of runs that have not ended: `n2n queue priority RUN --to 5`."""
    chosen = select(client, run, filter, experiment, lambda found: not found.state.terminal)
    chosen.confirm("change the priority of", yes=yes)
    changed = change_in_parts(chosen, client.prioritise_runs, schemas.Prioritise, priority=to)
    if as_json:
        print_json(schemas.RunsChanged(changed=changed))
    else:
        say(f"{len(changed):,} run{'s' if len(changed) != 1 else ''} with priority {to}")


def _show(queue: schemas.Queue, *, as_json: bool) -> None:
    if as_json:
        print_json(queue)
        return
    _say_paused(queue)
    say(f"{queue.waiting:,} wait")


def _say_paused(queue: schemas.Queue) -> None:
    if queue.paused_since is not None:
        say(f"paused since {queue.paused_since:%Y-%m-%d %H:%M} UTC; `n2n queue resume` ends it")
