from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from nanollama.apps.gssm.held_out import NUM_SEQUENCES
from nanollama.apps.gssm.train import main
from nanollama.monitor.lost import MAX_SKIPPED
from nanollama.spec.base import parse
from nanollama.spec.evaluation import EvaluationSpec
from nanollama.spec.monitor import CheckpointSpec
from tests.support.training import metrics, write_config

TEXT = (Path(__file__).parents[2] / "docs" / "training.md").read_text()


def test_the_batch_that_a_message_names_is_found_as_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    orchestration = {"name": "debug", "checkpoint": {"period": 6}, "logging": {"period": 1}}
    config = write_config(tmp_path / "c.yaml", orchestration=orchestration)
    assert main([f"config={config}"]) == 0
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    found: dict[str, Any] = {}
    exec(code.replace("loader.batch(7)", "loader.batch(6)"), found)
    line = next(line for line in metrics(tmp_path / "runs" / "debug" / "1") if line.step == 7)
    assert float(found["loss"].detach()) == pytest.approx(line.values["loss"], abs=1e-5)


def test_the_keys_of_checkpoints_are_those_of_the_config_and_numbers_are_true() -> None:
    block = re.search(r"    orchestration:\n(?:      .*\n)+", TEXT)
    assert block is not None
    checkpoint = yaml.safe_load(block[0])["orchestration"]["checkpoint"]
    assert set(checkpoint) == set(CheckpointSpec.model_fields)
    parse(CheckpointSpec, checkpoint)
    assert MAX_SKIPPED == 10
    assert "ten in a row" in TEXT


def test_the_keys_of_an_evaluation_are_those_of_the_config_and_of_the_metrics(tmp_path: Path) -> None:
    block = re.search(r"    evaluation:\n(?:      .*\n)+", TEXT)
    assert block is not None
    shown = yaml.safe_load(block[0])["evaluation"]
    parse(EvaluationSpec, shown)
    assert shown["num_sequences"] == NUM_SEQUENCES
    assert set(shown) <= set(EvaluationSpec.model_fields)
    config = write_config(tmp_path / "c.yaml", optim__steps=2, evaluation={"period": 2, "num_sequences": 4})
    assert main([f"config={config}", f"orchestration.log_dir={tmp_path / 'run'}"]) == 0
    keys = {key for line in metrics(tmp_path / "run" / "1") for key in line.values if key.startswith("eval/")}
    assert {key for key in keys if not key.endswith("_stderr")} == set(re.findall(r"`(eval/[a-z]+)`", TEXT))


def test_every_file_of_a_run_is_in_the_table(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", optim__steps=2, evaluation={"period": 2, "num_sequences": 4})
    assert main([f"config={config}", f"orchestration.log_dir={tmp_path / 'run'}"]) == 0
    files = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for file in files:
        described = re.sub(r"^1/", "<attempt>/", re.sub(r"\d{10}", "<step>", file)).replace(
            "logs/rank0", "logs/rank<k>"
        )
        assert f"| `{described}` |" in TEXT, file
