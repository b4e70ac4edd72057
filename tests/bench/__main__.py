"""Run every benchmark and print one table: `python -m tests.bench [--markdown] [name …]`."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable

import numba
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from tests.bench.exact_filter import bench_filter
from tests.bench.machine import bench_machine, describe_machine
from tests.bench.sampling import bench_hdf5, bench_sampling
from tests.bench.service import bench_ingest, bench_metrics
from tests.bench.timing import Row
from tests.bench.training import bench_training

BENCHMARKS: dict[str, Callable[[], list[Row]]] = {
    "machine": bench_machine,
    "sampling": bench_sampling,
    "hdf5": bench_hdf5,
    "filter": bench_filter,
    "training": bench_training,
    "ingest": bench_ingest,
    "metrics": bench_metrics,
}
COLUMNS = ("work", "ours", "beside", "ratio", "goal")


def main(arguments: list[str]) -> int:
    """Run the named benchmarks, or all; with --markdown as a table for a document."""
    names = [argument for argument in arguments if argument != "--markdown"]
    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        print(f"error: no benchmark {', '.join(unknown)}; known: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    rows = [row for name in names or BENCHMARKS for row in BENCHMARKS[name]()]
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}, numba {numba.__version__}"
    versions += f", torch {torch.__version__}"
    if "--markdown" in arguments:
        print(f"Measured on {describe_machine()}; {versions}:\n\n{markdown(rows)}")
    else:
        console = Console(width=None if sys.stdout.isatty() else 180)
        console.print(f"{describe_machine()}\n{versions}", highlight=False)
        console.print(as_table(rows))
    return 0


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
