"""`python -m backend backup | restore | copy | check`: a database as a whole."""

from __future__ import annotations

import argparse
from pathlib import Path

from backend.operations.backup import backup, restore
from backend.operations.copying import copy

COMMANDS = ("backup", "restore", "copy")


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    """Add the commands to those of `python -m backend`."""
    saving = commands.add_parser("backup", parents=[common], help="write a consistent copy of the database to a file")
    saving.add_argument("file", type=Path, help="a new file")
    restoring = commands.add_parser("restore", parents=[common], help="fill an empty database from a backup")
    restoring.add_argument("file", type=Path, help="what `backup` wrote")
    copying = commands.add_parser("copy", help="move all rows to an empty database, of the same kind or not")
    copying.add_argument("source", help="URL of the database that is copied")
    copying.add_argument("target", help="URL of an empty database; SQLite's file is made")


def run(database_url: str, given: argparse.Namespace) -> int:
    """Carry out a command; the exit code. Raises BackupError."""
    if given.command == "backup":
        backup(database_url, given.file)
        print(f"{given.file} holds the database: {given.file.stat().st_size / 1e6:,.1f} MB")
    elif given.command == "restore":
        restore(given.file, database_url)
        print(f"restored from {given.file}; `n2n db upgrade` brings an older one to the newest schema")
    else:
        counts = copy(given.source, given.target)
        for name, rows in counts.items():
            print(f"{name:20} {rows:>12,}")
        print(f"{sum(counts.values()):,} rows copied, each table compared by count and digest")
    return 0
