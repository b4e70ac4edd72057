from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nanollama.spec.experiment import APPS, ExperimentSpec
from tests.support.training import events, metrics, reproducible, result

TEXT = (Path(__file__).parents[2] / "docs" / "new-app.md").read_text()


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)
    return found


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """The page's application as a program, with its config beside it."""
    (tmp_path / "copy_train.py").write_text(block("python"))
    (tmp_path / "copy.yaml").write_text(block("yaml"))
    return tmp_path


def run(app: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "copy_train.py", "config=copy.yaml", "cluster.device=cpu", *overrides]
    return subprocess.run(command, cwd=app, capture_output=True, text=True, timeout=240, check=False)


def test_the_application_of_the_page_runs_as_it_stands(app: Path) -> None:
    ran = run(app)
    assert ran.returncode == 0, ran.stderr
    attempt_dir = app / "runs" / "copy" / "1"
    final = result(attempt_dir)
    assert final.bound == pytest.approx(math.log(8) / 2)
    first = next(line.values["excess"] for line in metrics(attempt_dir) if "excess" in line.values)
    assert final.excess is not None
    assert 0 < final.excess < first
    found = json.loads((app / "runs" / "copy" / "evaluations" / "0000000100.json").read_text())
    assert found["num_sequences"] == 256
    assert found["by_position"]["bound"] == pytest.approx([math.log(8)] * 8 + [0.0] * 8)
    assert found["kl"] == pytest.approx(found["excess"], abs=5 * found["excess_stderr"])
    assert [event.step for event in events(attempt_dir) if event.kind == "evaluated"] == [50, 100]

    transformer = ["model.implementation=transformer", "model.block={nb_heads: 4}", "optim.steps=10"]
    refused = run(app, *transformer)
    assert refused.returncode == 2, refused.stderr
    assert "was written with another config" in refused.stderr
    other = run(app, *transformer, "orchestration.name=copy_transformer")
    assert other.returncode == 0, other.stderr


def test_it_is_stopped_and_continued_to_the_last_bit(app: Path) -> None:
    assert run(app, "orchestration.log_dir=whole").returncode == 0
    code = block("python").replace(
        "        stopping = ",
        f"        if step == 30: signals._note({int(signal.SIGTERM)}, None)\n        stopping = ",
        1,
    )
    (app / "copy_train.py").write_text(code)
    assert run(app, "orchestration.log_dir=cut").returncode == 75
    (app / "copy_train.py").write_text(block("python"))
    assert run(app, "orchestration.log_dir=cut").returncode == 0
    lines = reproducible(metrics(app / "cut" / "1")) + reproducible(metrics(app / "cut" / "2"))
    assert lines == reproducible(metrics(app / "whole" / "1"))


def test_bad_input_is_said_by_its_key(app: Path) -> None:
    ran = run(app, "data.lenght=3")
    assert ran.returncode == 2
    assert "error: data.lenght: unknown key - did you mean 'length'?" in ran.stderr
    assert not (app / "runs").exists()


def test_what_the_page_says_about_the_registry() -> None:
    assert ExperimentSpec.model_fields["app"].default in APPS
    assert "`APPS` in `nanollama/spec/experiment.py`" in TEXT
