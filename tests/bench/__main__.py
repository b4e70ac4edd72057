"""Run every benchmark and print one table: `python -m tests.bench [--markdown] [name …]`."""

from __future__ import annotations

import importlib
import pkgutil
import platform
import sys
from collections.abc import Callable

import numba
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from tests import bench
from tests.bench.machine import describe_machine
from tests.bench.timing import Row

FIRST = "machine"
COLUMNS = ("work", "ours", "beside", "ratio", "goal")


def main(arguments: list[str]) -> int:
    """Run the named benchmarks, or all; with --markdown as a table for a document."""
    names = [argument for argument in arguments if argument != "--markdown"]
    known = benchmarks()
    unknown = sorted(set(names) - set(known))
    if unknown:
        print(f"error: no benchmark {', '.join(unknown)}; known: {', '.join(known)}", file=sys.stderr)
        return 2
    rows = [row for name in names or known for row in known[name]()]
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}, numba {numba.__version__}"
    versions += f", torch {torch.__version__}"
    if "--markdown" in arguments:
        print(f"Measured on {describe_machine()}; {versions}:\n\n{markdown(rows)}")
    else:
        console = Console(width=None if sys.stdout.isatty() else 180)
        console.print(f"{describe_machine()}\n{versions}", highlight=False)
        console.print(as_table(rows))
    return 0


def benchmarks() -> dict[str, Callable[[], list[Row]]]:
    """Every function bench_<name> of the modules here, by its name; the machine's limits come first."""
    found = {}
    for module in pkgutil.iter_modules(bench.__path__):
        if module.name == "__main__":
            continue
        for name, function in vars(importlib.import_module(f"{bench.__name__}.{module.name}")).items():
            if name.startswith("bench_"):
                found[name.removeprefix("bench_")] = function
    return {name: found[name] for name in sorted(found, key=lambda name: (name != FIRST, name))}


def markdown(rows: list[Row]) -> str:
    """The rows as a table in Markdown."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *((row.work, row.ours, row.beside, row.ratio, row.goal) for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def as_table(rows: list[Row]) -> Table:
    """The rows as a table for a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "work" else "right")
    for row in rows:
        table.add_row(row.work, row.ours, row.beside, row.ratio, row.goal)
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
