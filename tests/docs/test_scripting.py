"""docs/scripting.md: each of its blocks is run as it stands, against a real service with a real worker."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanollama.api.client import Client
from tests.support.service import serve_new_sqlite

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "scripting.md").read_text()
SECONDS = 300


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.S | re.M)


@contextlib.contextmanager
def served(folder: Path, worker: str, *options: str) -> Iterator[dict[str, str]]:
    """A service with a worker of four slots; the environment of somebody who uses them."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("N2N_")}
    with serve_new_sqlite(folder) as url:
        (folder / "runs").mkdir()
        command = [sys.executable, "-m", worker, "--url", url, "--run-root", str(folder / "runs"), *options]
        with open(folder / "worker.log", "wb") as log:
            process = subprocess.Popen(
                [*command, "--home", str(folder / "worker"), "--stop-jobs-on-exit"],
                cwd=ROOT, env=environment | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            path = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
            yield environment | {"N2N_URL": url, "PATH": path}
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with served(tmp_path_factory.mktemp("scripting"), "tests.support.quick_worker", "--slots", "4") as found:
        yield found


def run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path, environment: dict[str, str]) -> Path:
    run(["bash", "-euc", blocks("bash")[0]], tmp_path, environment)
    return tmp_path


def test_every_block_is_run_by_a_test() -> None:
    assert (len(blocks("bash")), len(blocks("python"))) == (3, 2)
    assert TEXT.count("```") == 2 * 5


def check_table(path: Path) -> None:
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert {row["key"] for row in rows} == {"loss", "bound", "excess"}
    assert len({row["run"] for row in rows}) == 12
    assert {row["optim.lr"] for row in rows} == {"0.001", "0.003", "0.01"}
    assert len(rows) >= 12 * 3 * 20
    assert set(rows[0]) > {"model.emb_dim", "orchestration.utils.seed", "step", "tokens", "time", "value"}


def test_from_the_shell(folder: Path, environment: dict[str, str]) -> None:
    shown = run(["bash", "-euc", blocks("bash")[1]], folder, environment)
    assert "a training config with a grid of 12 runs" in shown
    assert "runs 12/12  12 succeeded" in shown
    check_table(folder / "curves.csv")


def test_from_python(folder: Path, environment: dict[str, str]) -> None:
    first, plot = blocks("python")
    run([sys.executable, "-c", first + plot], folder, environment)
    assert (folder / "excess.png").read_bytes().startswith(b"\x89PNG")


def test_with_curl(folder: Path, environment: dict[str, str]) -> None:
    block = blocks("bash")[2]
    run(["bash", "-euc", block], folder, environment)
    found = json.loads((folder / "curves.json").read_text())["runs"]
    assert len(found) == 12
    assert all(len(each["series"]["excess"]["value"]) == 20 for each in found)
    before = json.loads((folder / "experiment.json").read_text())["id"]
    run(["bash", "-euc", block], folder, environment)
    assert json.loads((folder / "experiment.json").read_text())["id"] == before


@pytest.mark.slow
def test_from_the_shell_with_trainings_that_learn(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with served(tmp_path, "worker", "--slots", "2") as environment:
        for block in blocks("bash")[:2]:
            run(["bash", "-euc", block], work, environment)
        check_table(work / "curves.csv")
        with Client(environment["N2N_URL"]) as client:
            assert all((run.progress.excess or 9) < 1 for run in client.runs().items)
