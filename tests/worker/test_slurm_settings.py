"""The worker's settings where it works on Slurm."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nanollama.spec.base import SpecError
from worker.executors.slurm import SlurmExecutor
from worker.main import slurm_executor
from worker.settings import read_settings

CONFIG = Path(__file__).parents[2] / "configs" / "worker" / "slurm.yaml"


def settings_arguments(tmp_path: Path, config: Path = CONFIG) -> list[str]:
    (tmp_path / "runs").mkdir(exist_ok=True)
    places = ["--run-root", str(tmp_path / "runs"), "--home", str(tmp_path / "home")]
    return ["--config", str(config), *places]


def test_the_example_says_what_all_its_jobs_have_together(tmp_path: Path) -> None:
    settings = read_settings(settings_arguments(tmp_path))
    assert (settings.executor, settings.slots, settings.cpus, settings.accelerators) == ("slurm", 50, 200, 0)
    assert settings.memory_gb == pytest.approx(50 * 16 * 2**30 / 1e9)
    assert (settings.slurm.time, settings.slurm.mem, settings.pool[:6]) == (240, "16G", "slurm:")


def test_a_mistake_in_the_section_is_named_with_its_line(tmp_path: Path) -> None:
    config = tmp_path / "w.yaml"
    config.write_text("executor: slurm\nslurm:\n  partitoin: gpu\n")
    with pytest.raises(SpecError, match=r"slurm.partitoin \(line 3, column 3\).*partition"):
        read_settings(settings_arguments(tmp_path, config))


def test_without_slurm_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read_settings(settings_arguments(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(
        SpecError, match="executor: there is no sbatch on this machine - start the worker on a login node"
    ):
        slurm_executor(settings)
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "which", lambda name: name)
    assert isinstance(slurm_executor(settings), SlurmExecutor)
