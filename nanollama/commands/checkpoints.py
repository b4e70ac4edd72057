"""`n2n checkpoints`: what a run has saved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nanollama.api import schemas
from nanollama.api.client import Client
from nanollama.commands.groups import new_app
from nanollama.commands.options import AsJson, RunId, Yes, ask, served
from nanollama.commands.output import print_json, print_table, save, say, say_aside, size
from nanollama.commands.progress import nats

Step = Annotated[int, typer.Argument(metavar="STEP", min=0, help="Of the run, as `n2n checkpoints list` shows it.")]

app = new_app("checkpoints", "What a run has saved.")


@app.command("list")
@served
def list_checkpoints(client: Client, run: RunId, as_json: AsJson = False) -> None:
    """List the checkpoints of a run, with the evaluation of the same step."""
    found = client.checkpoints(run)
    if as_json:
        print_json(found)
        return
    if not found:
        say("no checkpoint yet")
        return
    rows = (
        (c.step, c.attempt, size(c.size_bytes), nats(c.evaluation_loss), nats(c.evaluation_excess), _state(c), c.path)
        for c in found
    )
    numbers = ("step", "attempt", "size", "loss", "excess")
    print_table((*numbers, "state", "path"), rows, right=numbers, shrink=("path",))


@app.command()
@served
def pin(client: Client, run: RunId, step: Step, as_json: AsJson = False) -> None:
    """Forbid that training removes a checkpoint."""
    _show(client.pin_checkpoint(run, step), as_json=as_json)


@app.command()
@served
def unpin(client: Client, run: RunId, step: Step, as_json: AsJson = False) -> None:
    """Allow again that training removes a checkpoint."""
    _show(client.pin_checkpoint(run, step, pinned=False), as_json=as_json)


@app.command()
@served
def delete(client: Client, run: RunId, step: Step, yes: Yes = False, as_json: AsJson = False) -> None:
    """Remove a checkpoint of a run that has ended. Its files are gone for good."""
    saved = next((c for c in client.checkpoints(run) if c.step == step and not c.removed), None)
    if saved is not None:
        ask(f"delete the checkpoint of step {step:,} of {run}, {size(saved.size_bytes)}?", yes=yes)
    _show(client.delete_checkpoint(run, step), as_json=as_json)


@app.command()
@served
def download(
    client: Client,
    run: RunId,
    step: Step,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="The file, `-` for standard output; RUN-STEP.tar when absent.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a whole checkpoint as an uncompressed tar file, where the service reaches it."""
    path = None if output == "-" else Path(output or f"{run.replace('/', '_')}-{step}.tar")
    written = save(client.download_checkpoint(run, step), path)
    if as_json and path is not None:
        print_json({"file": str(path), "bytes": written})
    elif path is not None:
        say_aside(f"{path}: {size(written)}")


def _show(checkpoint: schemas.Checkpoint, *, as_json: bool) -> None:
    if as_json:
        print_json(checkpoint)
    else:
        say(f"step {checkpoint.step:,}: {_state(checkpoint)}")


def _state(checkpoint: schemas.Checkpoint) -> str:
    state = "removed" if checkpoint.removed else "pinned" if checkpoint.pinned else "kept"
    return f"{state}, {checkpoint.pending} is pending" if checkpoint.pending else state
