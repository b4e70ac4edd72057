"""`n2n export` and `import`: runs and experiments as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nanollama.api.client import Client
from nanollama.commands.groups import new_app
from nanollama.commands.options import AsJson, complete_run, option_error, served
from nanollama.commands.output import print_json, save, say, say_aside, size

app = new_app()


@app.command("export")
@served
def export_archive(
    client: Client,
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Id of a run.", autocompletion=complete_run)] = None,
    experiment: Annotated[
        str | None, typer.Option("--experiment", help="An experiment with all its runs instead.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="The file, `-` for standard output; ID.tar.gz when absent.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run or an experiment as one archive: every byte of metrics and logs, but no checkpoints."""
    if run is not None and experiment is None:
        identifier, pieces = run, client.export_run(run)
    elif experiment is not None and run is None:
        identifier, pieces = experiment, client.export_experiment(experiment)
    else:
        raise option_error("RUN", "one archive holds one run or one experiment", "give a run or --experiment")
    path = None if output == "-" else Path(output or f"{identifier.replace('/', '_')}.tar.gz")
    written = save(pieces, path)
    if as_json and path is not None:
        print_json({"file": str(path), "bytes": written})
    elif path is not None:
        say_aside(f"{path}: {size(written)}")


@app.command("import")
@served
def import_archive(
    client: Client,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `n2n export` wrote.")],
    as_json: AsJson = False,
) -> None:
    """Add what an archive holds to the service: all of it, or nothing; what is there already is passed over."""
    try:
        with open(file, "rb") as archive:
            added = client.import_archive(archive)
    except OSError as error:
        raise option_error("FILE", f"cannot read {file}: {error.strerror}", "name what `n2n export` wrote") from None
    if as_json:
        print_json(added)
        return
    for kind, ids in (("experiment", added.experiments), ("run", added.runs)):
        for each in ids:
            say(f"{kind} {each} is new")
    say(f"{len(added.skipped):,} were there already" if added.skipped else "nothing of it was there before")
