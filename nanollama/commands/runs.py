"""`n2n runs`, `show`, `logs`, `cancel`, `retry`, `tag` and `archive`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Annotated

import typer

from nanollama.api import schemas
from nanollama.api.client import Client
from nanollama.api.errors import Conflict
from nanollama.api.status import RunState
from nanollama.commands.following import POLL_SECONDS, Patience, described_state
from nanollama.commands.groups import new_app
from nanollama.commands.options import (
    AsJson,
    Filter,
    OfExperiment,
    RunId,
    RunIds,
    Yes,
    option_error,
    served,
)
from nanollama.commands.output import out, plain, print_fields, print_json, print_table, say, say_aside
from nanollama.commands.progress import nats
from nanollama.commands.selecting import Selected, change_in_parts, select

Shown = tuple[int, str, int]  # attempt, stream, bytes of it

app = new_app()


@app.command()
@served
def runs(
    client: Client,
    filter: Filter = None,  # noqa: A002 - the option's name
    sort: Annotated[str | None, typer.Option(help="A field or metric; with `-` in front the largest first.")] = None,
    experiment: OfExperiment = None,
    state: Annotated[
        list[RunState] | None, typer.Option(case_sensitive=False, help="Only this state; may be repeated.")
    ] = None,
    search: Annotated[str | None, typer.Option(help="Only with this in name, id or tag.")] = None,
    archived: Annotated[
        bool, typer.Option("--archived", help="Only archived runs, which are left out otherwise.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many.")] = 30,
    cursor: Annotated[str | None, typer.Option(help="Go on after a page: its next_cursor.")] = None,
    as_json: AsJson = False,
) -> None:
    """List runs, newest first."""
    narrowed = f"{filter or ''} archived:true".strip() if archived else filter
    page = client.runs(
        state=[s.value for s in state] if state else None,
        search=search,
        experiment=experiment,
        filter=narrowed,
        sort=sort,
        limit=limit,
        cursor=cursor,
    )
    if as_json:
        print_json(page)
        return
    if not page.items:
        wanted = state or search or narrowed or experiment or cursor
        say("no runs" + (" match" if wanted else " yet; `n2n submit FILE` makes some, `n2n templates` lists configs"))
        return
    print_runs(page.items)
    if page.next_cursor:
        say_aside(f"there are more; --limit shows up to 500, and --cursor {page.next_cursor} what follows")


def print_runs(items: list[schemas.Run]) -> None:
    """Print runs as a table."""
    rows = []
    for run in items:
        p = run.progress
        rows.append(
            (
                *(run.id, run.experiment, run.name, run.state, f"{p.step}/{p.total_steps}"),
                *(nats(p.loss), nats(p.bound), nats(p.excess)),
            )
        )
    numbers = ("step", "loss", "bound", "excess")
    print_table(("run", "experiment", "name", "state", *numbers), rows, right=numbers, shrink=("name", "experiment"))


@app.command()
@served
def show(client: Client, run: RunId, as_json: AsJson = False) -> None:
    """Show one run: state, progress, result, checkpoints."""
    detail = client.run(run)
    if as_json:
        print_json(detail)
        return
    checkpoints = [c for c in client.checkpoints(run) if not c.removed]
    p = detail.progress
    print_fields(
        {
            "run": f"{detail.id}  {detail.name}",
            "experiment": f"{detail.experiment_id}  {detail.experiment}",
            "state": described_state(detail),
            "attempt": detail.attempt,
            "worker": detail.worker,
            "step": f"{p.step:,} of {p.total_steps:,}  ({p.tokens:,} tokens)",
            **{key: f"{nats(getattr(p, key))} nats/token" for key in ("loss", "bound", "excess")},
            "checkpoints": ", ".join(f"{c.step:,}" for c in checkpoints) or "none",
            "tags": ", ".join(detail.tags),
            "notes": detail.notes,
        }
    )


@app.command()
@served
def logs(
    client: Client,
    run: RunId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    stream: Annotated[str | None, typer.Option(help="For example stdout.log or logs/rank0.log.")] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="Of this attempt; of the newest when absent.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the end of a run's log."""
    if follow and as_json:
        raise option_error("--json", "a log that is followed has no end", "leave out --follow")
    patience = Patience()

    def read() -> tuple[schemas.Run, schemas.LogTail]:
        # in this order: what ends with the run is seen
        return client.run(run), client.logs(run, stream=stream, attempt=attempt)

    detail, tail = read()
    if as_json:
        print_json(tail)
        return
    shown: Shown | None = None
    while True:
        shown = _write_log(tail, shown)
        if detail.state.terminal or not follow:
            return
        time.sleep(POLL_SECONDS)
        detail, tail = patience(read) or (detail, tail)


def _write_log(tail: schemas.LogTail, shown: Shown | None) -> Shown:
    """Print what is new; a terminal is told nothing but text."""
    skip = 0
    if shown is not None and shown[:2] == (tail.attempt, tail.name):
        skip = max(0, shown[2] - tail.offset)
    text = tail.text.encode()[skip:].decode(errors="replace")
    if out.is_terminal:
        text = plain(text.replace("\r\n", "\n").replace("\r", "\n"), keep="\n\t")
    sys.stdout.write(text)
    sys.stdout.flush()
    return tail.attempt, tail.name, tail.length


@app.command()
@served
def cancel(
    client: Client,
    run: RunIds = None,
    filter: Filter = None,  # noqa: A002
    experiment: OfExperiment = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Ask runs to stop: at once those that are queued, otherwise when their worker has stopped them."""
    chosen = select(client, run, filter, experiment, lambda found: not found.state.terminal)
    chosen.confirm("cancel", yes=yes)
    if chosen.named:
        changed = [client.cancel(each).id for each in chosen.ids]
    else:
        changed = change_in_parts(chosen, client.cancel_runs)
    _report(client, chosen, changed, "cancelled, or asked to stop", as_json=as_json)


@app.command()
@served
def retry(
    client: Client,
    run: RunIds = None,
    filter: Filter = None,  # noqa: A002
    experiment: OfExperiment = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Queue runs again that have failed or were cancelled; they go on from their newest checkpoints."""
    ended_badly = (RunState.FAILED, RunState.CANCELLED)
    chosen = select(client, run, filter, experiment, lambda found: found.state in ended_badly)
    chosen.confirm("retry", yes=yes)
    refused: list[Conflict] = []
    named = chosen.named
    changed = _each(client.retry, chosen.ids, refused) if named else change_in_parts(chosen, client.retry_runs)
    _report(client, chosen, changed, "queued again", as_json=as_json)
    for error in refused:
        say_aside(f"error: {error}")
    if refused:
        raise typer.Exit(1)


def _each(act: Callable[[str], schemas.Run], ids: list[str], refused: list[Conflict]) -> list[str]:
    changed = []
    for each in ids:
        try:
            changed.append(act(each).id)
        except Conflict as error:
            refused.append(error)
    return changed


@app.command()
@served
def tag(
    client: Client,
    run: RunIds = None,
    add: Annotated[list[str] | None, typer.Option("--add", help="A tag that they get; may be repeated.")] = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", help="A tag that they lose; may be repeated.")] = None,
    filter: Filter = None,  # noqa: A002
    experiment: OfExperiment = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Add tags to runs, or take some away; other tags stay."""
    if not (add or remove):
        raise option_error("--add", "there is nothing to change", "give --add TAG, --remove TAG, or both")
    chosen = select(client, run, filter, experiment)
    chosen.confirm("change the tags of", yes=yes)
    tags = {"add": add or [], "remove": remove or []}
    changed = change_in_parts(chosen, client.tag_runs, schemas.Retag, **tags)
    _report(client, chosen, changed, "have changed", as_json=as_json)


@app.command()
@served
def archive(
    client: Client,
    run: RunIds = None,
    undo: Annotated[bool, typer.Option("--undo", help="Show them in lists again.")] = False,
    filter: Filter = None,  # noqa: A002
    experiment: OfExperiment = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Leave runs out of lists; nothing is stopped or deleted, and `n2n runs --archived` lists them."""
    chosen = select(client, run, filter, experiment, lambda found: found.archived is undo, archived=undo)
    chosen.confirm("take back from the archive" if undo else "archive", yes=yes)
    changed = change_in_parts(chosen, client.archive_runs, schemas.Archive, archived=not undo)
    _report(client, chosen, changed, "are back" if undo else "archived", as_json=as_json)


def _report(client: Client, chosen: Selected, changed: list[str], done: str, *, as_json: bool) -> None:
    if as_json:
        print_json(schemas.RunsChanged(changed=changed))
    elif chosen.named and len(changed) <= schemas.SHOWN_RUNS:
        for each in changed:
            say(f"{each}  {described_state(client.run(each))}")
        if not changed:
            say("nothing was to be changed")
    else:
        say(f"{len(changed):,} runs {done}" if len(changed) != 1 else f"1 run {done}")
