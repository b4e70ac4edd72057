"""`n2n up`, `demo`, `open`, `worker` and `version`: everything on this machine."""

from __future__ import annotations

import os
import sys
import time
import webbrowser
from typing import Annotated
from urllib.parse import quote

import typer

from nanollama import __version__
from nanollama.api.client import Client
from nanollama.api.status import RunState
from nanollama.commands.extras import need
from nanollama.commands.following import POLL_SECONDS, follow_run, print_result
from nanollama.commands.groups import new_app
from nanollama.commands.options import HOME, AsJson, DatabaseUrl, Home, complete_run, option_error
from nanollama.commands.output import out, print_json, say, say_aside
from nanollama.spec.command import stop_signals
from nanollama.stack import API_PORT, HOST, PAGE_PORT, Stack

ApiPort = Annotated[int, typer.Option("--api-port", min=1, max=65535, help="Port of the API, on loopback.")]
PagePort = Annotated[int, typer.Option("--page-port", min=1, max=65535, help="Port of the page, on loopback.")]

app = new_app()


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
    need("server", "worker", "dashboard")
    stack = Stack(
        home, api_port=api_port, page_port=page_port, slots=slots, database_url=database_url, stop_runs=stop_runs
    )
    with stop_signals() as stopped:
        try:
            stack.start()
            say(f"page  {stack.page_url}")
            say(f"API   {stack.api_url}/docs")
            say(f"home  {stack.home}")
            say("Ctrl-C stops them" + ("." if stop_runs else "; runs under way go on and are taken up again."))
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
    need("train", "server", "worker", "dashboard")
    stack = Stack(home, api_port=api_port, page_port=page_port, stop_runs=True)
    with stop_signals() as stopped:
        try:
            say("starting the API, a worker and the page …")
            stack.start()
            with Client(stack.api_url) as client:
                config = next(t.yaml for t in client.templates() if t.name == "debug")
                run = client.submit(yaml=config, tags=["demo"]).runs[0]
                page = f"{stack.page_url}/run?run={run.id}"
                say(f"run {run.id} is queued; watch it on")
                say(page)
                say("before the first step of a new machine the engine is compiled, which takes 10 to 20 seconds")
                final = follow_run(client, run.id, stopped=stopped, console=out, stack=stack)
                if final is not None:
                    print_result(client.run(run.id), page)
            while not leave and not stopped():
                stack.watch()
                time.sleep(POLL_SECONDS)
        finally:
            stack.stop()
    if stopped():
        raise typer.Exit(0 if final is not None and not leave else 130)
    if final is None or final.state is not RunState.SUCCEEDED:
        raise typer.Exit(1)


@app.command("open")
def open_page(
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="Id of a run; the list of runs when absent.", autocompletion=complete_run),
    ] = None,
    page_url: Annotated[
        str, typer.Option("--page-url", envvar="N2N_PAGE_URL", help="Where the page is served.")
    ] = f"http://{HOST}:{PAGE_PORT}",
    as_json: AsJson = False,
) -> None:
    """Show the page in a browser, and its address."""
    if not page_url.startswith(("http://", "https://")):
        raise option_error("--page-url", f"'{page_url}' is no address of a page", f"write http://{HOST}:{PAGE_PORT}")
    address = page_url.rstrip("/") + (f"/run?run={quote(run, safe='')}" if run else "")
    if as_json:
        print_json({"url": address})
        return
    say(address)
    if not webbrowser.open(address):
        say_aside("there is no browser here; open the address in yours")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def worker(context: typer.Context) -> None:
    """Run a worker in the foreground: `n2n worker --config FILE`; `n2n worker --help` lists its options."""
    need("worker")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "worker", *context.args])  # noqa: S606 - no shell, and signals reach it


@app.command()
def version(as_json: AsJson = False) -> None:
    """Print the version."""
    if as_json:
        print_json({"version": __version__})
    else:
        say(__version__)
