"""docs/cli.md and the help of every command say what there is."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nanollama.commands.root import SECTIONS, load

ROOT = Path(__file__).parents[2]

NO_DATA = {
    "up", "demo", "worker", "graph", "import-config", "slurm render",
    "db upgrade", "db backup", "db restore", "db copy",
}  # fmt: skip
"""Commands that print no data of the service: they run something, or write a file in a format of its own."""


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cli_docs", ROOT / "scripts" / "cli_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


COMMANDS: list[tuple[str, Any]] = list(generator().every_command())


def test_the_reference_is_that_of_the_commands() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    assert generator().written(text) == text, "run `python scripts/cli_docs.py`"


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_every_command_that_prints_data_prints_json(name: str, command: Any) -> None:
    options = {option for parameter in command.params for option in parameter.opts}
    assert ("--json" in options) is (name not in NO_DATA), name
    served = {"--url", "--token-file"}
    assert len(served & options) in (0, 2), name
    assert all(p.help for p in command.params if p.name != "context"), name


def test_the_list_of_commands_says_what_the_commands_say() -> None:
    for section in SECTIONS.values():
        for name, (_, line) in section.items():
            said = re.sub(r"\s+", " ", inspect.cleandoc(load(name).help))
            assert said.startswith(line.rstrip(".")), name


def test_documents_name_commands_and_options_that_exist() -> None:
    known = {name: {option for p in command.params for option in p.opts} for name, command in COMMANDS}
    groups = {name.split()[0] for name in known if " " in name}
    common = {"--help", "--install-completion", "--show-completion"}
    for document in [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]:
        for call in re.findall(r"\bn2n ([a-z][^`\n|;()&]*)", document.read_text()):
            words = call.split()
            if words[0] not in groups and words[0] not in known:
                assert words[0].islower(), (document.name, call)
                pytest.fail(f"{document.name}: there is no `n2n {words[0]}`")
            name = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
            name = f"{name} list" if name in groups and f"{name} list" in known else name
            if name in known and name != "worker":
                options = set(re.findall(r"(?<!\S)--[a-z-]+", call.partition(" #")[0]))
                assert options <= known[name] | common, (document.name, call)
