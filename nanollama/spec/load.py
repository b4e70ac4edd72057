"""Read a config: YAML with line numbers in its errors, `key.sub=value` overrides, $VARIABLES and older shapes."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import BaseModel
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.representer import SafeRepresenter
from yaml.resolver import Resolver

from nanollama.spec.base import Note, Problem, SpecError, parse
from nanollama.spec.translation import origin, translate

MAX_BYTES = 1 << 20
"""Largest config text, in bytes."""

GRID_ID = "grid_id"
"""Key whose number stands for $GRIDID in every string of a config."""

SpecT = TypeVar("SpecT", bound=BaseModel)


class _Rules(Composer, SafeConstructor, Resolver):
    """Safe YAML with the floats and booleans of YAML 1.2: `1e-3` is a number, `no` is a string.

    Aliases, which can make a small text enormous, and duplicate keys are refused. Nodes are composed here, whoever
    reads the text: a nesting that is too deep is then an error, and not the end of the process.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):  # type: ignore[attr-defined] # of the parser beside it
            mark = self.peek_event().start_mark  # type: ignore[attr-defined]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed; write the value out", mark)
        return super().compose_node(parent, index)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (LookupError, ValueError):  # a tag on something else: `!!int word`
            message = f"this is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, message, node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key_node.start_mark)
            if key in seen:
                mark = key_node.start_mark
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' appears twice", mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_REPLACED = ("tag:yaml.org,2002:float", "tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")
_Rules.yaml_constructors = {  # only what JSON has too
    tag: construct
    for tag, construct in SafeConstructor.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] not in ("timestamp", "binary", "set", "omap", "pairs")
}
_Rules.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_FLOAT = re.compile(
    r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\.\d[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.(?:inf|nan))$"
)
_Rules.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Rules.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


class PythonLoader(_Rules, yaml.SafeLoader):
    """Where PyYAML was built without libyaml."""


_Fast: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class LibyamlLoader(_Rules, _Fast):  # type: ignore[misc] # whichever there is
    """Several times as fast: a sweep that lists its values may have hundreds of kilobytes."""

    def __init__(self, stream: str) -> None:
        _Fast.__init__(self, stream)
        Composer.__init__(self)


_Loader = LibyamlLoader if yaml.__with_libyaml__ else PythonLoader


class _Writing(SafeRepresenter, Resolver):
    """Quotes the strings that loaders would take for something else, and never writes an alias, which they refuse."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the base class names it
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # line ends that only Unicode knows are written as they are in other styles, and read back as blanks
        style = '"' if any(c in data for c in "\x85\u2028\u2029\ufeff") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Writing.add_representer(str, _Writing.represent_str)
_Writing.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


class _Dumper(_Writing, getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc] # chosen when it runs
    """Writes what load_yaml reads."""


def load_yaml(text: str | bytes) -> Any:
    """Parse YAML text into plain data.

    Raises:
        SpecError: text that is too long, not UTF-8 or not YAML, at its line and column.
    """
    size = len(text.encode() if isinstance(text, str) else text)
    if size > MAX_BYTES:
        message = f"the config has {size:,} bytes; the limit is {MAX_BYTES:,}"
        raise SpecError([Problem(path="", message=message, remedy="a config describes a run; keep data in files")])
    try:
        return yaml.load(text.decode() if isinstance(text, bytes) else text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except UnicodeDecodeError as error:
        raise SpecError([Problem(path="", message=f"not UTF-8 text: {error.reason} at byte {error.start}")]) from None
    except yaml.MarkedYAMLError as error:
        raise SpecError([_yaml_problem(error)]) from None
    except (yaml.YAMLError, ValueError) as error:
        raise SpecError([Problem(path="", message=f"not YAML: {' '.join(str(error).split())}")]) from None
    except RecursionError:
        raise SpecError([Problem(path="", message="the YAML is nested too deeply")]) from None


def _yaml_problem(error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    message = "broken YAML: " + " ".join(filter(None, [error.context, error.problem]))
    if mark is None:
        return Problem(path="", message=message)
    return Problem(path="", message=message, line=mark.line + 1, column=mark.column + 1)


def locate(text: str, problems: Sequence[Problem]) -> list[Problem]:
    """Add to each problem the line and column at which its path, or its nearest parent, stands in the YAML text."""
    if len(text) > MAX_BYTES:  # refused for its size: reading it for the sake of a line number would take seconds
        return list(problems)
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError:
        return list(problems)
    located = []
    for problem in problems:
        mark = _find(root, problem.path.split(".") if problem.path else [])
        known = problem.line is not None or mark is None
        update = {} if known else {"line": mark.line + 1, "column": mark.column + 1}
        located.append(problem.model_copy(update=update))
    return located


def _find(node: Any, path: list[str]) -> Any:
    """The mark of the deepest part of the path that stands in the document; a key may itself hold dots."""
    mark = None
    while path:
        if isinstance(node, yaml.MappingNode):
            pairs = {key.value: (key, value) for key, value in node.value}
            size = next((n for n in range(1, len(path) + 1) if ".".join(path[:n]) in pairs), 0)
            if not size:
                break
            key, node = pairs[".".join(path[:size])]
            mark, path = key.start_mark, path[size:]
        elif isinstance(node, yaml.SequenceNode) and path[0].isdigit() and int(path[0]) < len(node.value):
            node = node.value[int(path[0])]
            mark, path = node.start_mark, path[1:]
        else:
            break
    return mark


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


def dump_yaml(config: BaseModel | Mapping[str, Any]) -> str:
    """A spec, or plain data, as YAML that load_yaml reads back to the same values."""
    data = config.model_dump(mode="json") if isinstance(config, BaseModel) else dict(config)
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
