from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from nanollama.spec.base import Problem, SpecError
from nanollama.spec.data import DatasetSpec, FileData
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.grid import Variant, expand
from nanollama.spec.kinds import model_of
from nanollama.spec.load import read_document

ROOT = Path(__file__).parents[2]
SWEEPS = ROOT / "configs" / "sweeps"
FILES = sorted(SWEEPS.glob("*.yaml"))
DATA = [path for path in FILES if path.stem.endswith("_data")]
TRAINING = [path for path in FILES if path not in DATA]
EVERY = 97

RUNS = {
    "adaptation": 1,
    "exp0": 2 * 3**4,
    "exp1": 13 * 10 * 10 * 11,
    "exp1_baseline": 13 * 10 * 10,
    "exp2": 4 * 10 * 10 * 11,
    "exp5": 14 * 10 * 10 * 11,
    "exp9": 10 * 10 * 8 * 7,
    "exp10": 36 * 10 * 2 * 3,
    "exp11": 2 * 10 * 2 * 2,
    "exp12": 36 * 10 * 8 * 7,
    "exp13": 24 * 10 * 5 * 5,
    "exp14": 18 * 10 * 5 * 5,
    "exp15": 2 * 10 * 3,
    "exp16": 42 * 10 * 5 * 5,
    "exp101": 13 * 10 * 10 * 11,
    "exp102": 4 * 10 * 10 * 11,
    "exp103": 4 * 10 * 10 * 11,
}


@cache
def variants(path: Path) -> list[Variant[Any]]:
    document = read_document([f"config={path}"], {})
    return expand(document, model_of(document.data), check=path in DATA)


def experiment_name(path: Path) -> str:
    return re.sub(r"_seeds_\d-\d$", "", path.stem)


def test_every_sweep_has_the_runs_of_its_experiment() -> None:
    found: dict[str, int] = {}
    for path in TRAINING:
        found[experiment_name(path)] = found.get(experiment_name(path), 0) + len(variants(path))
    assert found == RUNS


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_the_runs_are_valid(path: Path) -> None:
    runs = variants(path)
    for run in {run.index: run for run in (*runs[::EVERY], runs[-1])}.values():
        assert isinstance(run.spec, ExperimentSpec)
        assert run.spec.orchestration.name.startswith(path.stem)


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_all_that_keeps_a_sweep_from_running_today_is_not_available_yet(path: Path) -> None:
    problems: tuple[Problem, ...] = ()
    try:
        assert variants(path)[-1].spec
    except SpecError as error:
        problems = error.problems
    assert all("is not available yet" in problem.message for problem in problems)


@pytest.mark.parametrize("path", DATA, ids=lambda path: path.stem)
def test_training_reads_just_the_sets_that_are_made(path: Path) -> None:
    made: dict[str, dict[str, int]] = {"train": {}, "test": {}}
    for variant in variants(path):
        assert isinstance(variant.spec, DatasetSpec)
        for item in variant.spec.sets:
            made[item.name][item.path] = item.n_data
    name = path.stem.removesuffix("_data")
    read = set()
    for training in (p for p in TRAINING if experiment_name(p) in (name, f"{name}_baseline")):
        ids = {run.values.get("grid_id") for run in variants(training)}
        runs = [next(run for run in variants(training) if run.values.get("grid_id") == i) for i in ids]
        for spec in (run.spec for run in (*runs, variants(training)[-1])):
            assert isinstance(spec.data, FileData)
            assert (spec.data.n_data or 0) <= made["train"][spec.data.path]
            assert made["test"][spec.evaluation.data.path] == 10_000
            read.add(spec.data.path)
    assert read == set(made["train"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_first_line_is_the_question_that_the_sweep_answers(path: Path) -> None:
    assert re.fullmatch(r"# [A-Z].*\?( \(.*\))?", path.read_text().splitlines()[0])


@pytest.mark.parametrize("name", ["configs.md", "sweeps.md"])
def test_the_tables_of_the_documents_are_those_of_the_specs_and_configs(name: str) -> None:
    spec = importlib.util.spec_from_file_location("config_docs", ROOT / "scripts" / "config_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (ROOT / "docs" / name).read_text()
    assert module.written(text) == text, "run `python scripts/config_docs.py`"
