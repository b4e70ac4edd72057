"""The commands of `n2n`. A module is loaded when one of its commands is called: --help and completion stay quick."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

HELP: Final = """Train learners on worlds with a known entropy, and look after their runs.

Exit codes: 0 success; 1 the service, the run or one of the runs failed, or the answer was no; 2 bad input, nothing was
changed; 130 interrupted. A worker and commands of the database end with the code of their program.

The service is that of --url or $N2N_URL, with the access token of --token-file, $N2N_TOKEN_FILE or $N2N_TOKEN. --json
prints JSON for programs.
"""

SECTIONS: Final[dict[str, dict[str, tuple[str, str]]]] = {
    "On this machine": {
        "up": ("local", "Start the API, one local worker and the page, and keep them up until Ctrl-C."),
        "demo": ("local", "Start everything, train the debug config and show its loss beside the bound."),
        "open": ("local", "Show the page in a browser, and its address."),
        "doctor": ("doctor", "Look at this machine, the database and the service; exit code 1 when something is bad."),
        "version": ("local", "Print the version."),
    },
    "Configs": {
        "templates": ("configs", "Configs that ship with the project."),
        "validate": ("configs", "Check a config, every run of a grid included, without a server."),
        "graph": ("configs", "Draw the graph of a config as SVG."),
        "import-config": ("configs", "Show what a config of an older shape becomes."),
        "slurm": ("slurm", "Jobs of Slurm."),
    },
    "Runs": {
        "submit": ("submitting", "Queue a training config, or each run of its grid."),
        "clone": ("submitting", "Run a run's config again."),
        "runs": ("runs", "List runs, newest first."),
        "show": ("runs", "Show one run: state, progress, result, checkpoints."),
        "watch": ("following", "Show a live bar until a run, or all runs of an experiment, have ended."),
        "logs": ("runs", "Print the end of a run's log."),
        "cancel": ("runs", "Ask runs to stop."),
        "retry": ("runs", "Queue runs again that have failed or were cancelled."),
        "tag": ("runs", "Add tags to runs, or take some away."),
        "archive": ("runs", "Leave runs out of lists."),
    },
    "Results": {
        "pull": ("pulling", "Fetch curves of runs as CSV or Parquet."),
        "checkpoints": ("checkpoints", "What a run has saved."),
        "export": ("archives", "Write a run or an experiment as one archive."),
        "import": ("archives", "Add what an archive holds to the service."),
    },
    "The service": {
        "experiments": ("experiments", "What was submitted together: a config, or all runs of its grid."),
        "queue": ("queue", "Jobs that wait, and why."),
        "workers": ("workers", "Who executes runs."),
        "worker": ("local", "Run a worker in the foreground."),
        "gssms": ("catalogue", "True models, and the entropy of their sequences."),
        "datasets": ("catalogue", "Files of sequences."),
        "token": ("token", "Access tokens, for a service that asks for them (`--tokens`)."),
        "db": ("database", "The service's database."),
    },
}
"""By section and name of a command: the module that has it, and its line in the list."""

MODULES: Final = {name: module for commands in SECTIONS.values() for name, (module, _) in commands.items()}


class Commands(TyperGroup):
    """The commands by section; each is loaded when it is asked for, and for a list only its line is shown."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        lines = {name: line for commands in SECTIONS.values() for name, (_, line) in commands.items()}
        self.commands = {name: TyperCommand(name, help=line) for name, line in lines.items()}
        self._listing = False

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - the base class names it
        """The command with its options; None when there is none of this name."""
        known = self.commands.get(cmd_name)
        return known if known is None or self._listing else load(cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - as above
        """Write the commands, by section."""
        for section, commands in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(name, line) for name, (_, line) in commands.items()])

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Names that begin so, and their lines."""
        self._listing = True
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self._listing = False


def load(name: str) -> Any:
    """A command, or a group, by its name."""
    app = import_module(f"nanollama.commands.{MODULES[name]}").app
    group = get_group(app)
    return group if app.info.name == name else group.commands[name]


app = typer.Typer(
    cls=Commands,
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help, which loads in half the time
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None:
    """Makes a group of an app that has no commands of its own."""


def command() -> Any:
    """`n2n` as one command."""
    return get_command(app)
