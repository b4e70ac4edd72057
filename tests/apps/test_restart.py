from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from nanollama.apps.gssm import data as data_app
from nanollama.apps.gssm.train import Trainer
from nanollama.monitor.monitor import Monitor
from nanollama.spec.base import SpecError
from nanollama.spec.rundir import EVENTS, RESULT
from tests.support.training import events, metrics, one_thread, reproducible, result, train, write_config

ROOT = Path(__file__).parents[2]
STEPS, PERIOD = 24, 5

__all__ = ["one_thread"]  # a fixture of every test here


class Killed(BaseException):
    """Stands for the end of the process."""


def killed(*_: Any) -> NoReturn:
    raise Killed


def train_until(step: int, config: Path, run_dir: Path) -> None:
    """Train in this process and be cut off after the step."""
    original = Trainer.train_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", lambda t, m: killed() if t.step == step else original(t, m))
        with pytest.raises(Killed):
            train(config, run_dir)


@pytest.mark.parametrize(("period", "killed_after"), [(0, 7), (3, 2), (3, 7), (1, 19), (20, 20)])
def test_a_run_that_was_cut_off_continues_to_the_last_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, period: int, killed_after: int
) -> None:
    orchestration = {"logging": {"period": 1}, "checkpoint": {"period": period}}
    config = write_config(tmp_path / "c.yaml", optim__steps=20, orchestration=orchestration)
    assert train(config, tmp_path / "whole") == 0

    if killed_after == 20:  # between the last checkpoint and the result
        monkeypatch.setattr(Monitor, "finished", killed)
        with pytest.raises(Killed):
            train(config, tmp_path / "cut")
        monkeypatch.undo()
    else:
        train_until(killed_after, config, tmp_path / "cut")

    torch.manual_seed(0)  # nothing of this process may matter
    assert train(config, tmp_path / "cut") == 0
    restart = killed_after // period * period if period else 0
    whole = metrics(tmp_path / "whole" / "1")
    resumed = metrics(tmp_path / "cut" / "2")
    assert [line.seq for line in resumed] == list(range(20 - restart))
    assert reproducible(resumed) == reproducible(whole, after=restart)
    assert events(tmp_path / "cut" / "2")[0].kind == ("resumed" if restart else "started")
    expected, final = result(tmp_path / "whole" / "1"), result(tmp_path / "cut" / "2")
    assert final.model_dump(exclude={"seconds"}) == expected.model_dump(exclude={"seconds"})
    assert final.num_points == 2


def restart_config(path: Path, *, source: str, acc: int) -> Path:
    """A config of `STEPS` steps, each of them logged, on fresh sequences or on those of a file."""
    checkpoint = {"period": PERIOD, "keep_last": 2}
    orchestration = {"logging": {"period": 1}, "checkpoint": checkpoint}
    config = write_config(path / "c.yaml", optim__steps=STEPS, optim__grad_acc_steps=acc, orchestration=orchestration)
    if source == "online":
        return config
    overrides = [f"sets.0.path={path / 'train.h5'}", "sets.0.n_data=52", f"sets.1.path={path / 'test.h5'}"]
    arguments = [f"config={ROOT / 'configs' / 'gssm' / 'data.yaml'}", "seq_len=12", "sets.1.n_data=8", *overrides]
    assert data_app.main(arguments) == 0
    data = {"path": str(path / "train.h5"), "batch_size": 8}  # three and a half epochs
    return write_config(config, data=data, optim__steps=STEPS, optim__grad_acc_steps=acc, orchestration=orchestration)


def run(config: Path, attempt_dir: Path, *, ranks: int, victim: int = -1, moment: int = -1) -> int:
    """Run an attempt in processes of its own, of which one may be killed; returns the exit code."""
    launch = ["-m", "nanollama.cluster.torchrun", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    program = ["-m", "tests.support.dying_training", str(victim), str(moment)]
    command = [sys.executable, *launch, *program, f"config={config}", f"attempt_dir={attempt_dir}"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode in (0, 1, -9), ran.stderr
    return ran.returncode


def whole_run(config: Path, run_dir: Path, *, ranks: int) -> list[dict[str, Any]]:
    if ranks == 1:
        assert train(config, run_dir) == 0
    else:
        assert run(config, run_dir / "1", ranks=ranks) == 0
    return reproducible(metrics(run_dir / "1"))


def check_attempts(run_dir: Path, whole: list[dict[str, Any]]) -> None:
    """Every attempt has written, to the last bit, what the whole run wrote, from its checkpoint on without a gap."""
    attempts = sorted((path for path in run_dir.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
    attempts = [path for path in attempts if (path / EVENTS).exists() and events(path)]  # or it died before it began
    for number, attempt_dir in enumerate(attempts):
        first, *_ = events(attempt_dir)
        assert first.kind == ("resumed" if first.step else "started")
        assert first.step % PERIOD == 0 or first.step == STEPS
        lines = reproducible(metrics(attempt_dir))
        assert lines == whole[first.step : first.step + len(lines)]
        saved = [event.step for event in events(attempt_dir) if event.kind == "checkpoint_saved"]
        if number + 1 < len(attempts):
            after = events(attempts[number + 1])[0].step
            assert after >= max([first.step, *saved])  # what was announced was there
    assert lines == whole[first.step :]


@pytest.mark.parametrize(
    ("source", "ranks", "acc", "kills"),
    [("online", 1, 4, [(0, 50), (0, 9)]), ("file", 2, 1, [(0, 50)])],
)
def test_a_run_killed_by_sigkill_continues_to_the_last_bit(
    tmp_path: Path, source: str, ranks: int, acc: int, kills: list[tuple[int, int]]
) -> None:
    config = restart_config(tmp_path, source=source, acc=acc)
    whole = whole_run(config, tmp_path / "whole", ranks=ranks)
    run_dir = tmp_path / "cut"
    for number, (victim, moment) in enumerate(kills, 1):
        assert run(config, run_dir / str(number), ranks=ranks, victim=victim, moment=moment) != 0
    assert any((run_dir / "checkpoints").iterdir())
    shutil.copytree(run_dir, tmp_path / "alone")
    if ranks == 1:
        assert train(config, run_dir) == 0
    else:
        assert run(config, run_dir / str(len(kills) + 1), ranks=ranks) == 0
    check_attempts(run_dir, whole)
    last = str(len(kills) + 1)
    kept = result(tmp_path / "whole" / "1").model_dump(exclude={"seconds"})
    assert result(run_dir / last).model_dump(exclude={"seconds"}) == kept
    if ranks > 1:  # another number of ranks sees the same sequences
        assert train(config, tmp_path / "alone") == 0
        lines = reproducible(metrics(tmp_path / "alone" / last))
        assert lines
        for line, expected in zip(lines, whole[-len(lines) :], strict=True):
            assert line["bound"] == pytest.approx(expected["bound"], abs=1e-12)
            assert line == pytest.approx(expected, abs=1e-5, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("acc", [1, 4])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("source", ["online", "file"])
def test_a_run_killed_again_and_again_continues_to_the_last_bit(
    tmp_path: Path, source: str, ranks: int, acc: int
) -> None:
    chance = random.Random(f"{source} {ranks} {acc}")
    config = restart_config(tmp_path, source=source, acc=acc)
    whole = whole_run(config, tmp_path / "whole", ranks=ranks)
    run_dir = tmp_path / "cut"
    for number in range(1, 9):
        code = run(
            config, run_dir / str(number), ranks=ranks, victim=chance.randrange(ranks), moment=chance.randrange(90)
        )
        if code == 0:
            break
    else:
        assert run(config, run_dir / str(number + 1), ranks=ranks) == 0
    check_attempts(run_dir, whole)


def test_a_damaged_checkpoint_costs_steps_but_not_the_run(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", optim__steps=9, orchestration__checkpoint={"period": 3})
    assert train(config, tmp_path / "run") == 0
    (tmp_path / "run" / "1" / RESULT).unlink()
    (tmp_path / "run" / "checkpoints" / "0000000009" / "trainer.pt").write_bytes(b"torn")
    assert train(config, tmp_path / "run") == 0
    warning, resumed, *_ = events(tmp_path / "run" / "2")
    assert (warning.kind, resumed.kind, resumed.step) == ("warning", "resumed", 6)
    assert reproducible(metrics(tmp_path / "run" / "2")) == reproducible(metrics(tmp_path / "run" / "1"), after=6)


def test_a_run_all_of_whose_checkpoints_are_damaged_does_not_start_anew(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", optim__steps=2)
    assert train(config, tmp_path / "run") == 0
    (tmp_path / "run" / "1" / RESULT).unlink()
    (tmp_path / "run" / "checkpoints" / "0000000002" / "manifest.json").unlink()
    with pytest.raises(
        SpecError, match=r"^checkpoints: none of the 1 checkpoints of this run is whole: .*manifest.json"
    ):
        train(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert train(config, tmp_path / "run") == 0


def test_the_checkpoint_of_another_architecture_or_config_is_named_with_what_differs(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", optim__steps=2)
    assert train(config, tmp_path / "other", "model.emb_dim=32") == 0
    (tmp_path / "run").mkdir()
    shutil.copytree(tmp_path / "other" / "checkpoints", tmp_path / "run" / "checkpoints")
    with pytest.raises(SpecError) as caught:
        train(config, tmp_path / "run")
    first, second = str(caught.value).splitlines()
    assert "0000000002 is of another architecture: its " in first
    assert "32], here it is [" in first
    assert " more - use the model section of the config.yaml inside it" in first
    assert second.startswith("model.emb_dim: is 16, but ")
    assert "was written with 32" in second
    (tmp_path / "third").mkdir()
    shutil.copytree(tmp_path / "other" / "checkpoints", tmp_path / "third" / "checkpoints")
    with pytest.raises(SpecError, match=r"^optim.lr: is 0.5, but .*0000000002 was written with 0.0003 - choose"):
        train(config, tmp_path / "third", "model.emb_dim=32", "optim.lr=0.5")
