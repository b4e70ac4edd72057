"""`n2n pull`: curves as CSV or Parquet, a point a row."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from nanollama.api import schemas
from nanollama.api.client import Client
from nanollama.commands.groups import new_app
from nanollama.commands.options import AsJson, Filter, OfExperiment, RunIds, option_error, served, words
from nanollama.commands.output import out, plain, print_json, replacing, say_aside
from nanollama.commands.selecting import select
from nanollama.spec.base import did_you_mean

Row = tuple[Any, ...]
IN_ONE_QUESTION = 100  # runs, by their ids in an address

app = new_app()


class Axis(str, Enum):
    """What a curve is drawn over."""

    STEP = "step"
    TOKENS = "tokens"
    FLOPS = "flops"
    TIME = "time"
    RELATIVE_TIME = "relative_time"


@app.command()
@served
def pull(
    client: Client,
    run: RunIds = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file .csv or .parquet; CSV to standard output when absent.")
    ] = None,
    keys: Annotated[
        list[str] | None, typer.Option("--keys", help="Metrics, with commas between: loss,excess. All when absent.")
    ] = None,
    filter: Filter = None,  # noqa: A002 - the option's name
    experiment: OfExperiment = None,
    x: Annotated[
        Axis, typer.Option("--x", help="Axis that points are thinned on; a column x where it is no other.")
    ] = Axis.STEP,
    max_points: Annotated[
        int, typer.Option("--max-points", min=5, max=schemas.MAX_POINTS, help="Of each curve; every spike is kept.")
    ] = schemas.MAX_POINTS,
    as_json: AsJson = False,
) -> None:
    """Fetch curves of runs as CSV or Parquet: a row for each point, with what the grid sets of its run.

    Columns: run, name, a column for each key of the grid, key, step, tokens, time, value.
    """
    if output is not None and (as_json or output.suffix not in (".csv", ".parquet")):
        said = "JSON goes to standard output" if as_json else f"{output} ends neither in .csv nor in .parquet"
        raise option_error("--output", said, "write for example curves.csv")
    runs = select(client, run, filter, experiment).runs
    if not runs:
        raise option_error("--filter", "no run matches", "try it with `n2n runs`")
    wanted = words(keys)
    _check_keys(client, runs, wanted)
    query = {"keys": wanted, "x": x.value, "max_points": max_points}
    found = (client.curves(schemas.MetricsQuery(runs=[each.id], **query)).runs[0] for each in runs)
    if as_json:
        print_json(schemas.MetricsReply(x=x.value, runs=list(found)))
        return
    params = list(dict.fromkeys(key for each in runs for key in each.params))
    has_x = x in (Axis.FLOPS, Axis.RELATIVE_TIME)
    columns = ["run", "name", *params, "key", "step", "tokens", "time", "value", *(["x"] if has_x else [])]
    tables = (_rows(each, metrics, params, has_x=has_x) for each, metrics in zip(runs, found, strict=True))
    if output is None:
        _write_csv(sys.stdout, columns, tables)
        return
    with replacing(output) as temporary:
        if output.suffix == ".csv":
            with open(temporary, "w", newline="") as file:
                num_rows = _write_csv(file, columns, tables)
        else:
            num_rows = _write_parquet(temporary, columns, tables, _texts(runs, params))
    say_aside(f"{output}: {num_rows:,} points of {len(runs):,} runs")


def _check_keys(client: Client, runs: Sequence[schemas.Run], wanted: Sequence[str]) -> None:
    """Raises SpecError when none of the runs has one of the metrics."""
    if not wanted:
        return
    known: set[str] = set()
    for start in range(0, len(runs), IN_ONE_QUESTION):
        ids = [each.id for each in runs[start : start + IN_ONE_QUESTION]]
        known.update(*(found.values for found in client.values(ids)))
    for key in wanted:
        if key not in known:
            remedy = did_you_mean(key, sorted(known)) if known else "wait for their first step"
            raise option_error("--keys", f"none of the runs has the metric '{key}'", remedy)


def _rows(run: schemas.Run, metrics: schemas.Metrics, params: Sequence[str], *, has_x: bool) -> Iterator[Row]:
    head = (run.id, run.name, *(_cell(run.params.get(key)) for key in params))
    for key, series in metrics.series.items():
        columns: list[Sequence[Any]] = [series.step, series.tokens, series.time, series.value]
        if has_x:
            columns.append(series.x or [])
        for values in zip(*columns, strict=True):
            yield (*head, key, *values)


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, (str, int, float)) else json.dumps(value)


def _texts(runs: Sequence[schemas.Run], params: Sequence[str]) -> set[str]:
    """Those of the grid's keys whose values are not all numbers."""
    return {key for key in params for run in runs if isinstance(_cell(run.params.get(key)), (str, bool))}


def _write_csv(file: IO[str], columns: Sequence[str], tables: Iterable[Iterator[Row]]) -> int:
    spelled = file is sys.stdout and out.is_terminal  # what a grid sets may hold anything
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    num_rows = 0
    for table in tables:
        for row in table:
            writer.writerow([plain(cell) if isinstance(cell, str) else cell for cell in row] if spelled else row)
            num_rows += 1
    file.flush()
    return num_rows


def _write_parquet(path: Path, columns: Sequence[str], tables: Iterable[Iterator[Row]], texts: set[str]) -> int:
    """Write a row group for each run.

    Raises:
        SpecError: there is no pyarrow.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415 - large, and not part of a client
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError:
        remedy = "install it with `pip install pyarrow`, or write a .csv"
        raise option_error("--output", "Parquet needs pyarrow, which is not installed", remedy) from None
    kinds = dict.fromkeys(columns, pa.float64()) | dict.fromkeys(("step", "tokens"), pa.int64())
    kinds |= dict.fromkeys(("run", "name", "key", *texts), pa.string())
    schema = pa.schema(list(kinds.items()))
    num_rows = 0
    with pq.ParquetWriter(path, schema) as writer:
        for table in tables:
            rows = list(table)
            values = list(zip(*rows, strict=True)) if rows else [()] * len(columns)
            arrays = [
                pa.array([str(v) if v is not None and column in texts else v for v in cells], kinds[column])
                for column, cells in zip(columns, values, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            num_rows += len(rows)
    return num_rows
