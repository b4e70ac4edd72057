from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.apps.gssm import entropy as app
from nanollama.data.filter import Filter
from nanollama.data.gssm import draw_kernels, load_kernels, save_kernels
from nanollama.data.hdf5 import DatasetWriter
from nanollama.data.sampler import Sampler
from nanollama.spec.base import canonical_json
from nanollama.spec.command import run_command
from nanollama.spec.gssm import GSSMSpec, NodeSpec
from tests.support.examples import experiment
from tests.support.gssm import Oracle, graphs

GRAPH = GSSMSpec.model_validate(experiment()["data"]["gssm"])
PAIR = GSSMSpec(
    nodes=(
        NodeSpec(name="Z", state_dim=2, alpha=1.0),
        NodeSpec(name="X", state_dim=3, alpha=1.0, parents=("Z",), observed=True),
    )
)


def entropy(*arguments: object) -> int:
    return run_command(app.main, [str(argument) for argument in arguments], usage=app.__doc__)


def result(folder: Path, *arguments: object) -> dict:
    target = folder / "result.json"
    assert entropy(*arguments, f"output={target}") == 0
    return json.loads(target.read_text(), parse_constant=pytest.fail)


def written(folder: Path, content: dict) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return f"config={path}"


def pair_files(folder: Path, tokens: object = ((0, 1, 2), (0, 0, 1)), **tables: np.ndarray | None) -> list[str]:
    """Kernels that write down themselves, and sequences."""
    content: dict = {
        "spec": np.array(canonical_json(PAIR)),
        "kernel.Z.0": np.array([[0.9, 0.1], [0.4, 0.6]]),
        "kernel.X.0": np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]),
    }
    content |= {f"kernel.{name}.0": table for name, table in tables.items()}
    np.savez(folder / "k.npz", **{key: value for key, value in content.items() if value is not None})
    np.savez(folder / "s.npz", tokens=np.array(tokens))
    return [f"kernels={folder / 'k.npz'}", f"sequences={folder / 's.npz'}"]


def test_the_entropy_of_a_training_config_is_that_of_fresh_sequences_by_an_oracle(tmp_path, capsys):
    config = experiment()
    config["data"] |= {"seq_len": 4, "seed": 5}
    found = result(tmp_path, written(tmp_path, config), "num_sequences=20")
    kernels = draw_kernels(GRAPH, 5)
    oracle = Oracle(kernels)
    tokens = Sampler(kernels, 0, "entropy").sample(range(20), 4)
    log = np.array([[math.log(oracle.probability(tuple(row[: t + 1]))) for t in range(4)] for row in tokens.tolist()])
    scores = -np.diff(log, axis=1)
    assert found["nats_per_token"] == pytest.approx(scores.mean(), rel=1e-9)
    assert found["stderr"] == pytest.approx(scores.mean(axis=1).std(ddof=1) / 20**0.5, rel=1e-9)
    assert found["by_position"]["mean"] == pytest.approx(scores.mean(axis=0), rel=1e-9)
    assert found["by_position"]["stderr"] == pytest.approx(scores.std(axis=0, ddof=1) / 20**0.5, rel=1e-9)
    assert (found["num_sequences"], found["seq_len"], found["seed"]) == (20, 4, 5)
    assert found["kernels_hash"] == kernels.content_hash()
    assert found["seconds"] > 0
    printed = capsys.readouterr().out
    assert f"{found['nats_per_token']:.4f} ± {found['stderr']:.4f} nats/token over 20 sequences" in printed
    assert "estimate of the entropy rate" in printed
    assert found["method"] in printed
    assert "bits" not in printed


def test_a_config_that_makes_sets_and_a_file_of_sequences_give_the_same(tmp_path):
    config = experiment()
    config["data"] |= {"seq_len": 12, "seed": 4}
    online = result(tmp_path, written(tmp_path, config), "num_sequences=30")
    sets = {"seq_len": 12, "seed": 4, "gssm": config["data"]["gssm"], "sets": [{"name": "a", "path": "a", "n_data": 1}]}
    kernels = draw_kernels(GRAPH, 4)
    with DatasetWriter(tmp_path / "a.h5", kernels, split="train", seq_len=12) as writer:
        writer.append(Sampler(kernels, 4, "train").sample(range(2), 12))
    config["data"] = {"path": str(tmp_path / "a.h5"), "batch_size": 4}
    for other in (sets, config):
        found = result(tmp_path, written(tmp_path, other), "num_sequences=30")
        assert {**found, "seconds": 0} == {**online, "seconds": 0}


def test_overrides_dtype_and_bits(tmp_path, capsys):
    config = written(tmp_path, experiment())
    double = result(tmp_path, config, "num_sequences=50", "data.seq_len=9", "data.gssm.nodes.0.alpha=0.2", "bits=true")
    printed = capsys.readouterr().out
    assert f"{double['nats_per_token'] / math.log(2):.4f} ± {double['stderr'] / math.log(2):.4f} bits/token" in printed
    assert double["seq_len"] == 9
    assert double["kernels_hash"] != draw_kernels(GRAPH, 0).content_hash()
    single = result(
        tmp_path, config, "num_sequences=50", "data.seq_len=9", "data.gssm.nodes.0.alpha=0.2", "dtype=float32"
    )
    assert single["nats_per_token"] == pytest.approx(double["nats_per_token"], abs=1e-5)
    assert single["nats_per_token"] != double["nats_per_token"]


def test_kernels_that_are_saved_score_the_sequences_as_the_config_does(tmp_path):
    found = result(tmp_path, written(tmp_path, experiment()), "num_sequences=10", f"save={tmp_path / 'k.npz'}")
    kernels = load_kernels(tmp_path / "k.npz")
    assert kernels.content_hash() == draw_kernels(GRAPH, 0).content_hash() == found["kernels_hash"]
    np.savez(tmp_path / "s.npz", tokens=Sampler(kernels, 0, "entropy").sample(range(10), 16))
    again = result(tmp_path, f"kernels={tmp_path / 'k.npz'}", f"sequences={tmp_path / 's.npz'}")
    assert again["nats_per_token"] == pytest.approx(found["nats_per_token"], rel=1e-12)
    assert again["by_position"]["mean"] == pytest.approx(found["by_position"]["mean"], rel=1e-12)
    assert np.mean(again["nll"]) / 15 == pytest.approx(found["nats_per_token"], rel=1e-12)
    assert "seed" not in again


@settings(deadline=None, max_examples=25)
@given(spec=graphs(), seed=st.integers(0, 2**32), data=st.data())
def test_any_foreign_model_is_scored_as_an_oracle_scores_it(spec, seed, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign")
    kernels = draw_kernels(spec, seed)
    oracle = Oracle(kernels)
    length = oracle.max_len(4)
    symbols = st.integers(0, spec.observed.state_dim - 1)
    rows = data.draw(st.lists(st.lists(symbols, min_size=length - 1, max_size=length - 1), min_size=1, max_size=3))
    kind = data.draw(st.sampled_from(["u1", "i2", ">i4", "u8"]))
    tokens = np.array([[0, *row] for row in rows], dtype=kind)
    save_kernels(kernels, folder / "k.npz")
    np.savez(folder / "s.npz", tokens=tokens)
    found = result(folder, f"kernels={folder / 'k.npz'}", f"sequences={folder / 's.npz'}")
    expected = [-math.log(oracle.probability((0, *row))) for row in rows]
    assert found["nll"] == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert found["num_sequences"] == len(rows)
    assert (found["stderr"] is None) == (len(rows) == 1)


def test_zeros_of_foreign_kernels_are_raised_to_the_floor_and_the_rows_normalised(tmp_path):
    files = pair_files(tmp_path, [[0, 2]], Z=np.eye(2), X=np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    floor, low, high = 1e-10, 1e-10 / (1 + 2e-10), 1 / (1 + 2e-10)
    stay, leave = 1 / (1 + floor), floor / (1 + floor)
    assert result(tmp_path, *files)["nll"] == pytest.approx([-math.log(stay * low + leave * high)], rel=1e-12)


def in_context(*nodes: dict, seq_len: int = 6) -> dict:
    config = experiment()
    config["data"] |= {"seq_len": seq_len, "gssm": {"nodes": list(nodes)}}
    return config


HIDDEN = {"name": "Z", "state_dim": 2, "alpha": 0.5, "mode": "context"}
SEEN = {"name": "X", "state_dim": 3, "alpha": 0.5, "parents": ["Z"], "observed": True}


def test_in_context_mode_both_bounds_and_their_gap_are_told(tmp_path, capsys):
    found = result(tmp_path, written(tmp_path, in_context(HIDDEN, SEEN)), "num_sequences=20", "particles=400")
    assert found["lower"] <= found["upper"] + 4 * found["gap_stderr"]
    assert found["nats_per_token"] == (found["lower"] + found["upper"]) / 2
    assert found["gap"] == pytest.approx(5 * (found["upper"] - found["lower"]), abs=1e-9)
    assert abs(found["gap"]) < 0.2
    assert found["by_position"] is None
    assert found["num_sequences"] == 20
    assert "400 particles" in found["method"]
    printed = capsys.readouterr().out
    assert f"lower bound {found['lower']:.4f} ± {found['lower_stderr']:.4f} nats/token" in printed
    assert f"gap {found['gap']:.3f} ± {found['gap_stderr']:.3f} nats a sequence" in printed


def test_in_context_mode_a_formula_is_exact_where_there_is_one(tmp_path):
    urn = {"name": "X", "state_dim": 3, "alpha": 0.5, "parents": ["Z"], "mode": "context", "observed": True}
    constant = {"name": "Z", "state_dim": 1, "alpha": 1.0}
    found = result(tmp_path, written(tmp_path, in_context(constant, urn)), "num_sequences=10", f"save={tmp_path / 'k'}")
    assert found["method"] == "closed form"
    assert "gap" not in found
    assert found["by_position"]["mean"][0] == pytest.approx(math.log(3), abs=1e-6)
    np.savez(tmp_path / "s.npz", tokens=[[0, 1, 1], [0, 2, 1]])
    again = result(tmp_path, f"kernels={tmp_path / 'k'}", f"sequences={tmp_path / 's.npz'}")
    assert again["nll"] == pytest.approx([math.log(3) + math.log(5 / 3), math.log(3) + math.log(5)], abs=1e-6)


def test_in_context_mode_the_particles_are_explained(tmp_path, capsys):
    config = written(tmp_path, in_context(HIDDEN, SEEN))
    assert entropy(config, "num_sequences=3", "particles=50", "explain=true", f"save={tmp_path / 'k.npz'}") == 0
    assert "Z: 2 states, rows integrated out, Polya urns\nX: 3 states, kernels that are fixed\n" in (
        printed := capsys.readouterr().out
    )
    assert "\n50 particles take 4,400 bytes a sequence\n" in printed
    np.savez(tmp_path / "s.npz", tokens=[[0, 1, 1]])
    assert entropy(f"kernels={tmp_path / 'k.npz'}", f"sequences={tmp_path / 's.npz'}", "explain=true") == 0
    assert "10,000 particles take" in capsys.readouterr().out


def test_a_formula_that_does_not_hold_is_an_error_at_the_graph(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("nanollama.data.polya.MAX_FLOOR_ERROR", 0)
    urn = {"name": "X", "state_dim": 3, "alpha": 0.5, "kernel_type": "fullrank", "mode": "context", "observed": True}
    assert entropy(written(tmp_path, in_context(urn)), "num_sequences=3") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: data.gssm.nodes: sequence ")
    assert "the floor of the kernels may change" in error


def test_foreign_sequences_get_one_side_in_context_mode(tmp_path):
    config = written(tmp_path, in_context(HIDDEN, SEEN))
    both = result(tmp_path, config, "num_sequences=20", "particles=400", f"save={tmp_path / 'k.npz'}")
    tokens = Sampler(load_kernels(tmp_path / "k.npz"), 0, "entropy").sample(range(20), 6)
    np.savez(tmp_path / "s.npz", tokens=tokens)
    files = [f"kernels={tmp_path / 'k.npz'}", f"sequences={tmp_path / 's.npz'}"]
    found = result(tmp_path, *files, "particles=400")
    assert found["upper"] == pytest.approx(both["upper"], abs=0.02)
    assert found["lower"] is found["gap"] is found["by_position"] is None
    assert np.mean(found["nll"]) / 5 == pytest.approx(found["nats_per_token"], rel=1e-12)
    np.savez(tmp_path / "s.npz", tokens=[[0, 1], [0, 7]])
    assert entropy(*files) == 2


@pytest.mark.parametrize("option", ["dtype=float32", "particles=50"])
def test_options_that_mean_nothing_for_the_graph_are_refused(tmp_path, capsys, option):
    graph = in_context(HIDDEN, SEEN) if option.startswith("dtype") else experiment()
    assert entropy(written(tmp_path, graph), "num_sequences=3", option) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {option.partition('=')[0]}: ")
    assert "context mode" in error


def test_positions_that_are_printed_grow_from_the_first_to_the_last():
    assert app.shown_positions(1) == [1]
    assert app.shown_positions(2) == [1, 2]
    for last in (3, 63, 255, 10_000):
        shown = app.shown_positions(last)
        assert shown[0] == 1
        assert shown[-1] == last
        assert len(shown) <= 7
        assert shown == sorted(set(shown))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[0, 1, 1], [0, 3, 1]], "sequence 1 holds 3 at position 1; the model's symbols go from 0 to 2"),
        ([[0, -1]], "sequence 0 holds -1 at position 1"),
        (np.array([[0, 2**64 - 1]], dtype=np.uint64), "sequence 0 holds 18446744073709551615 at position 1"),
        ([[0, 1], [2, 1]], "sequence 1"),
        ([[0.0, 1.0]], "tokens are float64 [1, 2] - write `tokens`, integers of shape [sequences, positions]"),
        ([0, 1], "tokens are int64 [2] - write"),
        ([[True, False]], "tokens are bool [1, 2] - write"),
        ([[0], [0]], "tokens of shape [2, 1] leave nothing to predict"),
        (np.zeros((0, 5), dtype=int), "tokens of shape [0, 5] leave nothing to predict"),
    ],
)
def test_sequences_that_are_none_are_refused(tmp_path, capsys, tokens, message):
    assert entropy(*pair_files(tmp_path, tokens), f"output={tmp_path / 'o.json'}") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o.json").exists()


def test_a_sequence_that_starts_with_another_token_is_named(tmp_path, capsys):
    assert entropy(*pair_files(tmp_path, [[0, 1], [2, 1]])) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: sequences: ")
    assert "sequence 1" in error
    assert "position 0" in error


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04broken"])
def test_files_of_sequences_that_are_no_npz_are_refused(tmp_path, capsys, content):
    files = pair_files(tmp_path)
    (tmp_path / "s.npz").write_bytes(content)
    assert entropy(*files) == 2
    assert "is not a readable .npz file" in capsys.readouterr().err
    (tmp_path / "s.npz").unlink()
    assert entropy(*files) == 2
    assert f"sequences: there is no file {tmp_path / 's.npz'} - check the path" in capsys.readouterr().err
    np.savez(tmp_path / "s.npz", token=np.zeros((1, 2), dtype=int))
    assert entropy(*files) == 2
    assert "has no `tokens` - write" in capsys.readouterr().err


def test_wrong_kernels_are_named_with_their_row(tmp_path, capsys):
    files = pair_files(tmp_path, Z=np.array([[0.5, 0.5], [0.5, 0.6]]), X=None)
    assert entropy(*files) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "kernel.Z.0 (node 'Z', table 0) has row 1 which sums to 1.1, not to 1" in errors[0]
    assert "kernel.X.0 (node 'X', table 0) is missing" in errors[1]
    assert entropy(files[0].replace("k.npz", "none.npz"), files[1]) == 2
    assert "kernels: there is no file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "config: config=FILE is missing"),
        (["num_sequences=5"], "config: config=FILE is missing - write config=FILE, or kernels=K.npz sequences=S.npz"),
        (["kernels=k.npz"], "sequences: kernels= is given without sequences= - add sequences=FILE.npz"),
        (["sequences=s.npz"], "kernels: sequences= is given without kernels="),
        (["sequences=s.npz", "kernels="], "kernels: sequences= is given without kernels="),
        (
            ["config=c.yaml", "kernels=k.npz", "sequences=s.npz"],
            "config: config=c.yaml and kernels= are given together",
        ),
        (["kernels=k.npz", "sequences=s.npz", "num_sequences=9"], "num_sequences: belongs to a config"),
        (["kernels=k.npz", "sequences=s.npz", "save=x.npz"], "save: belongs to a config"),
        (["config=c.yaml", "num_sequences=1"], "num_sequences: should be greater than or equal to 2, found 1"),
        (["config=c.yaml", "num_sequences=many"], "num_sequences: should be a valid integer, found 'many'"),
        (["config=c.yaml", "num_sequences=[1"], "num_sequences: broken YAML"),
        (["config=c.yaml", "dtype=float16"], "dtype: should be 'float64' or 'float32', found 'float16'"),
        (["config=c.yaml", "output="], "output: no file is named - write output=FILE"),
        (["config=none.yaml"], "config: cannot read none.yaml"),
        (["config=c.yaml", "num_seqences=5"], "num_seqences: unknown key"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(yaml.safe_dump(experiment()))
    assert entropy(*arguments) == 2
    assert message in capsys.readouterr().err


def test_files_that_cannot_be_written_are_refused_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(app, "read_source", lambda _: pytest.fail("work was begun"))
    monkeypatch.chdir(tmp_path)
    config = written(tmp_path, experiment())
    Path("folder").mkdir()
    for arguments, message in [
        (["output=none/o.json"], "output: none/o.json cannot be written: there is no directory"),
        (["output=folder"], "output: folder is a directory - name another file"),
        (["output=a", "save=./a"], "save: ./a is written by output= too"),
        (["output=config.yaml"], "output: config.yaml is read by this command"),
        (["output=none/o.json", "save=folder"], "save: folder is a directory"),
    ]:
        assert entropy(config, *arguments) == 2
        assert message in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "folder"]


def test_a_result_replaces_an_older_one_and_leaves_nothing_else(tmp_path):
    config = written(tmp_path, experiment())
    (tmp_path / "result.json").write_text("old")
    assert result(tmp_path, config, "num_sequences=5")["num_sequences"] == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "result.json"]


def test_a_graph_out_of_reach_blames_the_key_that_holds_it(tmp_path, capsys):
    nodes = [{"name": f"Z{i}", "state_dim": 100, "alpha": 1.0} for i in range(6)]
    nodes.append({"name": "X", "state_dim": 4, "alpha": 1.0, "parents": [n["name"] for n in nodes], "observed": True})
    config = experiment()
    config["data"]["gssm"] = {"nodes": nodes}
    assert entropy(written(tmp_path, config)) == 2
    assert capsys.readouterr().err.startswith("error: data.gssm.nodes: ")
    sets = {"seq_len": 9, "gssm": {"nodes": nodes}, "sets": [{"name": "a", "path": "a", "n_data": 1}]}
    assert entropy(written(tmp_path, sets)) == 2
    assert capsys.readouterr().err.startswith("error: gssm.nodes: ")


def test_the_command_needs_no_torch(tmp_path):
    config = written(tmp_path, experiment())
    np.savez(tmp_path / "s.npz", tokens=[[0, 1, 2]])
    first = [config, "num_sequences=3", f"save={tmp_path / 'k.npz'}", "explain=true"]
    second = [f"kernels={tmp_path / 'k.npz'}", f"sequences={tmp_path / 's.npz'}"]
    code = "import sys; sys.modules['torch'] = None; from nanollama.apps.gssm.entropy import main; "
    code += f"sys.exit(main({first}) or main({second}))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


def test_the_choice_of_the_method_is_printed_on_demand(tmp_path, capsys):
    config = written(tmp_path, experiment())
    assert entropy(config, "num_sequences=3") == 0
    without = capsys.readouterr().out
    assert entropy(config, "num_sequences=3", "explain=true") == 0
    printed = capsys.readouterr().out
    assert Filter(draw_kernels(GRAPH, 0)).explain() in printed
    assert Filter(draw_kernels(GRAPH, 0)).explain() not in without


def test_help_says_how_it_is_called(capsys):
    assert entropy("--help") == 0
    assert "kernels=K.npz sequences=S.npz" in capsys.readouterr().out
