"""`n2n workers`: who executes runs."""

from __future__ import annotations

from typing import Annotated

import typer

from nanollama.api import schemas
from nanollama.api.client import Client
from nanollama.api.errors import NotFound
from nanollama.commands.groups import new_app
from nanollama.commands.options import AsJson, served
from nanollama.commands.output import print_json, print_table, say, say_aside

Name = Annotated[str, typer.Argument(metavar="WORKER", help="Id or name of a worker, as `n2n workers` shows them.")]

app = new_app("workers", "Who executes runs.", lists=True)


@app.command("list")
@served
def list_workers(client: Client, as_json: AsJson = False) -> None:
    """List the workers, those alive first."""
    known = client.workers()
    if as_json:
        print_json(known)
        return
    if not known:
        say("no worker yet; `n2n up` starts one here")
        return
    rows = ((w.id, w.name, w.host, w.executor, f"{w.busy}/{w.slots}", _condition(w)) for w in known)
    print_table(("worker", "name", "host", "executor", "busy", "state"), rows, right=("busy",), shrink=("name", "host"))
    for w in known:
        for problem in w.problems if w.alive else []:
            say_aside(f"{w.name}: {problem}")


@app.command()
@served
def drain(client: Client, worker: Name, as_json: AsJson = False) -> None:
    """Let a worker finish what it holds and take nothing more."""
    _show(client.drain_worker(_find(client, worker).id), as_json=as_json)


@app.command()
@served
def resume(client: Client, worker: Name, as_json: AsJson = False) -> None:
    """Let a worker that was drained take jobs again."""
    _show(client.resume_worker(_find(client, worker).id), as_json=as_json)


def _find(client: Client, given: str) -> schemas.Worker:
    known = client.workers()
    found = [w for w in known if w.id == given] or [w for w in known if w.name == given]
    if len(found) == 1:
        return found[0]
    if found:
        raise NotFound(
            f"{len(found)} workers are called '{given}'; name one by its id: {', '.join(w.id for w in found)}"
        )
    raise NotFound(f"there is no worker '{given}'; `n2n workers` lists them")


def _show(worker: schemas.Worker, *, as_json: bool) -> None:
    if as_json:
        print_json(worker)
    else:
        say(f"{worker.id}  {worker.name}  {_condition(worker)}")


def _condition(worker: schemas.Worker) -> str:
    return "away" if not worker.alive else "draining" if worker.draining or worker.drain_requested else "alive"
