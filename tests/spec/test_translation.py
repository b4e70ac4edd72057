from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nanollama.spec.base import Spec, SpecError
from nanollama.spec.data import DatasetSpec
from nanollama.spec.evaluation import DifficultySpec, EntropySpec
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.grid import expand
from nanollama.spec.kinds import model_of
from nanollama.spec.load import Document, load_config, read_document
from nanollama.spec.translation import IDLE, translate
from tests.support.examples import experiment

ORIGINALS = Path(__file__).parent / "originals"
ENVIRONMENT = {"HOME": "/home/ada", "USER": "ada"}


def original(name: str, *overrides: str) -> Document:
    return read_document([f"config={ORIGINALS / name}.yaml", *overrides], ENVIRONMENT)


def problems(path: Path, model: type[Spec] = ExperimentSpec) -> dict[str, tuple[int | None, str]]:
    with pytest.raises(SpecError) as caught:
        expand(read_document([f"config={path}"], ENVIRONMENT), model)
    return {p.path: (p.line, f"{p.message} - {p.remedy}") for p in caught.value.problems}


@pytest.mark.parametrize(
    ("name", "model", "runs"),
    [
        ("train_file", ExperimentSpec, 40 * 3 * 4),
        ("train_online", ExperimentSpec, 10 * 2 * 2),
        ("train_plain", ExperimentSpec, 1),
        ("data", DatasetSpec, 6),
        ("entropy", EntropySpec, 1),
        ("difficulty", DifficultySpec, 1),
    ],
)
def test_originals_load_unedited(name: str, model: type[Spec], runs: int) -> None:
    document = original(name)
    assert model_of(document.data) is model
    assert len(expand(document, model)) == runs


def test_no_original_is_forgotten() -> None:
    names = {path.stem for path in ORIGINALS.iterdir()}
    assert names == {"train_file", "train_online", "train_plain", "data", "entropy", "difficulty"}


def test_what_the_training_config_becomes() -> None:
    runs = expand(original("train_file"), ExperimentSpec)
    spec = runs[-1].spec
    assert spec.orchestration.name == "sizes_of_latents,grid_id=39,n_data=1000000,emb_dim=64"
    assert spec.data.path == "/home/ada/data/ada/sizes/39/train.h5"
    assert spec.evaluation.data.path == "/home/ada/data/ada/sizes/39/test.h5"
    assert (spec.launcher.kind, spec.launcher.script) == ("slurm", "nanollama.apps.gssm.train")
    assert spec.launcher.log_dir == "/home/ada/logs/ada/sizes"
    assert (spec.launcher.slurm.partition, spec.launcher.slurm.time, spec.evaluation.slurm.time) == (None, None, 30)
    assert (spec.cluster.nproc_per_node, spec.launcher.slurm.nb_gpus) == (2, 2)
    assert (spec.model.implementation, spec.optim.lr, spec.optim.warmup) == ("transformer", 1e-3, 100)


def test_every_idle_key_of_the_training_config_is_noted_under_its_own_path() -> None:
    noted = {note.path for note in original("train_file").notes}
    expected = {path if path.startswith("launcher.") else f"run_config.{path}" for path in IDLE}
    absent = {"run_config.low_memory_hmm", "run_config.fast_calculation", "run_config.low_memory"}
    assert expected - absent <= noted
    assert noted - expected == {
        "launcher.name",
        "launcher.launcher",
        "launcher.script",
        "launcher.slurm.nb_gpus",
    }


def test_the_warmup_that_such_files_take_for_granted_is_stated() -> None:
    document = original("train_online")
    assert document.data["optim"]["warmup"] == 2000
    (note,) = [note for note in document.notes if "warmup" in note.path]
    assert str(note).startswith("run_config.optim.warmup: is 2000")
    assert original("train_online", "optim.steps=50").data["optim"]["warmup"] == 50
    assert original("train_online", "optim.warmup=7").data["optim"]["warmup"] == 7


def test_sets_of_graphs_and_seeds_are_numbered_graphs_slowest_and_named_after_their_files() -> None:
    runs = expand(original("data"), DatasetSpec)
    assert [run.name for run in runs][:4] == ["graph=0,seed=0", "graph=0,seed=1", "graph=0,seed=2", "graph=1,seed=0"]
    assert [item.path for item in runs[4].spec.sets] == [
        "/home/ada/data/ada/4/trainset.h5",
        "/home/ada/data/ada/4/testset.h5",
    ]
    assert [item.name for item in runs[4].spec.sets] == ["trainset", "testset"]
    assert (runs[4].spec.seed, runs[4].spec.gssm.observed.alpha) == (1, 0.1)


def test_an_entropy_file_scores_its_set_with_the_graph_that_the_set_carries() -> None:
    document = original("entropy")
    assert document.parse(EntropySpec).data.path == "/home/ada/data/ada/4/testset.h5"
    assert "run_config.gssm" in {note.path for note in document.notes}


def test_an_entropy_file_without_a_set_has_its_graph_and_seed_in_the_data(tmp_path: Path) -> None:
    text = (ORIGINALS / "entropy.yaml").read_text()
    path = tmp_path / "c.yaml"
    path.write_text(text.replace("path: $HOME/data/$USER/$GRIDID/testset.h5, n_data: 10_000", "seq_len: 9"))
    spec = read_document([f"config={path}"], ENVIRONMENT).parse(EntropySpec)
    assert (spec.data.seed, spec.data.gssm.observed.state_dim) == (1, 32)


def test_modern_configs_are_silent_and_unchanged() -> None:
    data = experiment()
    translation = translate(data)
    assert (translation.data, translation.notes, translation.origins) == (data, (), {})
    assert translation.data is not data


def test_problems_stand_at_the_users_own_keys_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    text = (ORIGINALS / "train_online.yaml").read_text()
    text = (
        text.replace("steps: 2000", "stepz: 2000")
        .replace("emb_dim: 32", "emb_dim: 0")
        .replace("mode: Slow", "mode: Slwo")
    )
    path.write_text(text)
    found = problems(path)
    lines = text.splitlines()
    assert "did you mean 'steps'?" in found["run_config.optim.stepz"][1]
    for key, word in {
        "run_config.optim.stepz": "stepz",
        "run_config.model.emb_dim": "emb_dim: 0",
        "launcher.grid.data.gssm.nodes.0.0.mode": "Slwo",
    }.items():
        line, message = found[key]
        assert line is not None, message
        assert word in lines[line - 1]


def test_a_variable_that_is_not_set_has_its_line() -> None:
    with pytest.raises(SpecError) as caught:
        read_document([f"config={ORIGINALS / 'data.yaml'}", "sets.1.path=$NOWHERE"], {"HOME": "/home/ada"})
    found = {p.path: (p.line, p.message) for p in caught.value.problems}
    assert found == {
        "sets.0.path": (12, "the variable $USER is not set"),
        "sets.1.path": (None, "the variable $NOWHERE is not set"),
    }


def test_a_misspelt_seed_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text((ORIGINALS / "data.yaml").read_text().replace("seed:", "eed:"))
    assert problems(path, DatasetSpec)["eed"] == (3, "unknown key - did you mean 'seed'?")


@pytest.mark.parametrize(
    ("change", "key", "message"),
    [
        ({"launcher": {"launcher": "lsf"}}, "launcher.launcher", "no launcher is called 'lsf' - use sbatch or local"),
        ({"optim": {"steps": 1}}, "run_config.optim", "'optim' stands both inside and beside run_config - remove one"),
    ],
)
def test_contradictions(tmp_path: Path, change: dict[str, Any], key: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"run_config": experiment(), **change}))
    with pytest.raises(SpecError) as caught:
        load_config(ExperimentSpec, [f"config={path}"])
    (problem,) = caught.value.problems
    assert (problem.path, f"{problem.message} - {problem.remedy}") == (key, message)
    assert problem.line is not None


@pytest.mark.parametrize("key", ["optim.steps", "run_config.optim.steps"])
def test_overrides_reach_nested_files_by_either_path_and_have_no_line(tmp_path: Path, key: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"run_config": experiment()}))
    assert load_config(ExperimentSpec, [f"config={path}", f"{key}=77", "optim.warmup=1"]).optim.steps == 77
    with pytest.raises(SpecError) as caught:
        load_config(ExperimentSpec, [f"config={path}", f"{key}=0"])
    places = {p.path: p.line for p in caught.value.problems}
    assert places == {"optim.steps": None}


def test_an_idle_axis_is_left_out_of_the_grid(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    grid = {"model": {"block": {"seq_len": [8, 16]}}, "optim": {"lr": [0.1, 0.2]}}
    path.write_text(yaml.safe_dump({"launcher": {"grid": grid}, "run_config": experiment()}))
    document = read_document([f"config={path}"])
    assert len(expand(document, ExperimentSpec)) == 2
    assert "launcher.grid.model.block.seq_len" in {note.path for note in document.notes}


def test_a_number_for_gridid_is_asked_for_by_name() -> None:
    data = experiment() | {"data": {"path": "$GRIDID.h5", "batch_size": 8}}
    document = Document(data, "", (), {}, frozenset())
    with pytest.raises(
        SpecError, match=r"data.path: \$GRIDID stands for grid_id, which is not given - add `grid_id: 0`"
    ):
        document.parse(ExperimentSpec)
    assert Document({**data, "grid_id": 3}, "", (), {}, frozenset()).parse(ExperimentSpec).data.path == "3.h5"
    with pytest.raises(SpecError, match="grid_id: should be a number from 0 on"):
        Document({**data, "grid_id": -1}, "", (), {}, frozenset()).parse(ExperimentSpec)


def test_a_grid_is_refused_where_one_run_is_wanted() -> None:
    with pytest.raises(SpecError, match=r"^launcher.grid.data .*several runs, and one is wanted here - start all with"):
        original("train_online").parse(ExperimentSpec)
    assert original("train_online", "grid={}").parse(ExperimentSpec).optim.steps == 2000


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"optim": {"steps": 10, "warmup": 2, "scheduler": "wsd", "decay_ratio": 0.9}}, "optim.decay_ratio"),
        ({"evaluation": {"data": {"n_data": 3}}}, "evaluation.data.n_data"),
        ({"evaluation": {"data": {"split": "train"}}}, "evaluation.data.split"),
        ({"evaluation": {"num_sequences": 5, "data": {"path": "a.h5"}}}, "evaluation.num_sequences"),
    ],
)
def test_sections_are_checked_against_each_other(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(experiment() | change))
    assert set(problems(path)) == {problem}
