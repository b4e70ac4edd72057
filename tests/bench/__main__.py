"""Run every benchmark and print one table: `python -m tests.bench [name …]`."""

from __future__ import annotations

import platform
import sys

import torch
from rich.console import Console
from rich.table import Table

from tests.bench.exact_filter import bench_filter
from tests.bench.service import bench_ingest, bench_metrics
from tests.bench.timing import Row
from tests.bench.training import bench_training

BENCHMARKS = {"filter": bench_filter, "training": bench_training, "ingest": bench_ingest, "metrics": bench_metrics}


def main(names: list[str]) -> int:
    """Run the named benchmarks, or all."""
    unknown = set(names) - set(BENCHMARKS)
    if unknown:
        print(f"error: no benchmark {', '.join(sorted(unknown))}; known: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    console = Console()
    console.print(f"{platform.platform()}, Python {platform.python_version()}, torch {torch.__version__}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("work")
    for column in ("ours", "beside", "ratio"):
        table.add_column(column, justify="right")
    for name in names or BENCHMARKS:
        rows: list[Row] = BENCHMARKS[name]()
        for row in rows:
            table.add_row(row.work, row.ours, row.beside, row.ratio)
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
