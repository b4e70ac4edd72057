from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nanollama.apps.gssm import train as app
from nanollama.apps.gssm.train import Trainer
from nanollama.data.loader import Loader
from nanollama.monitor.attempt import read_stopped
from nanollama.monitor.checkpoint import verify, visible
from nanollama.monitor.lost import MAX_SKIPPED
from nanollama.spec.base import Problem, SpecError
from nanollama.spec.rundir import RESULT
from tests.support.training import events, metrics, one_thread, reproducible, result, train, write_config

ROOT = Path(__file__).parents[2]

__all__ = ["one_thread"]  # a fixture of every test here


def spoil(patch: pytest.MonkeyPatch, steps: set[int], value: float = float("nan")) -> None:
    """Have the loss of these batches, counted from 0, be no number, and the gradient with it."""
    original = Trainer.backward

    def backward(trainer: Trainer, batch_BT: Tensor) -> Tensor:
        loss = original(trainer, batch_BT)
        if trainer.step not in steps:
            return loss
        for weight in trainer.model.parameters():
            assert weight.grad is not None
            weight.grad.fill_(value)
        return torch.full_like(loss, value)

    patch.setattr(Trainer, "backward", backward)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run_and_names_step_batch_and_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    config = write_config(tmp_path / "c.yaml", orchestration__checkpoint={"period": 3})
    run_dir = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, {7}, value)
        assert train(config, run_dir) == 1
        assert train(config, run_dir) == 1  # it comes to the very same step
    for attempt_dir in (run_dir / "1", run_dir / "2"):
        stopped = read_stopped(attempt_dir)
        assert stopped is not None
        assert (stopped.exit_code, stopped.step) == (1, 7)
        assert str(stopped.message).startswith(
            f"training diverged at step 8: the loss is {value} and the norm of its gradient {value}, with batch 7 "
            "(sequences 56 to 63 of the run's order) on the weights after step 7; try a lower optim.lr"
        )
        assert "orchestration.utils.on_nonfinite=skip" in str(stopped.message)
        assert str(stopped.message).endswith("the last good checkpoint is step 6 (checkpoints/0000000006)")
        assert (events(attempt_dir)[-1].kind, events(attempt_dir)[-1].message) == ("failed", stopped.message)
        assert capsys.readouterr().err.count(f"error: {stopped.message}\n") == (2 if attempt_dir.name == "1" else 0)
        assert not (attempt_dir / RESULT).exists()
    assert metrics(run_dir / "1")[-1].step == 8  # the curve shows it
    assert train(config, run_dir) == 0


def test_weights_that_explode_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path / "c.yaml", optim__steps=9, optim__warmup=0, optim__lr=1e30, optim__clip=1e30)
    assert train(config, tmp_path / "run", "orchestration.checkpoint.period=1") == 1
    step = max(int(path.name) for path in visible(tmp_path / "run" / "checkpoints")) + 1
    assert f"error: training diverged at step {step}: the loss is " in capsys.readouterr().err


def test_steps_that_are_no_numbers_are_skipped_on_wish_and_a_restart_remembers_them(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", orchestration__logging={"period": 1}, optim__steps=30)
    overrides = ["orchestration.utils.on_nonfinite=skip", "orchestration.checkpoint.period=5"]
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, {3, 4, 28})
        assert train(config, tmp_path / "whole", *overrides) == 0
        before = reproducible(metrics(tmp_path / "whole" / "1"))
        warnings = [event for event in events(tmp_path / "whole" / "1") if event.kind == "warning"]
        assert [event.step for event in warnings] == [4, 5, 29]
        assert str(warnings[2].message).startswith("step 29 is skipped, the 3. of this run: the loss is nan")
        assert "batch 28 (sequences 224 to 231 of the run's order)" in str(warnings[2].message)
        final = result(tmp_path / "whole" / "1")
        assert final.num_points == 2
        assert final.loss == final.loss  # the mean of the others

        shutil.rmtree(tmp_path / "whole" / "1")
        for step in (10, 15, 20, 25, 30):
            shutil.rmtree(tmp_path / "whole" / "checkpoints" / f"{step:010d}")
        assert train(config, tmp_path / "whole", *overrides) == 0
    again = reproducible(metrics(tmp_path / "whole" / "1"))
    assert json.dumps(again) == json.dumps([line for line in before if line["step"] > 5])
    assert "the 3. of this run" in str([e.message for e in events(tmp_path / "whole" / "1") if e.kind == "warning"])


def test_many_skipped_steps_in_a_row_end_the_run(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", optim__steps=60, orchestration__utils={"on_nonfinite": "skip"})
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, {*range(3, MAX_SKIPPED + 2), *range(20, 50)})
        assert train(config, tmp_path / "run") == 1
    stopped = read_stopped(tmp_path / "run" / "1")
    assert stopped is not None
    assert stopped.step == 20 + MAX_SKIPPED - 1
    assert f"at step {20 + MAX_SKIPPED}, after 9 skipped ones in a row: the loss is nan" in str(stopped.message)
    assert "on_nonfinite" not in str(stopped.message)
    assert "the last good checkpoint is none" in str(stopped.message)


def test_a_run_that_has_stopped_for_it_may_go_on_with_skipping(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", orchestration__checkpoint={"period": 2})
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, {5})
        assert train(config, tmp_path / "run") == 1
        assert train(config, tmp_path / "run", "orchestration.utils.on_nonfinite=skip") == 0
    assert events(tmp_path / "run" / "2")[0].step == 4


def test_want_of_memory_is_said_with_what_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def greedy(trainer: Trainer, _part_BT: Tensor, _num_parts: int) -> Tensor:
        return torch.empty(2**62, dtype=torch.int8)

    monkeypatch.setattr(Trainer, "backward_part", greedy)
    config = write_config(tmp_path / "c.yaml", optim__grad_acc_steps=2)
    assert train(config, tmp_path / "run") == 1
    stopped = read_stopped(tmp_path / "run" / "1")
    assert stopped is not None
    assert "this machine is out of memory with 4 sequences of 16 tokens at a time" in str(stopped.message)
    assert "use optim.grad_acc_steps=4" in str(stopped.message)
    assert "Traceback" not in capsys.readouterr().err


def test_other_errors_of_torch_are_not_explained_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any) -> Tensor:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Trainer, "backward", wrong)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(write_config(tmp_path / "c.yaml"), tmp_path / "run")


def test_data_that_turn_out_to_be_damaged_end_the_run_as_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = Loader.batch

    def batch(loader: Loader, step: int) -> Tensor:
        if step == 4:
            raise SpecError([Problem(path="data.path", message="row 7 holds symbol 9", remedy="generate it anew")])
        return original(loader, step)

    monkeypatch.setattr(app.Loader, "batch", batch)
    assert train(write_config(tmp_path / "c.yaml"), tmp_path / "run") == 2
    stopped = read_stopped(tmp_path / "run" / "1")
    assert stopped is not None
    assert (stopped.exit_code, stopped.step) == (2, 4)
    assert "error: data.path: row 7 holds symbol 9 - generate it anew\n" in capsys.readouterr().err


ON_A_SMALL_DISK = """
mount -t tmpfs -o size=$1 tmpfs "$2" && shift && shift && cd "$1" && shift || exit 99
"$@"
"""


def can_mount() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


FULL_DISK = """
import json, os, sys
from pathlib import Path
from nanollama.apps.gssm.train import Trainer, main
from tests.support.training import events, metrics, one_thread

disk, config, mended = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "mended"
step = Trainer.train_step

def train_step(trainer, monitor):
    if trainer.step == 7:  # after the first checkpoint: somebody else fills the disk
        monitor._saving.drain()
        with open(disk / "other", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
    if trainer.step == 17 and mended:
        monitor._saving.drain()
        (disk / "other").unlink()
    return step(trainer, monitor)

Trainer.train_step = train_step
code = main([f"config={config}", f"orchestration.log_dir={disk / 'run'}"])
if not mended:
    (disk / "other").unlink()
    Trainer.train_step = step
print(json.dumps({
    "code": code,
    "events": [(e.kind, e.step, e.message) for e in events(disk / "run" / "1")],
    "steps": [line.step for line in metrics(disk / "run" / "1")],
    "hidden": [str(p) for p in (disk / "run" / "checkpoints").glob(".*")],
    "result": (disk / "run" / "1" / "result.json").exists(),
    "again": None if mended else main([f"config={config}", f"orchestration.log_dir={disk / 'run'}"]),
}))
"""


@pytest.mark.skipif(not can_mount(), reason="a small disk needs user namespaces")
@pytest.mark.parametrize("end", ["mended", "full"])
def test_a_full_disk_costs_checkpoints_but_not_the_run(tmp_path: Path, end: str) -> None:
    checkpoint = {"period": 5}
    logging = {"period": 1}
    config = write_config(
        tmp_path / "c.yaml",
        optim__steps=24,
        model__emb_dim=32,
        orchestration={"checkpoint": checkpoint, "logging": logging},
    )
    disk = tmp_path / "disk"
    disk.mkdir()
    script = [sys.executable, "-c", FULL_DISK, str(disk), str(config), end]
    ran = subprocess.run(
        ["unshare", "-rm", "bash", "-c", ON_A_SMALL_DISK, "bash", "2m", str(disk), str(ROOT), *script],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["hidden"] == []
    kinds = [(kind, step) for kind, step, _ in told["events"]]
    assert kinds[:3] == [("started", 0), ("checkpoint_saved", 5), ("warning", 10)]
    assert "No space left on device; training goes on" in told["events"][2][2]
    if end == "mended":
        assert kinds[3:] == [("warning", 15), ("checkpoint_saved", 20), ("checkpoint_saved", 24), ("finished", 24)]
        assert told["steps"] == list(range(1, 25))
        assert (told["code"], told["result"]) == (0, True)
    else:  # there may be no room for another line
        assert told["steps"] == list(range(1, len(told["steps"]) + 1))
        assert len(told["steps"]) >= 7
        assert (told["code"], told["result"], told["again"]) == (1, False, 0)
        assert "error: all steps are done, but the last checkpoint could not be saved (No space left" in ran.stderr
        assert "it continues after step 5 (checkpoints/0000000005)" in ran.stderr


def test_a_checkpoint_can_be_verified_by_itself(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", optim__steps=2)
    assert train(config, tmp_path / "run") == 0
    (path,) = visible(tmp_path / "run" / "checkpoints")
    assert sorted(file.name for file in verify(path).files) == ["config.yaml", "model.pt", "trainer.pt"]
