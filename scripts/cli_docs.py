"""Write the reference in docs/cli.md anew, from the commands themselves: `python scripts/cli_docs.py`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer import Context
from typer.core import TyperCommand

from nanollama.commands.root import SECTIONS, load

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
COMMON = {"url", "token_file", "as_json", "help"}
"""Options that are described once, in front."""


def commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """The commands of a group with their full names, or the command itself."""
    if hasattr(command, "commands"):
        for sub, each in command.commands.items():
            yield from commands(f"{name} {sub}", each)
    else:
        yield name, command


def every_command() -> Iterator[tuple[str, Any]]:
    """Every command by its full name, in the order of `n2n --help`."""
    for section in SECTIONS.values():
        for name in section:
            yield from commands(name, load(name))


def reference() -> str:
    """Every command with its arguments and options, as Markdown."""
    lines: list[str] = []
    for section, names in SECTIONS.items():
        lines += [f"### {section}", ""]
        for name in names:
            for full, command in commands(name, load(name)):
                lines += [*_described(full, command), ""]
    return "\n".join(lines)


def written(text: str) -> str:
    """The page with the reference of today."""
    begin, end = "<!-- begin commands -->\n", "<!-- end -->"
    head, _, rest = text.partition(begin)
    return head + begin + reference() + end + rest.partition(end)[2]


def _described(name: str, command: Any) -> Iterator[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = " ".join(_argument(p) for p in arguments)
    yield f"**`n2n {name}{' ' + usage if usage else ''}`**" + (" `--json`" if _has(command, "as_json") else "") + "  "
    yield re.sub(r"\s+", " ", inspect.cleandoc(command.help or ""))
    options = [p for p in command.params if p.param_type_name == "option" and p.name not in COMMON]
    if options:
        yield ""
    for option in options:
        value = "" if option.is_flag else f" {_value(option)}"
        yield f"- `{', '.join(sorted(option.opts, key=len))}{value}` {_meaning(option)}"


def _has(command: Any, name: str) -> bool:
    return any(parameter.name == name for parameter in command.params)


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return (
        name + ("…" if parameter.nargs == -1 else "")
        if parameter.required
        else f"[{name}" + ("…]" if parameter.nargs == -1 else "]")
    )


def _value(option: Any) -> str:
    choices = re.fullmatch(r"<(\w+(?:\|\w+)+)>", option.display_type(Context(TyperCommand("n2n"))) or "")
    if option.metavar is None and choices:
        return choices[1]
    return str(option.metavar or option.name.upper().replace("_", "-"))


def _meaning(option: Any) -> str:
    said = [re.sub(r"\s+", " ", option.help or "")]
    default = getattr(option.default, "value", option.default)
    if not option.is_flag and default not in (None, "", ()) and not callable(default):
        said.append(f"Default: {default}.")
    if option.envvar:
        said.append(f"Or `${option.envvar}`.")
    return " ".join(said).replace("<", "\\<")


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
