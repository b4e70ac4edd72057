"""What a worker runs for an attempt: registered apps on checked configs, and nothing else."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from nanollama.spec.evaluation import EntropySpec
from nanollama.spec.experiment import APPS, ExperimentSpec
from tests.support.examples import experiment
from worker.executors.base import Attempt, Refused
from worker.executors.commands import app_command, nproc_per_node, read_spec

DIRECTORY = Path("/root/of/runs/r1/1")
ARGUMENTS = [f"config={DIRECTORY}/config.yaml", f"attempt_dir={DIRECTORY}"]


def attempt(app: str, config: dict[str, Any]) -> Attempt:
    return Attempt("a1", DIRECTORY, app, config)


def entropy() -> dict[str, Any]:
    return {"app": "gssm.entropy", "data": experiment()["data"], "num_sequences": 8}


def test_training_runs_as_ranks_under_torchrun() -> None:
    given = attempt("gssm.train", experiment() | {"cluster": {"nproc_per_node": 2}})
    spec = read_spec(given)
    assert isinstance(spec, ExperimentSpec)
    command = app_command(given, spec)
    assert command[0] == sys.executable
    assert "--standalone" in command
    assert command[command.index("--nproc-per-node") + 1] == "2" == str(nproc_per_node(spec))
    module, *arguments = command[command.index("-m", 2) + 1 :]
    assert module == "nanollama.apps.gssm.train"
    assert arguments == ARGUMENTS


def test_what_does_not_train_is_one_plain_process() -> None:
    given = attempt("gssm.entropy", entropy())
    spec = read_spec(given)
    assert isinstance(spec, EntropySpec)
    assert app_command(given, spec) == [sys.executable, "-m", "nanollama.apps.gssm.entropy", *ARGUMENTS]
    assert nproc_per_node(spec) == 1


@pytest.mark.parametrize("name", APPS)
def test_every_registered_module_is_there_and_its_configs_name_it(name: str) -> None:
    assert importlib.util.find_spec(APPS[name].module) is not None
    assert APPS[name].spec.model_fields["app"].default == name


def test_a_foreign_app_is_refused() -> None:
    with pytest.raises(Refused, match=r"knows no app 'os\.system'; it runs: gssm\.entropy, gssm\.train"):
        read_spec(attempt("os.system", experiment()))


def test_a_config_of_another_app_than_the_lease_is_refused() -> None:
    with pytest.raises(Refused, match=r"of the app 'gssm\.entropy', the lease of 'gssm\.train'"):
        read_spec(attempt("gssm.train", entropy()))


def test_a_config_is_checked_by_the_class_of_its_app() -> None:
    config = entropy() | {"model": experiment()["model"]}
    with pytest.raises(Refused, match="model: unknown key"):
        read_spec(attempt("gssm.entropy", config))
