from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nanollama.apps.gssm import evaluate as app
from nanollama.apps.gssm.evaluate import main
from nanollama.spec.base import SpecError
from nanollama.spec.rundir import EXIT_INTERRUPTED, STOPPED, Stopped
from tests.apps.test_evaluation import evaluations, make_sets
from tests.support.training import one_thread, train, write_config

ROOT = Path(__file__).parents[2]

__all__ = ["one_thread"]  # a fixture of every test here


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten steps that was evaluated at steps 5 and 10."""
    directory = tmp_path_factory.mktemp("evaluate")
    config = write_config(
        directory / "c.yaml",
        evaluation={"period": 5, "num_sequences": 20},
        orchestration={"checkpoint": {"period": 5}},
    )
    assert train(config, directory / "run") == 0
    return directory / "run"


def evaluate(checkpoint: Path, output: Path, *arguments: str) -> dict[str, Any]:
    assert main([f"checkpoint={checkpoint}", f"output={output}", *arguments]) == 0
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def test_a_checkpoint_is_evaluated_as_in_training(run_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nanollama.apps.gssm.evaluate", f"checkpoint={run_dir / 'checkpoints/0000000010'}"]
    command += [f"output={tmp_path / 'out.json'}", "probe=true"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    stored = json.loads((run_dir / "evaluations" / "0000000010.json").read_text())
    assert found["step"] == 10
    for name in ("loss", "bound", "excess", "kl"):
        assert found[name] == pytest.approx(stored[name], abs=1e-6)
        assert found["by_position"][name] == pytest.approx(stored["by_position"][name], abs=1e-5)
    assert set(found["probe"]) == {"layer0", "layer1"}
    assert set(found["probe"]["layer1"]) == {"Z", "Y"}
    assert f"excess {found['excess']:.5f} ± {found['excess_stderr']:.5f} nats/token" in ran.stdout
    assert "over 20 held-out sequences" in ran.stdout
    assert "embedding" in ran.stdout


def test_other_data_can_be_named(run_dir: Path, tmp_path: Path) -> None:
    checkpoint, output = run_dir / "checkpoints" / "0000000010", tmp_path / "out.json"
    own = evaluate(checkpoint, output, "num_sequences=50")
    assert own["num_sequences"] == 50
    transfer = evaluate(checkpoint, output, "num_sequences=50", "data.seed=7")
    assert transfer["bound"] != own["bound"]
    longer = evaluate(checkpoint, output, "data.seq_len=40")
    assert len(longer["by_position"]["loss"]) == 39
    fewer = "[{name: X, state_dim: 3, alpha: 1.0, observed: true}]"
    assert evaluate(checkpoint, output, f"data.gssm.nodes={fewer}")["kl"] > 0
    nodes = "{name: Z, state_dim: 3, alpha: 1.0}, {name: X, state_dim: 5, alpha: 1.0, parents: [Z], observed: true}"
    _, test = make_sets(tmp_path, f"gssm.nodes=[{nodes}]")
    assert evaluate(checkpoint, output, f"evaluation.data.path={test}")["num_sequences"] == 12
    assert evaluate(checkpoint, output, f"evaluation.data.path={test}", "num_sequences=7")["num_sequences"] == 7


def test_other_data_displace_the_file_that_the_config_names(tmp_path: Path) -> None:
    nodes = ["gssm.nodes=[{name: X, state_dim: 5, alpha: 1.0, observed: true}]"]
    _, test = make_sets(tmp_path, *nodes)
    evaluation = {"period": 5, "data": {"path": str(test)}}
    assert train(write_config(tmp_path / "c.yaml", evaluation=evaluation), tmp_path / "run") == 0
    checkpoint, output = tmp_path / "run" / "checkpoints" / "0000000010", tmp_path / "out.json"
    assert evaluate(checkpoint, output)["num_sequences"] == 12
    assert evaluate(checkpoint, output, "data.seed=3", "num_sequences=9")["num_sequences"] == 9


def test_what_cannot_be_evaluated_is_named(run_dir: Path, tmp_path: Path) -> None:
    checkpoint = run_dir / "checkpoints" / "0000000010"
    damaged = tmp_path / "0000000010"
    shutil.copytree(checkpoint, damaged)
    content = bytearray((damaged / "model.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / "model.pt").write_bytes(content)
    (tmp_path / "empty").mkdir()
    for arguments, message in [
        ([], r"checkpoint: neither or both of checkpoint=DIR and run_dir=DIR"),
        ([f"checkpoint={tmp_path / 'absent'}"], r"checkpoint: there is no directory .*absent"),
        ([f"checkpoint={tmp_path / 'empty'}"], r"not a whole checkpoint: it has no readable manifest.json"),
        ([f"checkpoint={run_dir}"], r"holds 2 checkpoints and is none itself - name one, for example .*/0000000010"),
        ([f"checkpoint={damaged}"], r"the content of model.pt has changed since it was written"),
        (
            [f"checkpoint={checkpoint}", "model.emb_dim=8"],
            r"model: .*another architecture: its embedding.weight is \[5, 16\]",
        ),
        (
            [f"checkpoint={checkpoint}", "data.gssm.nodes=[{name: X, state_dim: 9, alpha: 1, observed: true}]"],
            r"data: these sequences have 9 symbols, the learner knows 5",
        ),
        ([f"checkpoint={checkpoint}", "config=c.yaml"], r"config: a checkpoint brings its config"),
        ([f"checkpoint={checkpoint}", "data.sed=3"], r"data.sed: unknown key - did you mean 'seed'"),
        ([f"checkpoint={checkpoint}", "num_sequences=1"], r"num_sequences: should be greater than or equal to 2"),
        ([f"checkpoint={checkpoint}", "follow=true"], r"follow: belongs to run_dir="),
        ([f"run_dir={tmp_path / 'absent'}"], r"run_dir: there is no directory"),
    ]:
        with pytest.raises(SpecError, match=message):
            main(arguments)


def test_a_run_that_leaves_evaluation_to_others_is_followed_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = {"period": 5, "num_sequences": 20, "asynchronous": True}
    orchestration = {"checkpoint": {"period": 5}}
    config = write_config(tmp_path / "c.yaml", evaluation=evaluation, orchestration=orchestration)
    run_dir = tmp_path / "run"
    stopped = run_dir / "1" / STOPPED
    stopped.parent.mkdir(parents=True)
    stopped.write_text(Stopped(exit_code=EXIT_INTERRUPTED, step=0).model_dump_json())
    waited = []

    def train_meanwhile(seconds: float) -> None:
        waited.append(seconds)
        assert train(config, run_dir) == 0

    monkeypatch.setattr(app, "sleep", train_meanwhile)
    assert main([f"run_dir={run_dir}", "follow=true"]) == 0
    assert len(waited) == 1
    assert not evaluations(run_dir / "2")
    assert [path.name for path in sorted((run_dir / "evaluations").iterdir())] == ["0000000005.json", "0000000010.json"]
    assert "step 10: loss " in capsys.readouterr().out
    stored = json.loads((run_dir / "evaluations" / "0000000010.json").read_text())
    assert json.loads((run_dir / "checkpoints" / "0000000010" / "score.json").read_text())["score"] == stored["excess"]
    assert main([f"run_dir={run_dir}"]) == 0
    assert capsys.readouterr().out == ""
