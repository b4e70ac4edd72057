"""`n2n validate`, `graph`, `import-config` and `templates`: configs, without running them."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from nanollama.api.client import Client
from nanollama.api.errors import NotFound
from nanollama.commands.graph import write_graph
from nanollama.commands.groups import new_app
from nanollama.commands.import_config import describe, import_config
from nanollama.commands.options import OVERRIDES, AsJson, complete_template, served
from nanollama.commands.output import print_json, print_notes, print_table, say
from nanollama.spec.base import SpecError
from nanollama.spec.load import read_document
from nanollama.spec.rundir import EXIT_BAD_INPUT

AnyConfig = Annotated[str, typer.Argument(metavar="FILE [key.sub=value …]", help="A config, and overrides.")]
Output = Annotated[str | None, typer.Option("--output", "-o", help="The file; standard output when absent.")]

app = new_app()


@app.command(context_settings=OVERRIDES)
def validate(context: typer.Context, file: AnyConfig, as_json: AsJson = False) -> None:
    """Check a config, every run of a grid included, without a server: every problem at once, with its line."""
    try:
        document = read_document([f"config={file}", *context.args])
        said = describe(document)
    except SpecError as error:
        if not as_json:
            raise
        print_json({"valid": False, "problems": [problem.model_dump(mode="json") for problem in error.problems]})
        raise typer.Exit(EXIT_BAD_INPUT) from None
    if as_json:
        notes = [note.model_dump(mode="json") for note in document.notes]
        print_json({"valid": True, "problems": [], "description": said, "notes": notes})
        return
    print_notes(document.notes)
    say(f"valid: {said}")


@app.command("import-config", context_settings=OVERRIDES)
def import_config_command(context: typer.Context, file: AnyConfig, output: Output = None) -> None:
    """Show what a config of an older shape becomes, and the runs that its grid describes."""
    import_config([f"config={file}", *context.args], output)


@app.command(context_settings=OVERRIDES)
def graph(context: typer.Context, file: AnyConfig, output: Output = None) -> None:
    """Draw the graph of a config as SVG."""
    write_graph([f"config={file}", *context.args], output)


templates = new_app("templates", "Configs that ship with the project.", lists=True)


@templates.command("list")
@served
def list_templates(client: Client, as_json: AsJson = False) -> None:
    """List them with the question that each asks."""
    found = client.templates()
    if as_json:
        print_json(found)
    else:
        print_table(
            ("template", "question"), ((template.name, template.summary) for template in found), shrink=("question",)
        )


@templates.command("show")
@served
def show_template(
    client: Client,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.", autocompletion=complete_template)],
    as_json: AsJson = False,
) -> None:
    """Print one as YAML, for `n2n templates show debug > mine.yaml`."""
    found = {template.name: template for template in client.templates()}
    if name not in found:
        raise NotFound(f"there is no template '{name}'; there are {', '.join(found)}")
    if as_json:
        print_json(found[name])
    else:
        sys.stdout.write(found[name].yaml)


app.add_typer(templates)
