"""A run that starts from a checkpoint of another: "continue from here"."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from nanollama.apps.gssm.train import MODEL, TRAINER
from nanollama.spec.base import SpecError
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.identity import training_hash
from nanollama.spec.load import load_config
from tests.support.training import events, metrics, one_thread, reproducible, result, train, write_config

STEPS, PERIOD = 20, 5

__all__ = ["one_thread"]  # a fixture of every test here

LOGGED = {"logging": {"period": 1}, "checkpoint": {"period": PERIOD}}


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of 20 steps, with checkpoints at 5, 10, 15 and 20."""
    folder = tmp_path_factory.mktemp("past")
    config = write_config(folder / "c.yaml", optim__steps=STEPS, optim__scheduler="constant", orchestration=LOGGED)
    assert train(config, folder / "run") == 0
    return folder


def continued(past: Path, run_dir: Path, step: int, *overrides: str, **changes: Any) -> int:
    checkpoint = past / "run" / "checkpoints" / f"{step:010d}"
    settings = {"optim__steps": STEPS, "optim__scheduler": "constant", "orchestration": LOGGED, **changes}
    config = write_config(run_dir.with_suffix(".yaml"), **settings)
    return train(config, run_dir, f"orchestration.checkpoint.start_from={checkpoint}", *overrides)


def test_with_the_same_config_it_trains_the_same_steps_to_the_last_bit(past: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)  # nothing of this process may matter
    assert continued(past, tmp_path / "new", 10) == 0
    lines = metrics(tmp_path / "new" / "1")
    assert reproducible(lines) == reproducible(metrics(past / "run" / "1"), after=10)
    assert [line.step for line in lines] == list(range(11, 21))
    first, *_ = events(tmp_path / "new" / "1")
    assert (first.kind, first.step) == ("started", 10)
    assert "checkpoints/0000000010 of another run, after step 10" in str(first.message)
    for name in (MODEL, TRAINER):
        ours, theirs = (torch.load(p / "checkpoints/0000000020" / name) for p in (tmp_path / "new", past / "run"))
        if name == MODEL:
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    final = result(tmp_path / "new" / "1")
    assert (final.step, final.tokens) == (20, 20 * 8 * 15)


def test_settings_of_the_optimizer_are_the_new_ones(past: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"optim__lr": 1e-5, "optim__beta1": 0.5, "optim__weight_decay": 0.25, "optim__steps": 30}
    assert continued(past, tmp_path / "new", 10, **changes) == 0
    lines = metrics(tmp_path / "new" / "1")
    assert lines[0].values["lr"] == 1e-5
    assert lines[0].values["loss"] == metrics(past / "run" / "1")[10].values["loss"]  # before its first update
    assert lines[1].values["loss"] != metrics(past / "run" / "1")[11].values["loss"]
    groups = torch.load(tmp_path / "new" / "checkpoints/0000000030" / TRAINER)["optimizer"]["param_groups"]
    assert {(group["betas"], group["weight_decay"]) for group in groups} == {((0.5, 0.95), 0.25), ((0.5, 0.95), 0.0)}


def test_its_own_checkpoints_come_first(past: Path, tmp_path: Path) -> None:
    assert continued(past, tmp_path / "new", 10) == 0
    (tmp_path / "new" / "1" / "result.json").unlink()
    shutil.rmtree(tmp_path / "new" / "checkpoints" / "0000000020")
    assert continued(past, tmp_path / "new", 10) == 0
    assert (events(tmp_path / "new" / "2")[0].kind, events(tmp_path / "new" / "2")[0].step) == ("resumed", 15)
    with pytest.raises(SpecError, match=r"orchestration.checkpoint.start_from: is .*0000000005.*, but .* holds a run"):
        continued(past, tmp_path / "new", 5)


def test_it_evaluates_where_it_starts(past: Path, tmp_path: Path) -> None:
    evaluation = {"period": 10, "num_sequences": 4}
    assert continued(past, tmp_path / "new", 10, evaluation=evaluation) == 0
    found = [line for line in events(tmp_path / "new" / "1") if line.kind == "evaluated"]
    assert [line.step for line in found] == [10, 20]
    assert found[0].values is not None
    assert found[0].values["eval/loss"] > 0  # type: ignore[operator] # a finite number


@pytest.mark.parametrize(
    ("step", "changes", "said"),
    [
        (10, {"model": {"emb_dim": 32, "nb_layers": 1, "block": {"nb_heads": 2}}}, "of another architecture"),
        (10, {"optim__steps": 10}, "optim.steps: .* has done 10 steps, and this run is to end after 10"),
        (10, {"data__batch_size": 4}, "data.batch_size: is 4, but .* was trained with 8"),
        (10, {"data__seq_len": 12}, "data.seq_len: is 12, but"),
        (7, {}, "orchestration.checkpoint.start_from: there is no directory .*0000000007"),
    ],
)
def test_what_does_not_fit_is_refused(
    past: Path, tmp_path: Path, step: int, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(SpecError, match=said):
        continued(past, tmp_path / "new", step, **changes)
    assert not (tmp_path / "new" / "checkpoints").exists()
    assert "model" in changes or not (tmp_path / "new").exists()


def test_another_content_than_the_digest_says_is_refused(past: Path, tmp_path: Path) -> None:
    manifest = past / "run/checkpoints/0000000010/manifest.json"
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    key = "orchestration.checkpoint.start_digest"
    assert continued(past, tmp_path / "new", 10, f"{key}={digest}") == 0
    with pytest.raises(SpecError, match=f"has the digest {digest}, and start_digest asks for aaa"):
        continued(past, tmp_path / "other", 10, f"{key}={'a' * 64}")
    damaged = tmp_path / "0000000010"
    shutil.copytree(manifest.parent, damaged)
    (damaged / MODEL).write_bytes(b"x")
    with pytest.raises(SpecError, match="is not a whole checkpoint"):
        continued(past, tmp_path / "third", 10, f"orchestration.checkpoint.start_from={damaged}")
    with pytest.raises(SpecError, match=r"holds 4 checkpoints and is none itself - name one"):
        continued(past, tmp_path / "third", 10, f"orchestration.checkpoint.start_from={past / 'run'}")


def test_where_a_run_starts_is_part_of_what_it_learns(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml")

    def hashed(**start: str) -> str:
        overrides = [f"orchestration.checkpoint.{key}={value}" for key, value in start.items()]
        return training_hash(load_config(ExperimentSpec, [f"config={config}", *overrides]))

    fresh = "0c21f393aa56253f4d707dcc96861980a893a72de2e01b97c657acb9ecf8402d"
    assert hashed() == fresh  # as versions without the key had it: their checkpoints are still continued
    assert len({fresh, hashed(start_from="/a"), hashed(start_from="/b")}) == 3
    assert hashed(start_from="/a", start_digest="a" * 64) == hashed(start_from="/b", start_digest="a" * 64)
    with pytest.raises(SpecError, match="start_digest: is the digest of a checkpoint, and start_from names none"):
        hashed(start_digest="a" * 64)
