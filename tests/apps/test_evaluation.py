from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from backend.metrics.lines import parse_metrics
from backend.streams.lines import parse_events
from nanollama.apps.gssm import data as data_app
from nanollama.apps.gssm.held_out import NUM_SEQUENCES, held_out_sequences
from nanollama.apps.gssm.train import Trainer
from nanollama.data.loader import build_loader
from nanollama.model.build import build_model
from nanollama.monitor.monitor import Monitor
from nanollama.spec.base import SpecError
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.load import load_config
from nanollama.spec.rundir import EVENTS, STOP_REQUESTED, metrics_file
from tests.support.training import events, metrics, one_thread, reproducible, train, write_config

ROOT = Path(__file__).parents[2]
KEYS = {f"eval/{name}{suffix}" for name in ("loss", "bound", "excess", "kl") for suffix in ("", "_stderr")}
EVALUATION = {"period": 4, "num_sequences": 20}

__all__ = ["one_thread"]  # a fixture of every test here


def evaluations(attempt_dir: Path) -> dict[int, dict[str, float]]:
    return {line.step: line.values for line in metrics(attempt_dir) if "eval/loss" in line.values}


def test_a_run_evaluates_now_and_then_and_at_its_end(tmp_path: Path) -> None:
    checkpoint = {"period": 4, "keep_last": 1, "keep_best": 1}
    orchestration = {"logging": {"period": 2}, "checkpoint": checkpoint}
    config = write_config(tmp_path / "c.yaml", evaluation=EVALUATION, orchestration=orchestration, optim__lr=3e-2)
    run_dir = tmp_path / "run"
    assert train(config, run_dir) == 0
    found = evaluations(run_dir / "1")
    assert list(found) == [4, 8, 10]
    assert all(set(values) == KEYS for values in found.values())

    told = [event for event in events(run_dir / "1") if event.kind == "evaluated"]
    assert [(event.step, event.path) for event in told] == [(s, f"evaluations/{s:010d}.json") for s in found]
    for event in told:
        stored = json.loads((run_dir / str(event.path)).read_text())
        assert stored["excess"] == found[event.step]["eval/excess"]
        assert event.by_position is not None
        assert event.by_position["positions"] == tuple(range(1, 16))
        assert event.by_position["kl"] == pytest.approx(stored["by_position"]["kl"], rel=1e-5)
        assert sum(stored["by_position"]["kl"]) / 15 == pytest.approx(stored["kl"])

    best = min(found, key=lambda step: found[step]["eval/excess"])
    kept = [int(path.name) for path in (run_dir / "checkpoints").iterdir()]
    assert set(kept) == {best, 10}
    score = json.loads((run_dir / "checkpoints" / f"{best:010d}" / "score.json").read_text())
    assert score["score"] == found[best]["eval/excess"]


def test_the_service_takes_what_an_evaluation_writes(tmp_path: Path) -> None:
    assert train(write_config(tmp_path / "c.yaml", evaluation=EVALUATION), tmp_path / "run") == 0
    lines, read = parse_metrics(metrics_file(tmp_path / "run" / "1", 0).read_bytes(), 0)
    assert read.malformed == 0
    assert set(lines.keys) >= KEYS
    parsed = parse_events((tmp_path / "run" / "1" / EVENTS).read_bytes(), 0)
    assert parsed.malformed == 0
    assert [line.step for _, line in parsed.records if line.by_position] == [4, 8, 10]


def test_an_evaluation_is_that_of_the_saved_learner_on_unseen_sequences(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", evaluation=EVALUATION)
    assert train(config, tmp_path / "run") == 0
    spec = load_config(ExperimentSpec, [f"config={config}"])
    sequences = held_out_sequences(spec)
    tokens = sequences.tokens(0, 20)
    trained_on = {tuple(row) for row in build_loader(spec.data, rank=0, world_size=1).batch(0).tolist()}
    assert trained_on.isdisjoint(tuple(row) for row in tokens.tolist())
    model = build_model(spec.model, sequences.vocab_size)
    model.load_state_dict(torch.load(tmp_path / "run" / "checkpoints" / "0000000010" / "model.pt"))
    with torch.no_grad():
        logits = model(tokens[:, :-1])
    loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert sequences.scorer is not None
    values = evaluations(tmp_path / "run" / "1")[10]
    assert values["eval/loss"] == pytest.approx(float(loss), abs=1e-6)
    assert values["eval/bound"] == pytest.approx(float(sequences.scorer.nll(tokens).mean()) / 15, abs=1e-12)
    assert values["eval/kl"] == pytest.approx(float(sequences.scorer.kl(tokens, logits).mean()), abs=1e-6)


def test_training_does_not_notice_that_it_is_evaluated(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml")
    assert train(config, tmp_path / "without") == 0
    assert train(config, tmp_path / "with", "evaluation.period=3", "evaluation.num_sequences=9") == 0
    lines = [line for line in metrics(tmp_path / "with" / "1") if "loss" in line.values]
    assert reproducible(lines) == reproducible(metrics(tmp_path / "without" / "1"))


@pytest.mark.parametrize("stopped_after", [3, 8, 10])
def test_a_stop_saves_first_and_the_next_attempt_evaluates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_after: int
) -> None:
    config = write_config(tmp_path / "c.yaml", evaluation=EVALUATION)
    assert train(config, tmp_path / "whole") == 0
    original = Trainer.train_step

    def stopping_step(trainer: Trainer, monitor: Monitor) -> bool:
        if trainer.step == stopped_after - 1:
            (monitor.attempt_dir / STOP_REQUESTED).touch()
        return original(trainer, monitor)

    monkeypatch.setattr(Trainer, "train_step", stopping_step)
    code = train(config, tmp_path / "cut")
    kinds = [event.kind for event in events(tmp_path / "cut" / "1")]
    if stopped_after == 10:  # the end itself
        assert code == 0
        assert kinds.index("checkpoint_saved") < kinds.index("finished")
        lines = metrics(tmp_path / "cut" / "1")
    else:
        assert code == 75
        assert kinds[-2:] == ["checkpoint_saved", "preempted"]
        assert kinds.count("evaluated") == sum(step < stopped_after for step in (4, 8, 10))
        monkeypatch.undo()
        assert train(config, tmp_path / "cut") == 0
        lines = metrics(tmp_path / "cut" / "1") + metrics(tmp_path / "cut" / "2")
    assert reproducible(lines) == reproducible(metrics(tmp_path / "whole" / "1"))


def test_a_run_that_was_cut_off_continues_to_the_last_bit_with_its_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orchestration = {"logging": {"period": 1}, "checkpoint": {"period": 3}}
    config = write_config(tmp_path / "c.yaml", evaluation={**EVALUATION, "period": 3}, orchestration=orchestration)
    assert train(config, tmp_path / "whole") == 0
    original = Trainer.train_step

    def cut(trainer: Trainer, monitor: Monitor) -> bool:
        if trainer.step == 7:
            raise KeyboardInterrupt
        return original(trainer, monitor)

    monkeypatch.setattr(Trainer, "train_step", cut)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "cut")
    monkeypatch.undo()
    torch.manual_seed(0)
    assert train(config, tmp_path / "cut") == 0
    resumed = reproducible(metrics(tmp_path / "cut" / "2"))
    assert resumed == reproducible(metrics(tmp_path / "whole" / "1"), after=6)
    assert list(evaluations(tmp_path / "cut" / "2")) == [9, 10]


def make_sets(tmp_path: Path, *overrides: str) -> tuple[Path, Path]:
    """Sets of the graph of configs/gssm/data.yaml: 32 and 12 sequences of 12 tokens."""
    names = [tmp_path / "train.h5", tmp_path / "test.h5"]
    paths = [f"sets.{i}.path={name}" for i, name in enumerate(names)]
    config = f"config={ROOT / 'configs' / 'gssm' / 'data.yaml'}"
    arguments = [config, "seq_len=12", "overwrite=true", *paths, "sets.0.n_data=32", "sets.1.n_data=12", *overrides]
    assert data_app.main(arguments) == 0
    return names[0], names[1]


def test_a_run_on_a_file_is_evaluated_on_another_and_bad_ones_are_named(tmp_path: Path) -> None:
    training, test = make_sets(tmp_path)
    data = {"path": str(training), "batch_size": 8}
    evaluation: dict[str, Any] = {"period": 10, "data": {"path": str(test), "n_data": 10, "batch_size": 4}}
    config = write_config(tmp_path / "c.yaml", data=data, evaluation=evaluation)
    assert train(config, tmp_path / "run") == 0
    assert json.loads((tmp_path / "run" / "evaluations" / "0000000010.json").read_text())["num_sequences"] == 10
    assert not [event for event in events(tmp_path / "run" / "1") if event.kind == "warning"]

    fresh = {"period": 10, "num_sequences": 6}
    assert train(write_config(tmp_path / "f.yaml", data=data, evaluation=fresh), tmp_path / "fresh") == 0
    assert list(evaluations(tmp_path / "fresh" / "1")) == [10]

    for overrides, message in [
        (["evaluation.data.n_data=13"], r"evaluation.data.n_data: .* has 12 sequences, and 13 are wanted"),
        ([f"evaluation.data.path={tmp_path / 'absent.h5'}"], r"evaluation.data.path: there is no file"),
        ([f"evaluation.data.path={training}"], r"evaluation.data.path: .* is what the learner is trained on"),
        (
            [f"evaluation.data.path={shutil.copy(training, tmp_path / 'copy.h5')}"],
            "evaluation.data.path: .*copy.h5 holds the split 'train' of the same model and seed",
        ),
        (
            ["evaluation.data.path=null", "evaluation.data.n_data=null", "evaluation.data.split=train"],
            "evaluation.data.split: the learner is trained on the split 'train'",
        ),
    ]:
        with pytest.raises(SpecError, match=message):
            train(config, tmp_path / "bad", *overrides)
        assert not (tmp_path / "bad").exists()

    make_sets(tmp_path / "..", f"sets.0.path={tmp_path / 'other.h5'}", f"sets.1.path={test}", "seed=9")
    assert train(config, tmp_path / "transfer") == 0
    (warning,) = [event for event in events(tmp_path / "transfer" / "1") if event.kind == "warning"]
    assert "another model" in str(warning.message)


def test_more_symbols_than_the_learner_knows_are_refused(tmp_path: Path) -> None:
    _, test = make_sets(tmp_path)
    config = write_config(tmp_path / "c.yaml", evaluation={"period": 5, "data": {"path": str(test)}})
    with pytest.raises(SpecError, match=r"evaluation.data.path: these sequences have \d+ symbols, the learner knows 5"):
        train(config, tmp_path / "run")


def test_a_graph_without_a_bound_is_evaluated_by_its_loss(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", evaluation=EVALUATION)
    assert train(config, tmp_path / "run", "data.gssm.nodes.0.mode=context") == 0
    assert set(evaluations(tmp_path / "run" / "1")[10]) == {"eval/loss", "eval/loss_stderr"}
    warnings = [str(event.message) for event in events(tmp_path / "run" / "1") if event.kind == "warning"]
    assert any(warning.startswith("evaluations have a loss only: ") for warning in warnings)
    with pytest.raises(SpecError, match=r"evaluation.probe: there is no exact belief state to look for: .*context"):
        train(config, tmp_path / "probed", "data.gssm.nodes.0.mode=context", "evaluation.probe=true")


def test_an_asynchronous_evaluation_is_left_to_others(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", evaluation={**EVALUATION, "asynchronous": True})
    assert train(config, tmp_path / "run") == 0
    assert not evaluations(tmp_path / "run" / "1")
    (warning,) = [event for event in events(tmp_path / "run" / "1") if event.kind == "warning"]
    assert "nanollama.apps.gssm.evaluate run_dir=" in str(warning.message)


def test_a_full_disk_costs_the_file_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nanollama.monitor.monitor.write_evaluation", full)
    assert train(write_config(tmp_path / "c.yaml", evaluation=EVALUATION), tmp_path / "run") == 0
    assert list(evaluations(tmp_path / "run" / "1")) == [4, 8, 10]
    warnings = [str(event.message) for event in events(tmp_path / "run" / "1") if event.kind == "warning"]
    assert len(warnings) == 3
    assert "evaluation of step 4 could not be kept in a file: No space left on device" in warnings[0]


def test_without_a_number_a_thousand_sequences_are_sampled(tmp_path: Path) -> None:
    spec = load_config(ExperimentSpec, [f"config={write_config(tmp_path / 'c.yaml')}"])
    sequences = held_out_sequences(spec)
    assert sequences.num_sequences == NUM_SEQUENCES
    assert math.prod(sequences.tokens(1000, NUM_SEQUENCES).shape) == 24 * 16
