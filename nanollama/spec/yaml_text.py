"""YAML as configs are written: no aliases, no key twice, the numbers of YAML 1.2, errors at their line and column."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import BaseModel
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.representer import SafeRepresenter
from yaml.resolver import Resolver

from nanollama.spec.base import Problem, SpecError

MAX_BYTES = 1 << 20
"""Largest config text, in bytes."""


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
        text = text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise SpecError([Problem(path="", message=f"not UTF-8 text: {error.reason} at byte {error.start}")]) from None
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        raise SpecError([_yaml_problem(error, text)]) from None
    except (yaml.YAMLError, ValueError) as error:
        raise SpecError([Problem(path="", message=f"not YAML: {' '.join(str(error).split())}")]) from None
    except RecursionError:
        raise SpecError([Problem(path="", message="the YAML is nested too deeply")]) from None


def _yaml_problem(error: yaml.MarkedYAMLError, text: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    message = "broken YAML: " + " ".join(filter(None, [error.context, error.problem]))
    if mark is None:
        return Problem(path="", message=message)
    lines = text.split("\n")
    if mark.line >= len(lines):  # libyaml ends the last line of every text
        return Problem(path="", message=message, line=len(lines), column=len(lines[-1]) + 1)
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


def dump_yaml(config: BaseModel | Mapping[str, Any]) -> str:
    """A spec, or plain data, as YAML that load_yaml reads back to the same values."""
    data = config.model_dump(mode="json") if isinstance(config, BaseModel) else dict(config)
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
