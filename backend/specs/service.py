"""Check a submitted config: every problem at once, with its place in the YAML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nanollama
from backend.columns import clean_data, dump_json
from nanollama.api.schemas import SpecInput, Template, Validation
from nanollama.spec.base import Problem, SpecError, content_hash, parse
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.load import MAX_BYTES, load_yaml, locate

MAX_PROBLEMS = 200

_VARIABLE = re.compile(r"\$(?:\w+|\{\w+\})")


def parse_spec(given: SpecInput) -> ExperimentSpec:
    """The config that was sent.

    Raises:
        SpecError: with every problem; at its line and column when the config came as YAML.
    """
    try:
        if given.yaml is None:
            return _parse(given.config, _size_problems(given.config))
        return _parse_yaml(given.yaml)
    except RecursionError:
        raise SpecError([Problem(path="", message="the config is nested too deeply")]) from None


def validate_spec(given: SpecInput) -> Validation:
    """What the service thinks of a config; nothing is stored."""
    try:
        spec = parse_spec(given)
    except SpecError as error:
        return Validation(valid=False, problems=list(error.problems))
    return Validation(valid=True, config=spec.model_dump(mode="json"), config_hash=content_hash(spec))


def templates(folders: Sequence[Path] | None = None) -> list[Template]:
    """The training configs that ship with the project, by name; other files in the folder are passed over."""
    found: dict[str, Template] = {}
    for folder in template_folders() if folders is None else folders:
        for path in sorted(folder.glob("*.yaml")):
            text = path.read_text(encoding="utf-8")
            try:
                parse(ExperimentSpec, load_yaml(text))
            except SpecError:
                continue
            found.setdefault(path.stem, Template(name=path.stem, summary=_summary(text), yaml=text))
    return sorted(found.values(), key=lambda template: template.name)


def template_folders() -> list[Path]:
    """Where the configs lie: in the installed package, or in the checkout."""
    package = Path(nanollama.__file__).parent
    places = (package / "configs" / "gssm", package.parent / "configs" / "gssm")
    return [place for place in places if place.is_dir()][:1]


def _summary(text: str) -> str:
    comments = (line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("#"))
    return next(filter(None, comments), "")


def _parse_yaml(text: str) -> ExperimentSpec:
    try:
        return _parse(load_yaml(text), [])
    except SpecError as error:
        raise SpecError(locate(text, error.problems)) from None


def _parse(data: Any, problems: list[Problem]) -> ExperimentSpec:
    data = clean_data(data)  # what is wrong is shown, so it has to be text that can be sent
    problems = problems + _variable_problems(data)
    try:
        spec = parse(ExperimentSpec, data)
    except SpecError as error:
        raise SpecError(_readable([*error.problems, *problems])) from None
    if problems:
        raise SpecError(_readable(problems))
    return spec


def _readable(problems: list[Problem]) -> list[Problem]:
    """As many problems as somebody would read; finding the lines of a hundred thousand takes minutes."""
    more = len(problems) - MAX_PROBLEMS
    if more <= 0:
        return problems
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
