"""The page on the worker: its settings, its unit and its first run are true, and each row of its table is a test."""

from __future__ import annotations

import ast
import configparser
import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nanollama.api.client import Client
from nanollama.spec.base import parse
from nanollama.spec.yaml_text import load_yaml
from tests.support.service import serve_new_sqlite
from tests.support.waiting import eventually
from worker.executors.processes import find_tree
from worker.settings import WorkerSpec, read_settings

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "worker.md").read_text()
ROW = re.compile(r"^\| (?P<when>.+?) \| (?P<what>.+?) \| (?P<shown>`.+`) \|$", re.MULTILINE)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def rows() -> list[tuple[str, list[str]]]:
    """What can happen, and the tests that show it."""
    table = TEXT[TEXT.index("## What happens when") :]
    return [(match["when"], re.findall(r"`(.+?)`", match["shown"])) for match in ROW.finditer(table)]


def test_every_line_of_the_table_is_read() -> None:
    table = TEXT[TEXT.index("## What happens when") :]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    heads = sum(1 for line in lines if set(line) <= set("|- "))
    assert len(rows()) == len(lines) - 2 * heads > 30


@pytest.mark.parametrize(("when", "tests"), rows(), ids=[when for when, _ in rows()])
def test_each_row_is_a_test(when: str, tests: list[str]) -> None:
    assert tests, when
    for test in tests:
        path, _, name = test.partition("::")
        tree = ast.parse((ROOT / path).read_text())
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in functions, test


def test_the_table_of_settings_has_every_key_and_no_other() -> None:
    table = TEXT[TEXT.index("## Settings") : TEXT.index("**Accelerators and CPUs.**")]
    keys = re.findall(r"^\| `(\w+)` \| (.+?) \|", table, flags=re.MULTILINE)
    assert [key for key, _ in keys] == list(dict.fromkeys(key for key, _ in keys))
    assert {key for key, _ in keys} == set(WorkerSpec.model_fields)
    for key, default in keys:
        field = WorkerSpec.model_fields[key]
        assert (default == "required") is field.is_required(), key
        if isinstance(field.default, int | float | bool):
            assert default.strip("`") == f"{field.default:g}" or default.strip("`") == str(field.default).lower(), key


def test_the_settings_shown_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "n2n/runs").mkdir(parents=True)
    whole, allow = blocks("yaml")
    parse(WorkerSpec, load_yaml(whole) | load_yaml(allow))
    (tmp_path / "worker.yaml").write_text(whole + allow)
    assert read_settings(["--config", str(tmp_path / "worker.yaml")]).pool == "workstation"
    assert "# token_file: ~/n2n/token" in whole


def test_the_unit_keeps_runs_and_does_not_try_bad_settings_again(tmp_path: Path) -> None:
    (text,) = blocks("ini")
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign] # names of systemd have capitals
    unit.read_string(text)
    service = unit["Service"]
    assert (service["KillMode"], service["RestartPreventExitStatus"]) == ("process", "2")
    command = shlex.split(service["ExecStart"])
    assert command == ["%h/n2n/venv/bin/python", "-m", "worker", "--config", "%h/n2n/worker.yaml"]
    if shutil.which("systemd-analyze"):
        file = tmp_path / "n2n-worker.service"
        file.write_text(text.replace("%h/n2n/venv/bin/python", sys.executable))
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(file)], capture_output=True, text=True, check=False
        )
        assert file.name not in done.stderr, done.stderr


@pytest.mark.slow
def test_the_first_run_ends_as_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's own lines, with this environment in the place of a new one, and a free port."""
    install, start, submit = blocks("bash")
    environment = {**os.environ, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    monkeypatch.chdir(ROOT)
    (make_folder,) = [line for line in install.splitlines() if line.startswith("mkdir")]
    subprocess.run(make_folder, shell=True, check=True, env=environment)
    (tmp_path / "n2n/venv").symlink_to(Path(sys.executable).parents[1])
    with serve_new_sqlite(tmp_path) as url, contextlib.ExitStack() as stack:
        (tmp_path / "n2n/worker.yaml").write_text(blocks("yaml")[0].replace("http://127.0.0.1:8420", url))
        worker = subprocess.Popen(["bash", "-c", f"exec {start}"], env=environment, stderr=subprocess.DEVNULL)
        stack.callback(worker.wait)
        stack.callback(worker.kill)
        client = stack.enter_context(Client(url))
        lines = submit.replace("http://127.0.0.1:8420", url).replace(
            "debug.yaml", "debug.yaml optim.steps=2 optim.warmup=0"
        )
        subprocess.run(f"set -e\n{lines}", shell=True, check=True, env=environment, stdout=subprocess.DEVNULL)
        (run,) = client.runs().items
        for attempt in client.attempts(run.id):
            stack.callback(lambda attempt=attempt: [process.kill() for process in find_tree(attempt.id)])
        eventually(lambda: client.run(run.id).state.terminal, within=240, what="the end of the run")
        assert client.run(run.id).state.value == "SUCCEEDED", client.run(run.id).reason
        assert (tmp_path / "n2n/runs" / run.id / "1" / "result.json").exists()
