"""`n2n token`: access tokens of the database on this machine, the first one included."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from nanollama.commands.extras import need
from nanollama.commands.groups import new_app
from nanollama.commands.options import HOME, AsJson, DatabaseUrl, Home
from nanollama.stack import home_database

app = new_app("token", "Access tokens, for a service that asks for them (`--tokens`).")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whom or what it is for.")],
    scope: Annotated[list[str], typer.Option(help="read, submit, admin or worker:<pool>; may be repeated.")],
    expires_in_days: Annotated[float | None, typer.Option(help="Never when absent.")] = None,
    home: Home = HOME,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make a token; its secret is printed this once."""
    options = [f"--scope={each}" for each in scope]
    if expires_in_days is not None:
        options.append(f"--expires-in-days={expires_in_days}")
    _call("create", [*options, "--", name], home, database_url, as_json=as_json)


@app.command("list")
def list_tokens(home: Home = HOME, database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """List tokens, newest first; never their secrets."""
    _call("list", [], home, database_url, as_json=as_json)


@app.command()
def revoke(
    token: Annotated[str, typer.Argument(metavar="ID", help="Id of a token, as `n2n token list` shows it.")],
    home: Home = HOME,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Let a token be good for nothing from now on."""
    _call("revoke", ["--", token], home, database_url, as_json=as_json)


def _call(action: str, arguments: list[str], home: Path, database_url: str | None, *, as_json: bool) -> None:
    """Let the service's own command do it: the database is nobody else's."""
    need("server")
    options = [f"--database-url={database_url or home_database(home)}", *(["--json"] if as_json else [])]
    command = [sys.executable, "-m", "backend", "token", action, *options, *arguments]
    raise typer.Exit(subprocess.run(command, check=False).returncode)
