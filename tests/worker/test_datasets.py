"""What a worker tells of the files of sequences in its folders."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nanollama.api.errors import NotFound
from nanollama.api.schemas import DatasetReport
from nanollama.apps.gssm import data, describe
from nanollama.spec.command import run_command
from nanollama.spec.identity import gssm_hash
from tests.support.examples import experiment
from worker.datasets import LOOK_SECONDS, Datasets, look


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """A folder with two sets, among other things."""
    folder = tmp_path / "sets"
    config = {
        "gssm": experiment()["data"]["gssm"],
        "seq_len": 16,
        "seed": 3,
        "sets": [
            {"name": "train", "path": str(folder / "deep" / "train.h5"), "n_data": 20},
            {"name": "test", "path": str(folder / "test.hdf5"), "n_data": 5},
        ],
    }
    path = tmp_path / "data.yaml"
    path.write_text(json.dumps(config))
    assert data.main([f"config={path}"]) == 0
    (folder / "other.h5").write_bytes(b"no set")
    (folder / "notes.txt").write_text("hello")
    (folder / "gone.h5").symlink_to(folder / "nowhere")
    return folder


def test_sets_are_found_and_described(sets: Path, tmp_path: Path) -> None:
    found = look([sets, tmp_path / "nowhere", sets / "deep"])
    assert [Path(one.path).name for one in found] == ["train.h5", "test.hdf5"]
    train = found[0]
    assert (train.num_sequences, train.seq_len, train.vocab, train.split) == (20, 16, 5, "train")
    assert train.size_bytes == (sets / "deep" / "train.h5").stat().st_size
    resolved = describe.DatasetReader(train.path).spec.model_dump(mode="json")
    assert train.gssm_hash == found[1].gssm_hash == gssm_hash(resolved, 3)
    assert (train.graph, train.seed) == (resolved, 3)
    assert (found[1].graph, found[1].seed) == (None, None)  # once is enough
    assert train.entropy is not None
    assert train.entropy_stderr is not None
    assert 0 < train.entropy_stderr < train.entropy


def test_folders_that_are_not_there_hold_nothing(tmp_path: Path) -> None:
    assert look([tmp_path / "nowhere"]) == []
    assert run_command(describe.main, [str(tmp_path / "nowhere")], usage=describe.__doc__) == 2


def test_a_report_that_fails_is_sent_again_without_another_look(sets: Path) -> None:
    told: list[list[DatasetReport]] = []

    def report(found: list[DatasetReport]) -> None:
        told.append(found)
        if len(told) == 1:
            raise NotFound("there is no worker 'w'")

    task = Datasets([sets], report)
    assert task.step() < LOOK_SECONDS
    (sets / "test.hdf5").unlink()
    assert task.step() == LOOK_SECONDS
    assert [len(found) for found in told] == [2, 2]
    assert task.step() == LOOK_SECONDS
    assert len(told[-1]) == 1


def test_a_look_that_fails_is_tried_later(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("python", 300)

    monkeypatch.setattr("worker.datasets.subprocess.run", fail)
    assert Datasets([sets], lambda _: pytest.fail("nothing was found")).step() == LOOK_SECONDS


def test_describing_needs_no_torch() -> None:
    code = "import sys, nanollama.apps.gssm.describe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
