"""Read a submitted config and its grid: every problem at once, with its place in the YAML."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from backend.catalogue.models import TrueModel
from backend.columns import clean_data, dump_json
from nanollama.api import schemas
from nanollama.api.errors import InvalidRequest
from nanollama.spec.base import Note, Problem, SpecError, hash_data, parse
from nanollama.spec.experiment import APPS, ExperimentSpec
from nanollama.spec.grid import Variant, expand, read_grid
from nanollama.spec.identity import essence
from nanollama.spec.load import Document
from nanollama.spec.translation import translate
from nanollama.spec.yaml_text import MAX_BYTES, load_yaml

MAX_PROBLEMS = 200

_VARIABLE = re.compile(r"\$(?!GRIDID\b|\{GRIDID\})(?:\w+|\{\w+\})")


@dataclass(frozen=True)
class Variation:
    """One run of a submission: its name and what its grid sets, and its full resolved config with both hashes."""

    name: str
    params: dict[str, Any]
    app: str
    steps: int
    config: dict[str, Any]
    config_hash: str
    training_hash: str

    @cached_property
    def model(self) -> TrueModel | None:
        """What its sequences are sampled from; None where they come from a file."""
        return TrueModel.of(self.name, self.config["data"])

    @property
    def path(self) -> str | None:
        """The file that its sequences come from."""
        path: str | None = self.config["data"].get("path")
        return path


@dataclass(frozen=True)
class Sweep:
    """What a submission describes: several runs where it has a grid, otherwise one called as its config says."""

    name: str
    runs: list[Variation]
    notes: tuple[Note, ...]


def read_sweep(given: schemas.SpecInput) -> Sweep:
    """The runs of a config, each of them checked.

    Raises:
        SpecError: with every problem; at its line and column when the config came as YAML.
    """
    with _readable_depth():
        return _sweep(*_read(given))


def read_document(given: schemas.SpecInput) -> Document:
    """A config of any kind in today's shape, not yet validated.

    Raises:
        SpecError: text that is no config, or one that holds variables.
    """
    with _readable_depth():
        data, text, problems = _read(given)
        as_written = Document(data, text, (), {}, frozenset())
        if not isinstance(data, dict):
            parse(ExperimentSpec, data)  # says what it found instead
        if problems:
            raise SpecError(readable(as_written.locate(problems)))
        try:
            translation = translate(data)
        except SpecError as error:
            raise SpecError(readable(as_written.locate(error.problems))) from None
        return Document(translation.data, text, translation.notes, translation.origins, frozenset())


@contextmanager
def _readable_depth() -> Iterator[None]:
    try:
        yield
    except RecursionError:
        raise SpecError([Problem(path="", message="the config is nested too deeply")]) from None


def _read(given: schemas.SpecInput) -> tuple[Any, str, list[Problem]]:
    """A config as plain data, its text, and what is wrong with it whatever it describes."""
    text = "" if given.yaml is None else given.yaml
    data = clean_data(load_yaml(text) if given.yaml is not None else given.config)
    problems = _size_problems(data) if given.yaml is None else []
    return data, text, problems + _variable_problems(data)


def validate_spec(
    given: schemas.SpecInput, estimate: Callable[[Sweep], schemas.Estimate | None] = lambda _: None
) -> schemas.Validation:
    """What the service thinks of a config, and what its runs would cost by `estimate`; nothing is stored."""
    try:
        sweep = read_sweep(given)
    except SpecError as error:
        return schemas.Validation(valid=False, problems=list(error.problems))
    first, last = sweep.runs[0], sweep.runs[-1]
    return schemas.Validation(
        valid=True,
        config=first.config,
        config_hash=first.config_hash,
        num_runs=len(sweep.runs),
        first_run=first.name,
        last_run=last.name,
        names=[run.name for run in sweep.runs[: schemas.SHOWN_NAMES]],
        varied=[key for key, value in first.params.items() if any(run.params[key] != value for run in sweep.runs)],
        estimate=estimate(sweep),
        notes=list(sweep.notes),
    )


def _sweep(data: Any, text: str, problems: list[Problem]) -> Sweep:
    """The runs of a document; `problems` are those that have been found in it already, at its own paths."""
    if not isinstance(data, dict):
        parse(ExperimentSpec, data)  # says what it found instead
    as_written = Document(data, text, (), {}, frozenset())
    try:
        translation = translate(data)
        document = Document(translation.data, text, translation.notes, translation.origins, frozenset())
        grid = read_grid(document, ExperimentSpec)
    except SpecError as error:
        raise SpecError(readable(as_written.locate([*error.problems, *problems]))) from None
    if problems and "grid" in document.data:
        raise SpecError(readable(as_written.locate(problems)))
    found: Sequence[Problem] = ()
    try:
        runs = [_variation(variant, swept=bool(grid.axes)) for variant in grid.variants()]
    except SpecError as error:
        if grid.axes:
            expand(document, ExperimentSpec)  # every problem of every run, each once
        found = error.problems
    if found or problems:
        all_problems = readable([*found, *problems])
        raise SpecError([*document.locate(all_problems[: len(found)]), *as_written.locate(all_problems[len(found) :])])
    named = document.data.get("orchestration", {}).get("name", "run") if grid.axes else runs[0].name
    return Sweep(name=str(named)[:200], runs=runs, notes=document.notes)


def _variation(variant: Variant[ExperimentSpec], *, swept: bool) -> Variation:
    spec = parse(ExperimentSpec, variant.data)
    config = spec.model_dump(mode="json")
    return Variation(
        name=variant.name if swept else spec.orchestration.name,
        params=dict(variant.values),
        app=spec.app,
        steps=spec.optim.steps,
        config=config,
        config_hash=hash_data(config),
        training_hash=hash_data(essence(config)),
    )


def stored_problems(app: str, config: Mapping[str, Any]) -> Sequence[Problem]:
    """Why a stored config, perhaps of another version, does not load in this one; nothing when it does."""
    if app not in APPS:
        return [Problem(path="app", message=f"this version has no application '{app}'")]
    try:
        parse(APPS[app].spec, config)
    except SpecError as error:
        return readable(error.problems)
    return []


def refusal(error: SpecError) -> InvalidRequest:
    """A config with problems, as the API's error."""
    count = len(error.problems)
    return InvalidRequest(f"the config has {count:,} problem{'s' if count > 1 else ''}", readable(error.problems))


def readable(problems: Sequence[Problem]) -> list[Problem]:
    """As many problems as somebody would read; finding the lines of a hundred thousand takes minutes."""
    more = len(problems) - MAX_PROBLEMS
    if more <= 1:  # a line that says so would take the place of the one; and what has been cut stays as it is
        return list(problems)
    last = Problem(path="", message=f"{more} more problems are not listed", remedy="mend these first")
    return [*problems[:MAX_PROBLEMS], last]


def _size_problems(config: Any) -> list[Problem]:
    size = len(dump_json(config).encode())
    if size <= MAX_BYTES:
        return []
    message = f"the config has {size:,} bytes; the limit is {MAX_BYTES:,}"
    return [Problem(path="", message=message, remedy="a config describes a run; keep data in files")]


def _variable_problems(data: Any) -> list[Problem]:
    """Variables are the submitting side's: the service must not put its own environment into a config."""
    return [
        Problem(
            path=path,
            message=f"holds the variable {match.group()}, which means nothing on the server",
            remedy="write the value, or submit with `n2n submit`, which fills variables in from your environment",
        )
        for path, text in _strings(data)
        if (match := _VARIABLE.search(text))
    ]


def _strings(data: Any) -> Iterator[tuple[str, str]]:
    stack: list[tuple[str, Any]] = [("", data)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, str):
            yield path, value
        elif isinstance(value, dict):
            stack += [(f"{path}.{key}".lstrip("."), item) for key, item in reversed(value.items())]
        elif isinstance(value, list):
            stack += [(f"{path}.{i}".lstrip("."), value[i]) for i in reversed(range(len(value)))]
