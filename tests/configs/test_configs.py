from __future__ import annotations

import re
from pathlib import Path

import pytest

from nanollama.data.bounds import Estimate, entropy
from nanollama.data.gssm import draw_kernels
from nanollama.spec.data import DatasetSpec
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.load import load_config

GSSM = Path(__file__).parents[2] / "configs" / "gssm"
EXPERIMENTS = ("base", "debug", "dense", "low_entropy", "sparse")


def experiment(name: str) -> ExperimentSpec:
    return load_config(ExperimentSpec, [f"config={GSSM / name}.yaml"])


@pytest.fixture(scope="module")
def measured() -> dict[str, Estimate]:
    found = {}
    for name in EXPERIMENTS:
        data = experiment(name).data
        found[name] = entropy(draw_kernels(data.gssm, data.seed), data.seq_len, 200, split="check")
    return found


def test_no_config_is_forgotten():
    assert {path.stem for path in GSSM.glob("*.yaml")} == {*EXPERIMENTS, "data"}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_load(name):
    assert experiment(name).orchestration.name == name


def test_the_dataset_loads_and_has_the_graph_of_base():
    spec = load_config(DatasetSpec, [f"config={GSSM / 'data.yaml'}"])
    base = experiment("base").data
    assert [item.path for item in spec.sets] == ["data/gssm/train.h5", "data/gssm/test.h5"]
    assert (spec.gssm, spec.seq_len, spec.seed) == (base.gssm, base.seq_len, base.seed)


@pytest.mark.parametrize("path", sorted(GSSM.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_first_line_is_the_question_that_the_config_serves(path):
    first = path.read_text().splitlines()[0]
    assert re.fullmatch(r"# [A-Z].*\?( \(.*\))?", first)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_stated_entropy_is_what_the_model_has(name, measured):
    stated = re.search(r"Entropy: ([\d.]+) ± ([\d.]+) nats/token over 10,000", (GSSM / f"{name}.yaml").read_text())
    mean, stderr = float(stated[1]), float(stated[2])
    assert abs(measured[name].mean - mean) < 4 * (measured[name].stderr ** 2 + stderr**2) ** 0.5


def test_sparse_and_dense_differ_in_parents_and_alphas_only_and_have_one_entropy(measured):
    sparse, dense = experiment("sparse"), experiment("dense")
    changed = {"parents": (), "alpha": 1.0}
    plain = [[node.model_copy(update=changed) for node in spec.data.gssm.nodes] for spec in (sparse, dense)]
    assert plain[0] == plain[1]
    assert sparse.model == dense.model
    assert sparse.optim == dense.optim
    assert sum(len(n.parents) for n in sparse.data.gssm.nodes) < sum(len(n.parents) for n in dense.data.gssm.nodes)
    assert measured["sparse"].mean == pytest.approx(measured["dense"].mean, rel=0.05)


def test_low_entropy_has_the_graph_of_base_and_about_half_its_entropy(measured):
    low, base = experiment("low_entropy"), experiment("base")
    plain = [[node.model_copy(update={"alpha": 1.0}) for node in spec.data.gssm.nodes] for spec in (low, base)]
    assert plain[0] == plain[1]
    assert low.model == base.model
    assert 0.4 < measured["low_entropy"].mean / measured["base"].mean < 0.6


def test_the_debug_run_saves_at_least_three_checkpoints_and_a_smooth_curve():
    spec = experiment("debug")
    assert spec.optim.steps // spec.orchestration.checkpoint.period >= 3
    assert spec.optim.steps // spec.orchestration.logging.period >= 50
