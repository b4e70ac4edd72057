"""`n2n`: the command line of the service, thin over nanollama.api.client.

Exit codes: 0 success, 1 the service or the run failed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nanollama import __version__
from nanollama.api import schemas
from nanollama.api.client import Client, server_url
from nanollama.api.errors import ApiError, InvalidRequest, Unavailable
from nanollama.api.status import RunState
from nanollama.commands.database import app as database_commands
from nanollama.commands.doctor import doctor
from nanollama.commands.graph import write_graph
from nanollama.commands.import_config import describe, import_config
from nanollama.commands.slurm import app as slurm_commands
from nanollama.commands.token import app as token_commands
from nanollama.progress import RunProgress, nats
from nanollama.spec.base import Note
from nanollama.spec.command import run_command, stop_signals
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.grid import expand
from nanollama.spec.load import read_document
from nanollama.spec.paths import absolute_paths
from nanollama.stack import API_PORT, PAGE_PORT, Stack, StackError

POLL_SECONDS = 0.5
T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(database_commands, name="db")
app.add_typer(slurm_commands, name="slurm")
app.add_typer(token_commands, name="token")
app.command()(doctor)
out = Console()

Url = Annotated[str, typer.Option("--url", help="The service; $N2N_URL when absent.", default_factory=server_url)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="Id of a run, as `n2n runs` shows it.")]
Home = Annotated[Path, typer.Option("--home", envvar="N2N_HOME", help="Where database, runs and logs are kept.")]
ApiPort = Annotated[int, typer.Option("--api-port", min=1, max=65535, help="Port of the API, on loopback.")]
PagePort = Annotated[int, typer.Option("--page-port", min=1, max=65535, help="Port of the page, on loopback.")]
DatabaseUrl = Annotated[
    str | None,
    typer.Option("--database-url", envvar="N2N_DATABASE_URL", help="SQLite under the home when absent."),
]
HOME = Path(".n2n")


# -- everything on this machine ------------------------------------------------------------------------------------


@app.command()
def up(
    home: Home = HOME,
    api_port: ApiPort = API_PORT,
    page_port: PagePort = PAGE_PORT,
    slots: Annotated[int, typer.Option("--slots", min=1, help="Runs that the worker executes at once.")] = 1,
    database_url: DatabaseUrl = None,
    stop_runs: Annotated[bool, typer.Option("--stop-runs", help="Ctrl-C also interrupts the runs under way.")] = False,
) -> None:
    """Start the API, one local worker and the page, and keep them up until Ctrl-C."""
    stack = Stack(
        home, api_port=api_port, page_port=page_port, slots=slots, database_url=database_url, stop_runs=stop_runs
    )
    with stop_signals() as stopped:
        try:
            stack.start()
            out.print(f"page  {stack.page_url}\nAPI   {stack.api_url}/docs\nhome  {escape(str(stack.home))}")
            out.print("Ctrl-C stops them" + ("." if stop_runs else "; runs under way go on and are taken up again."))
            while not stopped():
                stack.watch()
                time.sleep(POLL_SECONDS)
        finally:
            stack.stop()


@app.command()
def demo(
    home: Home = HOME,
    api_port: ApiPort = API_PORT,
    page_port: PagePort = PAGE_PORT,
    leave: Annotated[bool, typer.Option("--exit", help="End when the run has ended, instead of at Ctrl-C.")] = False,
) -> None:
    """Start everything, train the debug config and show its loss beside the bound."""
    stack = Stack(home, api_port=api_port, page_port=page_port, stop_runs=True)
    with stop_signals() as stopped:
        try:
            out.print("starting the API, a worker and the page …")
            stack.start()
            with Client(stack.api_url) as client:
                config = next(t.yaml for t in client.templates() if t.name == "debug")
                run = client.submit(yaml=config, tags=["demo"]).runs[0]
                page = f"{stack.page_url}/run?run={run.id}"
                out.print(f"run {run.id} is queued; watch it on\n{page}", soft_wrap=True)
                final = _follow(client, run.id, stack=stack, stopped=stopped)
                if final is not None:
                    _print_result(client.run(run.id), page)
            while not leave and not stopped():
                stack.watch()
                time.sleep(POLL_SECONDS)
        finally:
            stack.stop()
    if stopped():
        raise typer.Exit(0 if final is not None and not leave else 130)
    if final is None or final.state is not RunState.SUCCEEDED:
        raise typer.Exit(1)


def _follow(client: Client, run_id: str, *, stack: Stack | None, stopped: Any) -> schemas.Run | None:
    """Show a live bar until the run ends; None when a stop signal came first."""
    patience = Patience()
    with RunProgress(out) as progress:
        run = client.run(run_id)
        while not stopped():
            progress.update(run)
            if run.state.terminal:
                return run
            if stack is not None:
                stack.watch()
            time.sleep(POLL_SECONDS)
            run = patience(lambda: client.run(run_id)) or run
    return None


class Patience:
    """Calls the service for somebody who follows a run: while it is away, that is said once and the answer is None."""

    def __init__(self) -> None:
        self._away = False

    def __call__(self, call: Callable[[], T]) -> T | None:
        """The answer, or None."""
        try:
            answer = call()
        except Unavailable as error:
            if not self._away:
                print(f"{error}; waiting for it", file=sys.stderr)
            self._away = True
            return None
        self._away = False
        return answer


def _print_result(run: schemas.RunDetail, page: str | None = None) -> None:
    result = run.result or {}
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("state", f"{run.state}" + (f": {escape(run.reason)}" if run.reason else ""))
    for key in ("loss", "bound", "excess"):
        if result.get(key) is not None:
            stderr = result.get(f"{key}_stderr")
            error = f" ± {stderr:.4f}" if stderr is not None else ""
            table.add_row(key, f"{nats(result[key])}{error} nats/token")
    if page is not None:
        table.add_row("page", page)
    out.print(table, soft_wrap=True)


# -- runs ----------------------------------------------------------------------------------------------------------


@app.command(context_settings={"allow_extra_args": True})
def submit(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE [key.sub=value …]", help="A training config, and overrides.")],
    url: Url,
    name: Annotated[str | None, typer.Option(help="Name of the experiment; orchestration.name when absent.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag; may be repeated.")] = None,
    notes: Annotated[str, typer.Option(help="Free text kept with the experiment.")] = "",
    priority: Annotated[int, typer.Option(min=-100, max=100, help="Higher runs first.")] = 0,
    follow: Annotated[bool, typer.Option("--watch", help="Show a live bar until it has ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Queue a training config, or each run of its grid; `$VARIABLES` and relative paths of data are this shell's."""
    document = read_document([f"config={file}", *context.args])
    _print_notes(document.notes)
    num_runs = len(expand(document, ExperimentSpec))
    if follow and num_runs > 1:
        raise typer.BadParameter(f"the grid describes {num_runs:,} runs, and one can be watched", param_hint="--watch")
    with Client(url) as client:
        experiment = client.submit(
            config=absolute_paths(document.data), name=name, tags=tag or [], notes=notes, priority=priority
        )
        if as_json:
            _print_json(experiment)
        else:
            for run in experiment.runs:
                out.print(f"{run.id}  {escape(run.name)}  queued", soft_wrap=True)
            more = experiment.num_runs - len(experiment.runs)
            if more:
                out.print(f"and {more:,} more in experiment {experiment.id}", soft_wrap=True)
    if follow:
        watch(experiment.runs[0].id, url)


@app.command(context_settings={"allow_extra_args": True})
def validate(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE [key.sub=value …]", help="A config, and overrides.")],
) -> None:
    """Check a config, every run of a grid included, without a server: every problem at once, with its line."""
    document = read_document([f"config={file}", *context.args])
    _print_notes(document.notes)
    out.print(f"valid: {escape(describe(document))}", soft_wrap=True)


@app.command("import-config", context_settings={"allow_extra_args": True})
def import_config_command(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE [key.sub=value …]", help="A config of any shape.")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="A new file; standard output when absent.")
    ] = None,
) -> None:
    """Show what a config of an older shape becomes, and the runs that its grid describes."""
    import_config([f"config={file}", *context.args], output)


@app.command(context_settings={"allow_extra_args": True})
def graph(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE [key.sub=value …]", help="Any config with a graph.")],
    output: Annotated[str | None, typer.Option("--output", "-o", help="SVG file; standard output when absent.")] = None,
) -> None:
    """Draw the graph of a config as SVG."""
    write_graph([f"config={file}", *context.args], output)


@app.command()
def runs(
    url: Url,
    state: Annotated[list[RunState] | None, typer.Option(help="Only this state; may be repeated.")] = None,
    search: Annotated[str | None, typer.Option(help="Only with this in name, id or tag.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many, newest first.")] = 30,
    as_json: AsJson = False,
) -> None:
    """List runs, newest first."""
    with Client(url) as client:
        page = client.runs(state=[s.value for s in state] if state else None, search=search, limit=limit)
    if as_json:
        _print_json(page)
        return
    if not page.items:
        out.print("no runs" + (" match" if state or search else " yet; `n2n submit configs/gssm/debug.yaml` makes one"))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, justify in (("run", "left"), ("name", "left"), ("state", "left"), ("step", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type] # a literal, lost in the tuple
    for column in ("loss", "bound", "excess"):
        table.add_column(column, justify="right")
    for run in page.items:
        p = run.progress
        values = [nats(value) for value in (p.loss, p.bound, p.excess)]
        table.add_row(run.id, escape(run.name), run.state.value, f"{p.step}/{p.total_steps}", *values)
    out.print(table)
    if page.next_cursor:
        out.print(f"the newest {limit}; --limit shows more", style="dim")


@app.command()
def show(run: RunId, url: Url, as_json: AsJson = False) -> None:
    """Show one run: state, progress, result, checkpoints."""
    with Client(url) as client:
        detail = client.run(run)
        checkpoints = [c for c in client.checkpoints(run) if not c.removed]
    if as_json:
        _print_json(detail)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    p = detail.progress
    rows = {
        "run": f"{detail.id}  {detail.name}",
        "state": f"{detail.state}" + (f": {detail.reason}" if detail.reason else ""),
        "attempt": str(detail.attempt),
        "worker": detail.worker or "–",
        "step": f"{p.step:,} of {p.total_steps:,}  ({p.tokens:,} tokens)",
        **{key: f"{nats(getattr(p, key))} nats/token" for key in ("loss", "bound", "excess")},
        "checkpoints": ", ".join(f"{c.step:,}" for c in checkpoints) or "none",
    }
    for key, value in rows.items():
        table.add_row(key, escape(value))
    out.print(table)


@app.command()
def logs(
    run: RunId,
    url: Url,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    stream: Annotated[str | None, typer.Option(help="For example stdout.log or logs/rank0.log.")] = None,
) -> None:
    """Print the end of a run's log."""
    with Client(url) as client:
        patience = Patience()

        def read() -> tuple[schemas.Run, schemas.LogTail]:
            return client.run(run), client.logs(run, stream=stream)  # in this order: what ends with the run is seen

        shown: tuple[int, str, int] | None = None
        detail, tail = read()
        while True:
            skip = 0
            if shown is not None and shown[:2] == (tail.attempt, tail.name):
                skip = max(0, shown[2] - tail.offset)
            sys.stdout.write(tail.text.encode()[skip:].decode(errors="replace"))
            sys.stdout.flush()
            shown = (tail.attempt, tail.name, tail.length)
            if detail.state.terminal or not follow:
                return
            time.sleep(POLL_SECONDS)
            detail, tail = patience(read) or (detail, tail)


@app.command()
def watch(run: RunId, url: Url) -> None:
    """Show a live bar until the run has ended; exit code 1 unless it has succeeded."""
    with Client(url) as client, stop_signals() as stopped:
        final = _follow(client, run, stack=None, stopped=stopped)
        if final is None:
            out.print("the run goes on; `n2n cancel` ends it")
            raise typer.Exit(130)
        _print_result(client.run(run))
    if final.state is not RunState.SUCCEEDED:
        raise typer.Exit(1)


@app.command()
def cancel(run: RunId, url: Url, as_json: AsJson = False) -> None:
    """Ask a run to stop: at once when it is queued, otherwise when its worker has stopped it."""
    with Client(url) as client:
        answer = client.cancel(run)
    if as_json:
        _print_json(answer)
    else:
        out.print(f"{answer.id}  {answer.state}" + ("" if answer.state.terminal else ", cancel requested"))


@app.command()
def workers(url: Url, as_json: AsJson = False) -> None:
    """List the workers, those alive first."""
    with Client(url) as client:
        known = client.workers()
    if as_json:
        out.print_json(json.dumps([worker.model_dump(mode="json") for worker in known]))
        return
    if not known:
        out.print("no worker yet; `n2n up` starts one here")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("worker", "host", "executor", "busy", "state"):
        table.add_column(column)
    for w in known:
        condition = "away" if not w.alive else "draining" if w.draining else "alive"
        table.add_row(escape(w.name), escape(w.host), w.executor, f"{w.busy}/{w.slots}", condition)
    out.print(table)


@app.command()
def version() -> None:
    """Print the version."""
    out.print(__version__)


def _print_notes(notes: Sequence[Note]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _print_json(model: BaseModel) -> None:
    out.print_json(model.model_dump_json())


# -- entry point ---------------------------------------------------------------------------------------------------


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors that users can cause become one message and an exit code."""
    try:
        yield
    except InvalidRequest as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (ApiError, StackError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output has left
        sys.exit(1)


def main() -> None:
    """Run the command line."""

    def call(_arguments: Any) -> int:
        with _plain_errors():
            app()
        return 0

    sys.exit(run_command(call))


if __name__ == "__main__":
    main()
