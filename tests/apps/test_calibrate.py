from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from nanollama.apps.gssm import calibrate as app
from nanollama.commands.graph import load_graph
from nanollama.data.calibration import mean_entropy
from nanollama.spec.base import parse
from nanollama.spec.command import run_command
from nanollama.spec.gssm import GSSMSpec
from nanollama.spec.yaml_text import load_yaml
from tests.support.examples import experiment

GRAPH = GSSMSpec.model_validate(experiment()["data"]["gssm"])
QUICK = ("seeds=3", "num_sequences=20")


def calibrate(*arguments: object) -> int:
    return run_command(app.main, [str(argument) for argument in arguments], usage=app.__doc__)


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(experiment()))
    return f"config={path}"


def test_the_graph_that_is_saved_has_the_wanted_entropy(tmp_path, capsys, config):
    target, saved = tmp_path / "result.json", tmp_path / "calibrated.yaml"
    assert calibrate(config, "target=1.1", "tolerance=0.03", *QUICK, f"output={target}", f"save={saved}") == 0
    result = json.loads(target.read_text())
    graph = load_graph([f"config={saved}"])
    entropy = mean_entropy(graph, 16, seeds=3, num_sequences=20)
    assert result["reached"] is True
    assert abs(entropy.mean - 1.1) <= 0.03
    assert result["nats_per_token"] == pytest.approx(entropy.mean, rel=1e-12)
    assert result["stderr"] == pytest.approx(entropy.stderr, rel=1e-12)
    assert result["alphas"] == {name: graph.node(name).alpha for name in ("Z", "Y")}
    ratios = [graph.node(name).alpha / GRAPH.node(name).alpha for name in ("Z", "Y", "X")]
    assert ratios == pytest.approx([result["factor"], result["factor"], 1.0], rel=1e-5)
    assert result["evaluations"][0]["factor"] == 1.0
    assert result["seq_len"] == 16
    assert min(result[name]["nats_per_token"] for name in ("gzip", "xz")) > entropy.mean
    printed = capsys.readouterr().out
    assert f"{entropy.mean:.4f} ± {entropy.stderr:.4f} nats/token over 3 seeds, target 1.1" in printed
    assert "for 20 sequences of 16 tokens a seed" in printed
    assert saved.read_text().startswith(f"# entropy: {entropy.mean:.4f} ± ")
    assert {p.name for p in tmp_path.iterdir()} == {"config.yaml", "result.json", "calibrated.yaml"}


def test_the_saved_graph_keeps_everything_but_the_alphas():
    nodes = [
        {"name": "on", "state_dim": 2, "alpha": 1e-5, "mode": "slow"},
        {"name": "1e5", "state_dim": 2, "alpha": 0.5, "parents": ["on"], "kernel_type": "fullrank"},
        {"name": "X", "state_dim": 3, "alpha": 12.0, "parents": ["1e5", "on"], "mode": "context", "observed": True},
    ]
    graph = GSSMSpec.model_validate({"nodes": nodes})
    text = app.graph_yaml(graph, "1.0 ± 0.1 nats/token over 3 seeds")
    assert load_graph_text(text) == graph


def load_graph_text(text: str) -> GSSMSpec:
    return parse(GSSMSpec, load_yaml(text)["gssm"])


def test_a_target_that_is_jumped_over_is_told(config, tmp_path, capsys):
    assert calibrate(config, "target=1.1", "tolerance=1e-6", *QUICK, f"output={tmp_path / 'o.json'}") == 0
    result = json.loads((tmp_path / "o.json").read_text())
    assert result["reached"] is False
    assert abs(result["nats_per_token"] - 1.1) < 0.05
    assert "the mean over these seeds jumps over the target" in " ".join(capsys.readouterr().out.split())


def test_named_nodes_move_alone(config, tmp_path):
    assert calibrate(config, "target=1.2", "nodes=X", *QUICK, f"output={tmp_path / 'o.json'}") == 0
    assert set(json.loads((tmp_path / "o.json").read_text())["alphas"]) == {"X"}


def test_a_target_out_of_reach_says_what_was_tried(config, tmp_path, capsys):
    assert calibrate(config, "target=1.7", *QUICK, f"output={tmp_path / 'o.json'}") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: target: no alphas give 1.7 nats/token: all that were tried give")
    assert "alphas of Z, Y were tried from 1e-06 to 1000; move other nodes (nodes=all)" in error
    assert not (tmp_path / "o.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "target: this key is required"),
        (["target=-1"], "target: should be greater than 0, found -1"),
        (["target=.nan"], "target: should be a finite number"),
        (["target=1", "seeds=1"], "seeds: should be greater than or equal to 2, found 1"),
        (["target=1", "num_sequences=1"], "num_sequences: should be greater than or equal to 2, found 1"),
        (["target=1", "tolerance=0"], "tolerance: should be greater than 0, found 0"),
        (["target=1", "nodes=Q"], "nodes: no node is named 'Q'"),
        (["target=1", "output=none/o.json"], "output: none/o.json cannot be written: there is no directory"),
        (["target=1", "save=config.yaml"], "save: config.yaml is read by this command"),
        (["target=1", "data.seq_len=1"], "data.seq_len: should be greater than or equal to 2"),
    ],
)
def test_bad_input_is_named(config, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert calibrate(config, *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_call_without_arguments_is_told_what_to_write(capsys):
    assert calibrate() == 2
    assert (
        "python -m nanollama.apps.gssm.calibrate config=configs/gssm/debug.yaml target=1.2" in capsys.readouterr().err
    )
