from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from nanollama.apps.gssm import data as data_app
from nanollama.apps.gssm.train import Trainer, main
from nanollama.data.loader import build_loader
from nanollama.model.build import build_model
from nanollama.monitor.attempt import only_run
from nanollama.monitor.monitor import Monitor
from nanollama.spec.base import SpecError
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.load import load_config
from nanollama.spec.rundir import RESULT, STOP_REQUESTED, STOPPED, MetricLine, Stopped, metrics_file
from nanollama.spec.yaml_text import dump_yaml
from tests.support.training import MEASURED, events, metrics, one_thread, reproducible, result, train, write_config

ROOT = Path(__file__).parents[2]
FLOPS_PER_TOKEN = 3 * (2 * (12 * 16**2 + 16 * 5) + 4 * 15 * 16)

__all__ = ["one_thread"]  # a fixture of every test here


def test_every_file_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path / "c.yaml", optim__steps=11, orchestration__checkpoint={"period": 4, "keep_last": 2})
    assert train(config, tmp_path / "run") == 0
    attempt_dir = tmp_path / "run" / "1"

    lines = metrics(attempt_dir)
    assert [line.step for line in lines] == [1, 2, 4, 6, 8, 10, 11]
    assert [line.tokens for line in lines] == [line.step * 8 * 15 for line in lines]
    for line in lines:
        assert set(line.values) == {"loss", "bound", "excess", "lr", "grad_norm", "flops", *MEASURED}
        assert line.values["flops"] == line.tokens * FLOPS_PER_TOKEN
        assert all(line.values[name] >= 0 for name in MEASURED)
        assert line.values["excess"] == line.values["loss"] - line.values["bound"]

    story = [(event.kind, event.step, event.path) for event in events(attempt_dir)]
    assert story == [
        ("started", 0, None),
        ("checkpoint_saved", 4, "checkpoints/0000000004"),
        ("checkpoint_saved", 8, "checkpoints/0000000008"),
        ("checkpoint_saved", 11, "checkpoints/0000000011"),
        ("checkpoint_removed", 4, "checkpoints/0000000004"),
        ("finished", 11, None),
    ]
    final = result(attempt_dir)
    last = lines[-1].values
    assert (final.step, final.tokens, final.num_points) == (11, 1320, 1)
    assert (final.loss, final.bound, final.excess) == (last["loss"], last["bound"], last["excess"])
    arguments = [f"config={config}", f"orchestration.log_dir={tmp_path / 'run'}"]
    assert (attempt_dir / "config.yaml").read_text() == dump_yaml(load_config(ExperimentSpec, arguments))
    assert "finished: step 11, loss" in (attempt_dir / "logs" / "rank0.log").read_text()
    assert "step 1 of 11  loss" in capsys.readouterr().err


def test_loss_and_bound_are_means_over_the_predicted_tokens_of_the_same_batch(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", optim__steps=1, optim__warmup=0)
    assert train(config, tmp_path / "run") == 0
    spec = load_config(ExperimentSpec, [f"config={config}"])
    loader = build_loader(spec.data, rank=0, world_size=1)
    batch_BT = loader.batch(0)
    torch.manual_seed(spec.orchestration.utils.seed)
    model = build_model(spec.model, loader.vocab_size)
    with torch.no_grad():
        log_p_BTV = model(batch_BT).log_softmax(-1)
    loss = functional.nll_loss(log_p_BTV[:, :-1].flatten(0, 1), batch_BT[:, 1:].flatten())
    assert loader.scorer is not None
    (line,) = metrics(tmp_path / "run" / "1")
    assert line.values["loss"] == pytest.approx(float(loss), abs=1e-6)
    assert line.values["bound"] == pytest.approx(float(loader.scorer.nll(batch_BT).sum()) / (8 * 15), abs=1e-12)


def test_training_moves_the_learner_towards_the_bound(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", optim__steps=60, optim__lr=3e-3, data__batch_size=32)
    assert train(config, tmp_path / "run") == 0
    first, *_ = metrics(tmp_path / "run" / "1")
    assert 0 < (result(tmp_path / "run" / "1").excess or 0) < first.values["excess"] / 2


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml")
    assert train(config, tmp_path / "whole") == 0
    assert train(config, tmp_path / "parts", "optim.grad_acc_steps=4") == 0
    for whole, parts in zip(metrics(tmp_path / "whole" / "1"), metrics(tmp_path / "parts" / "1"), strict=True):
        for key in ("loss", "bound", "grad_norm"):
            assert parts.values[key] == pytest.approx(whole.values[key], rel=1e-4)


def test_a_stop_is_saved_said_and_continued(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml")
    attempt_dir = tmp_path / "run" / "1"
    attempt_dir.mkdir(parents=True)
    (attempt_dir / STOP_REQUESTED).touch()
    assert main([f"config={config}", f"attempt_dir={attempt_dir}"]) == 75
    assert [event.kind for event in events(attempt_dir)] == ["started", "checkpoint_saved", "preempted"]
    stopped = Stopped.model_validate_json((attempt_dir / STOPPED).read_bytes())
    assert (stopped.exit_code, stopped.step) == (75, 1)
    assert not (attempt_dir / RESULT).exists()
    assert main([f"config={config}", f"attempt_dir={tmp_path / 'run' / '2'}"]) == 0
    assert [line.step for line in metrics(tmp_path / "run" / "2")] == [2, 4, 6, 8, 10]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_a_run_by_hand_saves_and_the_same_command_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    config = write_config(tmp_path / "c.yaml")
    original = Trainer.train_step

    def signalled_step(trainer: Trainer, monitor: Monitor) -> bool:
        if trainer.step == 2:
            os.kill(os.getpid(), number)
        return original(trainer, monitor)

    monkeypatch.setattr(Trainer, "train_step", signalled_step)
    assert train(config, tmp_path / "run") == 75
    errors = capsys.readouterr().err
    assert f"stopped after step 3, as requested by {number.name}; the next attempt continues from there\n" in errors
    assert errors.endswith("start it again by the same command\n")
    attempt_dir = tmp_path / "run" / "1"
    assert [event.kind for event in events(attempt_dir)] == ["started", "checkpoint_saved", "preempted"]
    stopped = Stopped.model_validate_json((attempt_dir / STOPPED).read_bytes())
    assert (stopped.exit_code, stopped.step) == (75, 3)

    monkeypatch.undo()
    assert train(config, tmp_path / "run") == 0
    assert train(config, tmp_path / "whole") == 0
    whole = reproducible(metrics(tmp_path / "whole" / "1"), after=3)
    assert reproducible(metrics(tmp_path / "run" / "2")) == whole


def test_a_second_run_by_hand_in_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml")
    with only_run(tmp_path / "run"), pytest.raises(SpecError, match=f"a run is under way in {tmp_path}/run"):
        train(config, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    assert train(config, tmp_path / "run") == 0


def test_a_stop_that_comes_with_the_last_step_changes_nothing(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", optim__steps=1, optim__warmup=0)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / STOP_REQUESTED).touch()
    assert main([f"config={config}", f"attempt_dir={tmp_path / '1'}"]) == 0
    assert (tmp_path / "1" / RESULT).exists()
    assert not (tmp_path / "1" / STOPPED).exists()


def test_a_finished_run_is_reported_and_another_config_kept_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "c.yaml", optim__steps=2)
    run_dir = tmp_path / "run"
    assert train(config, run_dir) == 0
    capsys.readouterr()
    assert train(config, run_dir, "orchestration.logging.period=1") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{run_dir} is finished: step 2, loss ")
    assert "bound" in out
    assert "excess" in out
    with pytest.raises(SpecError, match=r"optim.lr: is 0.5, but .* holds a run with 0.0003"):
        train(config, run_dir, "optim.lr=0.5")
    assert sorted(path.name for path in run_dir.iterdir()) == [".lock", "1", "checkpoints"]


def test_a_graph_without_an_exact_bound_is_trained_on_with_a_warning(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml")
    assert train(config, tmp_path / "run", "data.gssm.nodes.0.mode=context") == 0
    warning = events(tmp_path / "run" / "1")[1]
    assert warning.kind == "warning"
    assert "context" in str(warning.message)
    assert not {"bound", "excess"} & set(metrics(tmp_path / "run" / "1")[-1].values)
    final = result(tmp_path / "run" / "1")
    assert final.loss is not None
    assert (final.bound, final.excess) == (None, None)


BAD = [
    (["optim.steps=many"], "optim.steps"),
    (["optim.stepz=3"], "did you mean 'steps'"),
    (["model.emb_dim=15"], "model.emb_dim"),
    (["data.path=absent.h5", "data.gssm=null", "data.seq_len=null"], "data"),
    pytest.param(
        ["cluster.device=cuda"],
        "cluster.device: CUDA is asked for",
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA"),
    ),
]


@pytest.mark.parametrize(("overrides", "message"), BAD)
def test_bad_input_creates_nothing(tmp_path: Path, overrides: list[str], message: str) -> None:
    config = write_config(tmp_path / "c.yaml")
    with pytest.raises(SpecError, match=message):
        train(config, tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


def test_a_missing_data_file_creates_nothing(tmp_path: Path) -> None:
    data = {"path": str(tmp_path / "absent.h5"), "batch_size": 8}
    config = write_config(tmp_path / "c.yaml", data=data)
    with pytest.raises(SpecError, match=r"data.path.*absent.h5"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unwritable_run_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SpecError, match=f"cannot write to the run directory {tmp_path}/file/run"):
        train(write_config(tmp_path / "c.yaml"), tmp_path / "file" / "run")


def test_bad_input_is_recorded_where_the_caller_looks(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml")
    with pytest.raises(SpecError):
        main([f"config={config}", f"attempt_dir={tmp_path / '1'}", "optim.lr=-1"])
    stopped = Stopped.model_validate_json((tmp_path / "1" / STOPPED).read_bytes())
    assert (stopped.exit_code, stopped.step) == (2, 0)
    assert "optim.lr" in str(stopped.message)


def test_a_second_start_in_an_attempt_directory_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", optim__steps=2)
    arguments = [f"config={config}", f"attempt_dir={tmp_path / '1'}"]
    assert main(arguments) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SpecError, match="has been started before"):
        main(arguments)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_learn_and_find_the_same_as_one(tmp_path: Path, parallel: str) -> None:
    cluster = {"device": "cpu", "parallel": parallel}
    evaluation = {"period": 5, "num_sequences": 21, "data": {"batch_size": 4}, "probe": True}
    overrides = {"optim__steps": 20, "optim__grad_acc_steps": 2, "orchestration__checkpoint": {"period": 5}}
    config = write_config(tmp_path / "c.yaml", cluster=cluster, evaluation=evaluation, **overrides)
    assert train(config, tmp_path / "one") == 0
    command = [sys.executable, "-m", "nanollama.cluster.torchrun", "--nproc-per-node=2"]
    command += ["-m", "nanollama.apps.gssm.train", f"config={config}"]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
        )

    (tmp_path / "two" / "1").mkdir(parents=True)
    (tmp_path / "two" / "1" / STOP_REQUESTED).touch()
    stopped = run(f"attempt_dir={tmp_path / 'two' / '1'}")
    assert stopped.returncode == 75, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert "warning" not in stopped.stderr.lower()
    finished = run(f"attempt_dir={tmp_path / 'two' / '2'}")
    assert finished.returncode == 0, finished.stderr

    def values(lines: list[MetricLine]) -> list[dict[str, float]]:
        return [{k: v for k, v in line.values.items() if k not in MEASURED} for line in lines]

    alone = values(metrics(tmp_path / "one" / "1"))
    together = values(metrics(tmp_path / "two" / "1") + metrics(tmp_path / "two" / "2"))
    assert len(together) == len(alone)
    for expected, found in zip(alone, together, strict=True):
        assert found == pytest.approx(expected, abs=1e-5, rel=1e-5)
    assert sum({"eval/kl", "probe/layer0/Z", "probe/layer1/Y"} <= set(line) for line in together) == 4
    assert (tmp_path / "two" / "2" / "logs" / "rank1.log").read_text()
    stream = metrics_file(tmp_path / "two" / "2", 1).read_bytes()
    own = [MetricLine.model_validate_json(line) for line in stream.splitlines()]
    trained = [line for line in metrics(tmp_path / "two" / "2") if "lr" in line.values]
    assert [line.step for line in own] == [line.step for line in trained]
    assert set(own[-1].values) == {"loss", *MEASURED} - {"tokens_per_second"}

    for name in ("model.pt", "trainer.pt"):
        of_one, of_two = (torch.load(tmp_path / n / "checkpoints/0000000020" / name) for n in ("one", "two"))
        for part in ("optimizer",) if name == "trainer.pt" else of_one:
            torch.testing.assert_close(of_two[part], of_one[part], rtol=1e-4, atol=1e-5)
    (tmp_path / "two" / "2" / RESULT).unlink()
    assert train(config, tmp_path / "two") == 0  # one rank takes over what two have left
    assert events(tmp_path / "two" / "3")[0].step == 20


def test_bad_input_to_two_ranks_is_said_once(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml")
    command = [sys.executable, "-m", "nanollama.cluster.torchrun", "--nproc-per-node=2"]
    command += ["-m", "nanollama.apps.gssm.train", f"config={config}", f"attempt_dir={tmp_path / '1'}"]
    refused = subprocess.run(
        [*command, "data.batch_size=9"], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert refused.returncode == 2
    assert refused.stderr.count("error: data.batch_size") == 1
    assert "Traceback" not in refused.stderr
    assert Stopped.model_validate_json((tmp_path / "1" / STOPPED).read_bytes()).exit_code == 2


def test_batches_drawn_ahead_change_nothing_and_may_be_switched_on_later(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml")
    assert train(config, tmp_path / "whole") == 0
    attempt_dir = tmp_path / "run" / "1"
    attempt_dir.mkdir(parents=True)
    (attempt_dir / STOP_REQUESTED).touch()
    assert main([f"config={config}", f"attempt_dir={attempt_dir}"]) == 75
    assert train(config, tmp_path / "run", "data.prefetch=3") == 0
    whole = reproducible(metrics(tmp_path / "whole" / "1"), after=1)
    assert reproducible(metrics(tmp_path / "run" / "2")) == whole


def test_bfloat16_learns_nearly_the_same(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", optim__steps=20, optim__lr=3e-3)
    assert train(config, tmp_path / "single") == 0
    assert train(config, tmp_path / "half", "cluster.dtype=bfloat16") == 0
    single, half = (metrics(tmp_path / name / "1")[-1].values["loss"] for name in ("single", "half"))
    assert single != half
    assert half == pytest.approx(single, abs=0.02)


def test_the_rate_falls_at_the_end_of_wsd_only(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", optim__scheduler="wsd", optim__decay_ratio=0.4, optim__lr=1.0)
    assert train(config, tmp_path / "run") == 0
    rates = [line.values["lr"] for line in metrics(tmp_path / "run" / "1")]  # of steps 1, 2, 4, 6, 8, 10
    assert rates == pytest.approx([0.5, 1.0, 1.0, 1.0, 0.55, 0.1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own making
def test_a_compiled_learner_learns_the_same(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", optim__steps=20)
    assert train(config, tmp_path / "eager") == 0
    assert train(config, tmp_path / "compiled", "cluster.compile_model=true") == 0
    for eager, compiled in zip(metrics(tmp_path / "eager" / "1"), metrics(tmp_path / "compiled" / "1"), strict=True):
        assert compiled.values["loss"] == pytest.approx(eager.values["loss"], abs=1e-5)


SMALL = ["data.seq_len=12", "data.batch_size=4", "model.emb_dim=16", "model.nb_layers=1", "optim.steps=20"]
CONFIGS = ["debug", "base", "sparse", "dense", "low_entropy"]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_training_config_runs(tmp_path: Path, name: str) -> None:
    overrides = [*SMALL, "optim.warmup=2", "cluster.device=cpu", "model.block.nb_heads=4"]
    assert train(ROOT / "configs" / "gssm" / f"{name}.yaml", tmp_path / name, *overrides) == 0
    assert result(tmp_path / name / "1").bound is not None


def test_every_config_is_covered() -> None:
    assert {path.stem for path in (ROOT / "configs" / "gssm").glob("*.yaml")} == {*CONFIGS, "data"}


def test_training_on_the_file_that_the_data_config_generates(tmp_path: Path) -> None:
    files = [f"sets.{i}.{key}" for i in (0, 1) for key in ("path", "n_data")]
    values = [tmp_path / "train.h5", 32, tmp_path / "test.h5", 8]
    overrides = [f"{key}={value}" for key, value in zip(files, values, strict=True)]
    assert data_app.main([f"config={ROOT / 'configs' / 'gssm' / 'data.yaml'}", "seq_len=12", *overrides]) == 0
    data = {"path": str(tmp_path / "train.h5"), "batch_size": 8}
    config = write_config(tmp_path / "c.yaml", data=data, optim__steps=20)
    assert train(config, tmp_path / "run") == 0
    first, *_, last = metrics(tmp_path / "run" / "1")
    assert (first.tokens, last.tokens) == (8 * 11, 20 * 8 * 11)
    assert last.values["bound"] > 0
