"""`n2n watch`, and what follows a run or an experiment elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from nanollama.api import schemas
from nanollama.api.client import Client
from nanollama.api.errors import Unavailable
from nanollama.api.status import RunState
from nanollama.commands.groups import new_app
from nanollama.commands.options import AsJson, complete_run, option_error, served
from nanollama.commands.output import err, out, print_fields, print_json, say, say_aside
from nanollama.commands.progress import LiveBar, counted, nats, num_ended
from nanollama.spec.command import stop_signals
from nanollama.stack import Stack

POLL_SECONDS = 0.5
EXPERIMENT_POLL_SECONDS = 1.0
T = TypeVar("T")

app = new_app()


@app.command()
@served
def watch(
    client: Client,
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Id of a run.", autocompletion=complete_run)] = None,
    experiment: Annotated[str | None, typer.Option("--experiment", help="All runs of this experiment instead.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a live bar until a run, or all runs of an experiment, have ended.

    Exit code 0: all have succeeded. 1: one has failed or was cancelled. 130: interrupted; the runs go on.
    """
    if (run is None) == (experiment is None):
        raise option_error("RUN", "there is nothing to watch", "give either a run or --experiment")
    if run is not None:
        watch_run(client, run, as_json=as_json)
    elif experiment is not None:
        watch_experiment(client, experiment, as_json=as_json)


def watch_run(client: Client, run_id: str, *, as_json: bool) -> None:
    """Follow a run to its end and print its result. Raises Exit with 1 unless it has succeeded, 130 when stopped."""
    with stop_signals() as stopped:
        final = follow_run(client, run_id, stopped=stopped, console=err if as_json else out)
    if final is None:
        say_aside("the run goes on; `n2n cancel` ends it")
        raise typer.Exit(130)
    detail = client.run(run_id)
    if as_json:
        print_json(detail)
    else:
        print_result(detail)
    if final.state is not RunState.SUCCEEDED:
        raise typer.Exit(1)


def watch_experiment(client: Client, experiment_id: str, *, as_json: bool) -> None:
    """Follow an experiment until all its runs have ended. Raises Exit with 1 unless all have succeeded, 130."""
    patience = Patience()
    with stop_signals() as stopped, LiveBar(err if as_json else out, "runs") as bar:
        experiment: schemas.Experiment = client.experiment(experiment_id)
        while not stopped():
            bar.show_experiment(experiment)
            if num_ended(experiment) == experiment.num_runs:
                break
            time.sleep(EXPERIMENT_POLL_SECONDS)
            experiment = patience(lambda: client.experiment(experiment_id)) or experiment
        ended = num_ended(experiment) == experiment.num_runs
    if not ended:
        say_aside(f"the runs go on; `n2n cancel --experiment {experiment_id}` ends them")
        raise typer.Exit(130)
    succeeded = experiment.counts.get(RunState.SUCCEEDED, 0)
    if as_json:
        print_json(client.experiment(experiment_id))
    elif succeeded < experiment.num_runs:
        say(
            f"{counted(experiment)}; `n2n runs --experiment {experiment_id} --filter state:failed,cancelled` lists them"
        )
    if succeeded < experiment.num_runs:
        raise typer.Exit(1)


def follow_run(
    client: Client, run_id: str, *, stopped: Callable[[], bool], console: Console, stack: Stack | None = None
) -> schemas.Run | None:
    """Show a live bar until the run ends; None when a stop signal came first. A stack is looked after meanwhile."""
    patience = Patience()
    with LiveBar(console, "step") as bar:
        run: schemas.Run = client.run(run_id)
        while not stopped():
            bar.show_run(run)
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
                say_aside(f"{error}; waiting for it")
            self._away = True
            return None
        self._away = False
        return answer


def print_result(run: schemas.RunDetail, page: str | None = None) -> None:
    """Print how a run has ended and what it has learnt."""
    result = run.result or {}
    fields: dict[str, object] = {"state": described_state(run)}
    for key in ("loss", "bound", "excess"):
        if result.get(key) is not None:
            stderr = result.get(f"{key}_stderr")
            error = f" ± {stderr:.4f}" if stderr is not None else ""
            fields[key] = f"{nats(result[key])}{error} nats/token"
    if page is not None:
        fields["page"] = page
    print_fields(fields)


def described_state(run: schemas.Run) -> str:
    """The state of a run, with the reason and what was asked of it."""
    asked = ", cancel requested" if run.cancel_requested and not run.state.terminal else ""
    return run.state.value + asked + (f": {run.reason}" if run.reason else "")
