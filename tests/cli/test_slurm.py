from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from nanollama.commands.slurm import render_job
from nanollama.spec.base import SpecError
from tests.support.examples import experiment


def write(path: Path, **launcher: object) -> str:
    config = experiment() | {"launcher": launcher, "orchestration": {"name": "a 'b' $(touch owned)"}}
    path.write_text(yaml.safe_dump(config))
    return f"config={path}"


def test_what_is_printed_is_the_script_and_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = write(tmp_path / "c.yaml", kind="slurm", slurm={"partition": "gpu", "time": 90})
    text = render_job([given, "optim.steps=7", "launcher.log_dir=out"])
    shebang, call, *_ = text.splitlines()
    assert shebang == "#!/bin/bash"
    assert call.startswith("# sbatch --parsable --no-requeue ")
    echo = [sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))"]
    words = subprocess.run(
        ["bash", "-c", f'"$0" "$@" {call.removeprefix("# sbatch ")}', *echo],
        capture_output=True,
        text=True,
        check=True,
    )
    said = json.loads(words.stdout)
    assert "--job-name=a 'b' $(touch owned)" in said
    assert f"--output={tmp_path}/out/1/stdout.log" in said
    assert {"--partition=gpu", "--time=90"} <= set(said)
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


def test_a_grid_is_one_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = write(tmp_path / "c.yaml", kind="slurm", parallel=2, log_dir="out")
    assert "--array=0-2%2" in render_job([given, "grid.orchestration.utils.seed=[1, 2, 3]"])
    with pytest.raises(SpecError, match="an array has one shape"):
        render_job([given, "grid.launcher={slurm: {time: [5, 6]}}"])


def test_the_command_prints_it_and_names_what_is_wrong(
    n2n: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = write(tmp_path / "c.yaml", log_dir=str(tmp_path)).removeprefix("config=")
    assert n2n("slurm", "render", given) == 0
    assert capsys.readouterr().out.startswith("#!/bin/bash")
    assert n2n("slurm", "render", given, "optim.stepz=1") == 2
    assert "did you mean 'steps'" in capsys.readouterr().err
