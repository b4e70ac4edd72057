"""`n2n gssms` and `datasets`: what sequences come from."""

from __future__ import annotations

from typing import Annotated

import typer

from nanollama.api import schemas
from nanollama.api.client import Client
from nanollama.commands.groups import new_app
from nanollama.commands.options import AsJson, served
from nanollama.commands.output import print_fields, print_json, print_table, say, say_aside, size

Hash = Annotated[str, typer.Argument(metavar="HASH", help="Of a true model, as `n2n gssms` shows it.")]

gssms = new_app("gssms", "True models, and the entropy of their sequences.", lists=True)
datasets = new_app("datasets", "Files of sequences.", lists=True)
app = new_app()
app.add_typer(gssms)
app.add_typer(datasets)


@gssms.command("list")
@served
def list_gssms(
    client: Client,
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many, newest first.")] = 30,
    cursor: Annotated[str | None, typer.Option(help="Go on after a page: its next_cursor.")] = None,
    as_json: AsJson = False,
) -> None:
    """List true models, newest first, with their entropy in nats per token."""
    page = client.gssms(limit=limit, cursor=cursor)
    if as_json:
        print_json(page)
        return
    if not page.items:
        say("no true model yet; the first run on one brings it")
        return
    rows = ((g.hash, g.name, len(g.nodes), g.joint_states, g.vocab, g.num_runs, _entropy(g.bound)) for g in page.items)
    numbers = ("nodes", "states", "vocab", "runs")
    print_table(("hash", "name", *numbers, "entropy"), rows, right=numbers, shrink=("name", "entropy"))
    if page.next_cursor:
        say_aside(f"there are more; --limit shows up to 500, and --cursor {page.next_cursor} what follows")


@gssms.command()
@served
def show(client: Client, content_hash: Hash, as_json: AsJson = False) -> None:
    """Show one true model."""
    _show(client.gssm(content_hash), as_json=as_json)


@gssms.command()
@served
def bound(client: Client, content_hash: Hash, as_json: AsJson = False) -> None:
    """Queue the job that finds the entropy, unless it is known or one is under way."""
    _show(client.compute_bound(content_hash), as_json=as_json)


@datasets.command("list")
@served
def list_datasets(client: Client, as_json: AsJson = False) -> None:
    """List the files that runs read or workers have found."""
    found = client.datasets()
    if as_json:
        print_json(found)
        return
    if not found:
        say("no file yet; `python -m nanollama.apps.gssm.data config=FILE` writes some")
        return
    rows = (
        (
            d.path,
            d.num_sequences,
            d.seq_len,
            None if d.size_bytes is None else size(d.size_bytes),
            d.num_runs,
            _there(d),
        )
        for d in found
    )
    numbers = ("sequences", "length", "size", "runs")
    print_table(("path", *numbers, "there"), rows, right=numbers, shrink=("path",))


def _show(gssm: schemas.GSSM, *, as_json: bool) -> None:
    if as_json:
        print_json(gssm)
        return
    print_fields(
        {
            "hash": gssm.hash,
            "name": gssm.name,
            "nodes": ", ".join(gssm.nodes),
            "joint states": f"{gssm.joint_states:,}",
            "vocab": gssm.vocab,
            "seed": gssm.seed,
            "runs": gssm.num_runs,
            "entropy": _entropy(gssm.bound),
        }
    )


def _entropy(bound: schemas.Bound) -> str:
    if bound.entropy is None:
        return bound.state + (f": {bound.reason}" if bound.reason else "")
    stderr = f" ± {bound.entropy_stderr:.4f}" if bound.entropy_stderr is not None else ""
    state = "" if bound.state == "done" else f", {bound.state}"
    return f"{bound.entropy:.4f}{stderr}{state}"


def _there(dataset: schemas.Dataset) -> str:
    return {None: "nobody has looked", True: "yes", False: "no"}[dataset.present]
