"""What many commands have in common: their options, and the connection to the service."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from nanollama.api.client import Client
from nanollama.api.errors import ApiError
from nanollama.spec.base import Problem, SpecError

P = ParamSpec("P")

HOME = Path(".n2n")
COMPLETION_SECONDS = 2.0  # that somebody who has pressed the tabulator may wait


def complete_run(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Ids of the newest runs that begin so; nothing when the service does not answer."""
    try:
        url = context.params.get("url")
        with Client(url, token=read_token(None), timeout=COMPLETION_SECONDS, retries=0) as client:
            runs = client.runs(limit=100).items
    except (ApiError, SpecError):
        return []
    return [(run.id, run.name) for run in runs if run.id.startswith(incomplete)]


def complete_template(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Names of templates that begin so."""
    try:
        url = context.params.get("url")
        with Client(url, token=read_token(None), timeout=COMPLETION_SECONDS, retries=0) as client:
            templates = client.templates()
    except (ApiError, SpecError):
        return []
    return [(template.name, template.summary) for template in templates if template.name.startswith(incomplete)]


Url = Annotated[
    str | None, typer.Option("--url", envvar="N2N_URL", help="The service; http://127.0.0.1:8420 when absent.")
]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", envvar="N2N_TOKEN_FILE", help="File that holds the access token; else $N2N_TOKEN."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
RunId = Annotated[
    str,
    typer.Argument(metavar="RUN", help="Id of a run, as `n2n runs` shows it.", autocompletion=complete_run),
]
RunIds = Annotated[
    list[str] | None,
    typer.Argument(metavar="RUN", help="Ids of runs, as `n2n runs` shows them.", autocompletion=complete_run),
]
ExperimentId = Annotated[
    str, typer.Argument(metavar="EXPERIMENT", help="Id of an experiment, as `n2n experiments` shows it.")
]
Filter = Annotated[
    str | None,
    typer.Option("--filter", help="Runs of this kind, in the filter language: 'state:failed optim.lr>1e-3 tag:a'."),
]
OfExperiment = Annotated[str | None, typer.Option("--experiment", help="Runs of this experiment, by its id.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Home = Annotated[Path, typer.Option("--home", envvar="N2N_HOME", help="Where database, runs and logs are kept.")]
DatabaseUrl = Annotated[
    str | None,
    typer.Option("--database-url", envvar="N2N_DATABASE_URL", help="SQLite under the home when absent."),
]

OVERRIDES = {"allow_extra_args": True}
"""Context settings of a command that takes `key.sub=value` after its arguments: `overrides` reads them."""


def served(function: Callable[Concatenate[Client, P], None]) -> Callable[..., None]:
    """A command that is given a client: it has the options --url and --token-file besides its own."""
    signature = inspect.signature(function, eval_str=True)
    _client, *parameters = signature.parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    options = [inspect.Parameter(p.name, keyword, default=p.default, annotation=p.annotation) for p in parameters]
    for name, annotation in (("url", Url), ("token_file", TokenFile)):
        options.append(inspect.Parameter(name, keyword, default=None, annotation=annotation))

    @functools.wraps(function)
    def command(*, url: str | None, token_file: Path | None, **given: Any) -> None:
        with Client(url, token=read_token(token_file)) as client:
            function(client, **given)  # type: ignore[call-arg] # what typer passes is what the signature names

    command.__signature__ = signature.replace(parameters=options)  # type: ignore[attr-defined]
    command.__annotations__ = {option.name: option.annotation for option in options} | {"return": None}
    return command


def read_token(path: Path | None) -> str | None:
    """The token that a file holds; None without a file, where $N2N_TOKEN counts.

    Raises:
        SpecError: a file that cannot be read, or without one token.
    """
    if path is None:
        return None
    try:
        words = path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is not text"
        raise option_error("--token-file", f"cannot read {path}: {said}", "write the token into it") from None
    if len(words) != 1:
        said = "is empty" if not words else "holds more than one word"
        raise option_error("--token-file", f"{path} {said}", "write the token into it, and nothing else")
    return words[0]


def option_error(option: str, message: str, remedy: str) -> SpecError:
    """What is wrong with an option: ends with exit code 2."""
    return SpecError([Problem(path=option, message=message, remedy=remedy)])


def words(given: list[str] | None) -> list[str]:
    """The values of an option that may be repeated, and may hold several with commas between."""
    return [word for text in given or [] for word in re.split(r"[,\s]+", text) if word]


def ask(question: str, *, yes: bool) -> None:
    """Go on if the answer is yes; otherwise end with exit code 1.

    Raises:
        SpecError: there is nobody to ask.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise option_error("--yes", f"{question} There is no terminal to answer at", "give --yes")
    if not typer.confirm(question, err=True):
        print("nothing was changed", file=sys.stderr)
        raise typer.Exit(1)
