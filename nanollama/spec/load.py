"""Read a config: YAML with line numbers in its errors, `key.sub=value` overrides and $VARIABLES."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel

from nanollama.spec.base import Problem, SpecError, parse

MAX_BYTES = 1 << 20
"""Largest config text, in bytes."""

SpecT = TypeVar("SpecT", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Safe YAML with the floats and booleans of YAML 1.2: `1e-3` is a number, `no` is a string.

    Aliases, which can make a small text enormous, and duplicate keys are refused.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call] # the stubs leave it bare
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed; write the value out", mark)
        return super().compose_node(parent, index)

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
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_FLOAT = re.compile(
    r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\.\d[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.(?:inf|nan))$"
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that _Loader would take for something else, and never writes an alias, which it refuses."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the base class names it
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # line ends that only Unicode knows are written as they are in other styles, and read back as blanks
        style = '"' if any(c in data for c in "\x85\u2028\u2029\ufeff") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


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
    mark = None
    for part in path:
        if isinstance(node, yaml.MappingNode):
            pair = next((pair for pair in node.value if pair[0].value == part), None)
            if pair is None:
                break
            mark, node = pair[0].start_mark, pair[1]
        elif isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
            node = node.value[int(part)]
            mark = node.start_mark
        else:
            break
    return mark


def expand_variables(data: Any, environment: Mapping[str, str]) -> Any:
    """Replace `$NAME` and `${NAME}` in every string of the data.

    Raises:
        SpecError: a variable that is not set, at its path.
    """
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
            if name not in environment:
                message = f"the variable ${name} is not set"
                problems.append(Problem(path=".".join(path), message=message, remedy=f"export {name}=..."))
            return environment.get(name, "")

        return re.sub(r"\$(?:(\w+)|\{(\w+)\})", replace, value)

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
            target[slot] = _load_value(key, value)
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


def read_arguments(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], str]:
    """Plain data from `config=FILE key.sub=value …`, and the text of the file ('' without one).

    Raises:
        SpecError: as load_yaml, apply_override and expand_variables.
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
    for argument in overrides:
        apply_override(data, argument)
    return expand_variables(data, os.environ if environment is None else environment), text


def load_config(model: type[SpecT], arguments: Sequence[str]) -> SpecT:
    """A validated config from command-line arguments `config=FILE key.sub=value …`.

    Raises:
        SpecError: with every problem, at its line in the file where it has one.
    """
    data, text = read_arguments(arguments)
    try:
        return parse(model, data)
    except SpecError as error:
        overridden = {argument.partition("=")[0] for argument in arguments}
        places = [p.path.split(".") for p in error.problems]
        given = [any(".".join(place[:n]) in overridden for n in range(1, len(place) + 1)) for place in places]
        located = locate(text, error.problems)
        pairs = zip(error.problems, located, given, strict=True)
        raise SpecError([bare if from_argument else in_file for bare, in_file, from_argument in pairs]) from None


def dump_yaml(config: BaseModel | Mapping[str, Any]) -> str:
    """A spec, or plain data, as YAML that load_yaml reads back to the same values."""
    data = config.model_dump(mode="json") if isinstance(config, BaseModel) else dict(config)
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
