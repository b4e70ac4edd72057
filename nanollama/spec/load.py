"""Read a config: YAML with line numbers in its errors, `key.sub=value` overrides, $VARIABLES and older shapes."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from nanollama.spec.base import Note, Problem, SpecError, parse
from nanollama.spec.translation import origin, translate
from nanollama.spec.yaml_text import MAX_BYTES, load_yaml, locate

GRID_ID = "grid_id"
"""Key whose number stands for $GRIDID in every string of a config."""

SpecT = TypeVar("SpecT", bound=BaseModel)


_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
_GRIDID = re.compile(r"\$(?:(GRIDID)\b|\{(GRIDID)\})")


def expand_variables(data: Any, environment: Mapping[str, str], *, keep: Collection[str] = ()) -> Any:
    """Replace `$NAME` and `${NAME}` in every string of the data, but for the names to keep.

    Raises:
        SpecError: a variable that is not set, at its path.
    """
    return _expand(data, environment, _VARIABLE, keep)


def _expand(data: Any, environment: Mapping[str, str], pattern: re.Pattern[str], keep: Collection[str]) -> Any:
    problems: list[Problem] = []

    def walk(value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, dict):
            return {key: walk(item, (*path, str(key))) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item, (*path, str(i))) for i, item in enumerate(value)]
        if not isinstance(value, str) or "$" not in value:
            return value

        def replace(match: re.Match[str]) -> str:
            name = match.group(1) or match.group(2)
            if name in keep:
                return match.group()
            if name not in environment:
                message = f"the variable ${name} is not set"
                problems.append(Problem(path=".".join(path), message=message, remedy=f"export {name}=..."))
            return environment.get(name, "")

        return pattern.sub(replace, value)

    expanded = walk(data, ())
    if problems:
        raise SpecError(problems)
    return expanded


def apply_override(data: dict[str, Any], argument: str) -> None:
    """Set `key.sub=value` in `data`; the value is YAML, a number in the path is the index of a list.

    Raises:
        SpecError: an argument without `=`, or a path through something that has no keys.
    """
    key, equals, value = argument.partition("=")
    if not equals or not key:
        is_file = argument.endswith((".yaml", ".yml"))
        remedy = f"write config={argument}" if is_file else "write key.sub=value, for example optim.steps=100"
        raise SpecError([Problem(path="", message=f"cannot read the argument '{argument}'", remedy=remedy)])
    set_value(data, key, _load_value(key, value))


def set_value(data: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at a dotted path; sections that are missing are made, a number is the index of a list.

    Raises:
        SpecError: a path through something that has no keys.
    """
    parts = key.split(".")
    target: Any = data
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        slot: Any = part
        if isinstance(target, list):
            if not part.isdigit() or int(part) >= len(target):
                message = f"'{part}' is not an index into a list of {len(target)}"
                raise SpecError([Problem(path=key, message=message, remedy=f"use 0 to {len(target) - 1}")])
            slot = int(part)
        elif not isinstance(target, dict):
            path = ".".join(parts[:i])
            raise SpecError([Problem(path=key, message=f"{path} is a plain value and has no key '{part}'")])
        if last:
            target[slot] = value
        elif isinstance(target, dict):
            target = target.setdefault(slot, {})
            if target is None:
                message = f"{'.'.join(parts[: i + 1])} is empty in the file"
                raise SpecError([Problem(path=key, message=message, remedy="remove the empty key from the file")])
        else:
            target = target[slot]


def _load_value(key: str, text: str) -> Any:
    try:
        return load_yaml(text)
    except SpecError as error:
        raise SpecError(Problem(path=key, message=p.message, remedy=p.remedy) for p in error.problems) from None


def read_config_file(path: str | Path) -> str:
    """The text of a config file.

    Raises:
        SpecError: a file that is missing, unreadable, too large or not text.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        remedy = "check the path" if isinstance(error, FileNotFoundError) else None
        problem = Problem(path="config", message=f"cannot read {path}: {error.strerror}", remedy=remedy)
        raise SpecError([problem]) from None
    if len(raw) > MAX_BYTES:
        message = f"{path} has more than {MAX_BYTES:,} bytes"
        raise SpecError(
            [Problem(path="config", message=message, remedy="a config describes a run; keep data in files")]
        )
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        message = f"{path} is not UTF-8 text: {error.reason} at byte {error.start}"
        raise SpecError([Problem(path="config", message=message)]) from None


@dataclass(frozen=True)
class Document:
    """A config in today's shape, not yet validated, and what is needed to speak of it in the user's words.

    Attributes:
        data: the config; `grid` and `grid_id` are still in it, and $GRIDID in its strings.
        text: the file, '' without one.
        notes: what was found idle or was moved.
        origins: from dotted paths of today to those of the file, for what has moved, subtrees included.
        overrides: dotted paths of the file that were set on the command line.
    """

    data: dict[str, Any]
    text: str
    notes: tuple[Note, ...]
    origins: Mapping[str, str]
    overrides: frozenset[str]

    def locate(self, problems: Sequence[Problem]) -> list[Problem]:
        """The problems at the keys, lines and columns of the file; those of overrides at today's keys."""
        moved = [p.model_copy(update={"path": origin(p.path, self.origins)}) for p in problems]
        pairs = zip(problems, moved, locate(self.text, moved), strict=True)
        return [bare if self._is_override(own.path) else placed for bare, own, placed in pairs]

    def parse(self, model: type[SpecT]) -> SpecT:
        """The spec of a config that is no grid.

        Raises:
            SpecError: with every problem, at its line in the file where it has one.
        """
        data = dict(self.data)
        grid = data.pop("grid", None)
        try:
            if grid is not None:
                first = next(iter(grid), "") if isinstance(grid, dict) else ""
                message = "this file describes several runs, and one is wanted here"
                remedy = "start all with `python -m nanollama.launcher script=…`, or set grid={} to leave the grid out"
                raise SpecError([Problem(path=f"grid.{first}".rstrip("."), message=message, remedy=remedy)])
            return parse(model, fill_grid_id(data, data.pop(GRID_ID, None)))
        except SpecError as error:
            raise SpecError(self.locate(error.problems)) from None

    def _is_override(self, path: str) -> bool:
        parts = path.split(".")
        return any(".".join(parts[:n]) in self.overrides for n in range(1, len(parts) + 1))


@dataclass(frozen=True)
class Loaded(Generic[SpecT]):
    """A spec, and what its author should know about the file that it comes from."""

    spec: SpecT
    notes: tuple[Note, ...]


def read_document(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None, *, keep_variables: bool = False
) -> Document:
    """The config of `config=FILE key.sub=value …`, in today's shape.

    Args:
        arguments: the file and overrides.
        environment: what $VARIABLES stand for; that of this process when absent.
        keep_variables: whether variables are left as they are written.

    Raises:
        SpecError: as load_yaml, apply_override, expand_variables and translate.
    """
    overrides = [a for a in arguments if not a.startswith("config=")]
    files = [a.partition("=")[2] for a in arguments if a.startswith("config=")]
    if len(files) > 1:
        raise SpecError([Problem(path="config", message="given more than once", remedy="name one file")])
    text = read_config_file(files[0]) if files else ""
    data = load_yaml(text) if files else {}
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise SpecError(
            [Problem(path="", message=f"expected a mapping of keys to values, found a {type(data).__name__}")]
        )
    overrides = [_override_in(data, argument) for argument in overrides]
    for argument in overrides:
        apply_override(data, argument)
    keys = frozenset(argument.partition("=")[0] for argument in overrides)
    try:
        if not keep_variables:
            data = expand_variables(data, os.environ if environment is None else environment, keep=("GRIDID",))
        translation = translate(data)
    except SpecError as error:
        raise SpecError(Document(data, text, (), {}, keys).locate(error.problems)) from None
    return Document(translation.data, text, translation.notes, translation.origins, keys)


def _override_in(data: Mapping[str, Any], argument: str) -> str:
    """The argument with its key as the file would have it: what is no launcher's is under `run_config` in some."""
    nested = isinstance(data.get("run_config"), dict) and "=" in argument
    if not nested or argument.startswith(("launcher.", "run_config.", "=")):
        return argument
    if argument.startswith(("grid.", "grid=")):
        return f"launcher.{argument}"
    return f"run_config.{argument}"


def fill_grid_id(data: dict[str, Any], grid_id: Any) -> dict[str, Any]:
    """Put the number in the place of $GRIDID in every string.

    Raises:
        SpecError: a grid id that is no number, or a string that needs one where none is given.
    """
    if grid_id is not None and (not isinstance(grid_id, int) or isinstance(grid_id, bool) or grid_id < 0):
        message = f"should be a number from 0 on, found {grid_id!r}"
        raise SpecError([Problem(path=GRID_ID, message=message, remedy="it stands for $GRIDID in paths")])
    try:
        return _expand(data, {} if grid_id is None else {"GRIDID": str(grid_id)}, _GRIDID, ())  # type: ignore[no-any-return]
    except SpecError as error:
        remedy = f"add `{GRID_ID}: 0`, or sweep {GRID_ID} in the grid"
        raise SpecError(
            Problem(path=p.path, message=f"$GRIDID stands for {GRID_ID}, which is not given", remedy=remedy)
            for p in error.problems
        ) from None


def read_config(model: type[SpecT], arguments: Sequence[str]) -> Loaded[SpecT]:
    """A validated config from command-line arguments `config=FILE key.sub=value …`, with the notes on its file.

    Raises:
        SpecError: with every problem, at its line in the file where it has one.
    """
    document = read_document(arguments)
    return Loaded(document.parse(model), document.notes)


def load_config(model: type[SpecT], arguments: Sequence[str]) -> SpecT:
    """As read_config, for those who have nobody to show notes to."""
    return read_config(model, arguments).spec
