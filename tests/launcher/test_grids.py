"""Grids without a server: run by run on this machine, and as one array on Slurm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nanollama.cluster.slurm import array_ranges
from nanollama.launcher import main
from nanollama.monitor.attempt import write_result
from nanollama.spec.base import SpecError
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.load import load_config
from nanollama.spec.rundir import STDOUT, STOP_REQUESTED, Result
from tests.support.training import write_config
from tests.support.waiting import eventually

SCRIPT = "script=nanollama.apps.gssm.train"
GRID = {"optim.lr": [0.1, 0.2, 0.3]}
RUNS = ["lr=0.1", "lr=0.2", "lr=0.3"]


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Takes the place of the interpreter that runs jobs; to be filled with a shell script."""
    program = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(program))
    return program


def write_program(program: Path, body: str) -> None:
    """Write the script; in it $attempt is the attempt directory, $run the directory of the run."""
    head = '#!/bin/sh\nfor word; do case "$word" in config=*) config="${word#config=}";; esac; done\n'
    program.write_text(f'{head}attempt="$(dirname "$config")"\nrun="$(dirname "$attempt")"\n{body}\n')
    program.chmod(0o755)


def arguments(tmp_path: Path, **overrides: object) -> list[str]:
    config = write_config(tmp_path / "c.yaml", grid=GRID, **overrides)
    return [SCRIPT, f"config={config}", f"launcher.log_dir={tmp_path / 'grid'}"]


@pytest.mark.parametrize("parallel", [None, 2])
def test_every_run_has_a_directory_under_its_name_and_the_summary_says_how_it_went(
    tmp_path: Path, python: Path, capfd: pytest.CaptureFixture[str], parallel: int | None
) -> None:
    write_program(python, 'echo "this is $run"; [ "${run##*/}" != lr=0.2 ] || exit 3')
    assert main([*arguments(tmp_path, launcher={"parallel": parallel})]) == 1
    printed = capfd.readouterr()
    assert "2 of 3 runs finished\nfailed with exit code 3: lr=0.2\n" in printed.err
    assert "[3/3] lr=0.3\n" in printed.err
    for name, lr in zip(RUNS, GRID["optim.lr"], strict=True):
        attempt_dir = tmp_path / "grid" / name / "1"
        said = f"this is {attempt_dir.parent}\n"
        if parallel:
            assert (attempt_dir / STDOUT).read_text() == said
        else:
            assert said in printed.out
        spec = load_config(ExperimentSpec, [f"config={attempt_dir / 'config.yaml'}"])
        assert (spec.optim.lr, spec.orchestration.name) == (lr, f"run,{name}")
        assert spec.launcher.log_dir == str(attempt_dir.parent)


def test_finished_runs_are_not_run_again(tmp_path: Path, python: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_program(python, 'echo "this is $run"')
    assert main(arguments(tmp_path)) == 0
    for name in RUNS[:2]:
        write_result(tmp_path / "grid" / name / "1", Result(step=10, tokens=1, seconds=1.0))
    capfd.readouterr()
    assert main(arguments(tmp_path)) == 0
    printed = capfd.readouterr()
    assert printed.out.count("is finished: ") == 2
    assert "1 of 1 runs finished" in printed.err
    assert sorted(path.name for path in (tmp_path / "grid" / "lr=0.3").iterdir() if path.is_dir()) == ["1", "2"]
    write_result(tmp_path / "grid" / "lr=0.3" / "2", Result(step=10, tokens=1, seconds=1.0))
    assert main(arguments(tmp_path)) == 0
    with pytest.raises(SpecError, match=r"^optim.weight_decay: is 0.5, but .*lr=0.1 holds a run with 0.1"):
        main([*arguments(tmp_path), "optim.weight_decay=0.5"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_stop_reaches_the_runs_under_way_and_no_other_is_started(
    tmp_path: Path, python: Path, capfd: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    body = f'touch "$run/ready"; until [ -e "$attempt/{STOP_REQUESTED}" ]; do sleep 0.01; done; exit 75'
    write_program(python, body)

    def ask() -> None:
        ready = [tmp_path / "grid" / name / "ready" for name in RUNS[:2]]
        eventually(lambda: all(path.exists() for path in ready), what="two runs under way")
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=ask)
    thread.start()
    code = main(arguments(tmp_path, launcher={"parallel": 2}))
    thread.join()
    assert code == 75
    assert "0 of 3 runs finished\n3 were stopped or not started; the same command continues" in capfd.readouterr().err
    assert not (tmp_path / "grid" / "lr=0.3").exists()


def test_term_is_passed_on(tmp_path: Path, python: Path) -> None:
    write_program(python, "kill -TERM $PPID; while :; do sleep 0.01; done")
    assert main(arguments(tmp_path)) == 128 + signal.SIGTERM
    assert not (tmp_path / "grid" / "lr=0.2").exists()


def test_a_run_that_is_wrong_keeps_all_from_starting(tmp_path: Path, python: Path) -> None:
    with pytest.raises(SpecError, match=r"grid.model.emb_dim.1: .*\(in lr=0.1,emb_dim=7 and 2 more\)"):
        main([*arguments(tmp_path), "grid.model={emb_dim: [8, 7]}"])
    assert not (tmp_path / "grid").exists()


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first on PATH whose sbatch keeps its arguments in a file there, and accepts unless told to fail."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "sbatch"
    program.write_text(
        f"#!{sys.executable} -IS\nimport json, os, sys\n"
        f"json.dump(sys.argv[1:], open({str(folder / 'arguments.json')!r}, 'w'))\n"
        f"refused = os.path.exists({str(folder / 'refuse')!r})\n"
        "sys.exit('sbatch: error: no such partition' if refused else print('4711'))\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_on_slurm_a_grid_is_one_array_whose_tasks_find_their_attempts(
    tmp_path: Path, sbatch: Path, python: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_program(python, 'echo "$@"')
    command = arguments(tmp_path, launcher={"kind": "slurm", "parallel": 2})
    assert main(command) == 0
    printed = capsys.readouterr()
    links = tmp_path / "grid" / "submissions" / "1"
    assert printed.out == "4711\n"
    assert printed.err == f"submitted 3 runs; links to their output will be in {links}\n"
    given = json.loads((sbatch / "arguments.json").read_text())
    assert "--array=0-2%2" in given
    assert f"--output={links}/%a/stdout.log" in given
    assert [(links / str(i)).readlink() for i in range(3)] == [tmp_path / "grid" / name / "1" for name in RUNS]
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "1"}
    ran = subprocess.run(["bash", given[-1]], env=environment, capture_output=True, text=True, timeout=60, check=True)
    attempt_dir = tmp_path / "grid" / "lr=0.2" / "1"
    assert ran.stdout.endswith(
        f"-m nanollama.apps.gssm.train config={attempt_dir}/config.yaml attempt_dir={attempt_dir}\n"
    )

    write_result(attempt_dir, Result(step=10, tokens=1, seconds=1.0))
    assert main(command) == 0
    assert "--array=0,2%2" in json.loads((sbatch / "arguments.json").read_text())
    assert (tmp_path / "grid" / "submissions" / "2" / "2").resolve() == tmp_path / "grid" / "lr=0.3" / "2"


def test_an_array_that_slurm_refuses_leaves_nothing_behind(
    tmp_path: Path, sbatch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sbatch / "refuse").touch()
    assert main(arguments(tmp_path, launcher={"kind": "slurm"})) == 1
    assert capsys.readouterr().err == "error: sbatch refused the job: sbatch: error: no such partition\n"
    assert not (tmp_path / "grid").exists()


def test_an_array_has_one_shape(tmp_path: Path, sbatch: Path) -> None:
    command = arguments(tmp_path, launcher={"kind": "slurm"})
    with pytest.raises(SpecError, match=r"^cluster.nproc_per_node: differs between .*nproc_per_node=1 and .*=2, but"):
        main([*command, "grid.cluster={nproc_per_node: [1, 2]}"])
    with pytest.raises(SpecError, match=r"^launcher.slurm: differs between .*time=5 and .*time=6, but an array"):
        main([*command, "grid.launcher={slurm: {time: [5, 6]}}"])
    assert not (tmp_path / "grid").exists()


def test_each_run_has_the_ranks_that_the_grid_gives_it(
    tmp_path: Path, python: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_program(python, 'echo "$@"')
    assert main([*arguments(tmp_path), "grid={cluster.nproc_per_node: [1, 2]}"]) == 0
    options = [line.split()[2:4] for line in capfd.readouterr().out.splitlines()]
    # each with a port of its own: those that train at the same time must not meet
    assert options == [["--standalone", "--nproc-per-node=1"], ["--standalone", "--nproc-per-node=2"]]


def test_data_of_several_graphs_is_a_grid_too(tmp_path: Path, python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_program(python, 'cat "$config" >> "$run/../all.yaml"')
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.yaml").write_text(
        "seq_len: 8\nseed: [3, 4]\n"
        "gssm: {nodes: [{name: X, state_dim: 4, alpha: 1.0, observed: true}]}\n"
        "sets: [{path: $GRIDID/train.h5, n_data: 5}]\n"
    )
    assert main(["script=nanollama.apps.gssm.data", "config=data.yaml"]) == 0
    written = (tmp_path / "runs" / "run" / "all.yaml").read_text()
    assert [line for line in written.splitlines() if line.startswith("seed:")] == ["seed: 3", "seed: 4"]
    assert "path: 0/train.h5" in written
    assert "path: 1/train.h5" in written


@pytest.mark.parametrize(
    ("tasks", "text"), [((0,), "0"), ((0, 1, 2, 5, 7, 8), "0-2,5,7-8"), ((3, 1), "1,3"), (tuple(range(1000)), "0-999")]
)
def test_numbers_of_tasks(tasks: tuple[int, ...], text: str) -> None:
    assert array_ranges(tasks) == text
