"""`n2n db`: the service's database as a whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from nanollama.commands.extras import need
from nanollama.commands.groups import new_app
from nanollama.commands.options import HOME, DatabaseUrl, Home
from nanollama.stack import home_database

app = new_app("db", "The service's database.")


@app.command()
def upgrade(home: Home = HOME, database_url: DatabaseUrl = None) -> None:
    """Bring the database to the newest schema; makes it when there is none."""
    _call("migrate", f"--database-url={database_url or home_database(home)}")


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="A new file.")], home: Home = HOME, database_url: DatabaseUrl = None
) -> None:
    """Write a consistent copy of the database to a file, while the service goes on."""
    _call("backup", f"--database-url={database_url or home_database(home)}", "--", str(file))


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="What `n2n db backup` wrote.")],
    home: Home = HOME,
    database_url: DatabaseUrl = None,
) -> None:
    """Fill an empty database from a backup, with the service stopped."""
    _call("restore", f"--database-url={database_url or home_database(home)}", "--", str(file))


@app.command()
def copy(
    source: Annotated[str, typer.Argument(metavar="FROM_URL", help="The database that is copied.")],
    target: Annotated[str, typer.Argument(metavar="TO_URL", help="An empty database; SQLite's file is made.")],
) -> None:
    """Move everything from one database to another, for example from SQLite to Postgres, with the service stopped."""
    _call("copy", "--", source, target)


def _call(*arguments: str) -> None:
    """Let the service's own command do it: the database is nobody else's."""
    need("server")
    command = [sys.executable, "-m", "backend", *arguments]
    raise typer.Exit(subprocess.run(command, check=False).returncode)
