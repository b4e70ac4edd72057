from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from nanollama.apps.gssm import data as app
from nanollama.data import context
from nanollama.data.bounds import Scorer
from nanollama.data.hdf5 import ATTRIBUTES, DatasetReader
from nanollama.data.polya import ClosedForm
from nanollama.data.sampler import Sampler
from nanollama.spec.base import SpecError
from nanollama.spec.command import run_command
from nanollama.spec.gssm import GSSMSpec, NodeSpec
from tests.support.gssm import two_nodes
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]


def config(folder: Path, **changes) -> Path:
    content = {
        "seq_len": 12,
        "seed": 4,
        "chunk_size": 7,
        "gssm": two_nodes().model_dump(mode="json"),
        "sets": [
            {"name": "train", "path": str(folder / "out" / "train.h5"), "n_data": 50},
            {"name": "test", "path": str(folder / "out" / "test.h5"), "n_data": 20},
        ],
        **changes,
    }
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def start(folder: Path, *arguments: str, prefix: str = "") -> subprocess.Popen[str]:
    code = f"{prefix}\nimport runpy; runpy.run_module('nanollama.apps.gssm.data', run_name='__main__')"
    command = [sys.executable, "-c", code, f"config={config(folder)}", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=-1, stderr=-1)


def wait_for_partial(process: subprocess.Popen[str], folder: Path) -> None:
    def begun() -> bool:
        assert process.poll() is None, process.communicate()
        return any(folder.glob("out/.*.partial"))

    eventually(begun, within=120, what="the first bytes of a set")


def test_a_generation_that_is_killed_leaves_nothing_that_looks_like_a_set(tmp_path):
    process = start(tmp_path, "sets.0.n_data=100000000")
    try:
        wait_for_partial(process, tmp_path)
    finally:
        process.kill()
        process.communicate()
    assert list(tmp_path.glob("out/*.h5")) == []
    for path in (tmp_path / "out").iterdir():
        with pytest.raises(SpecError, match="not a"):
            DatasetReader(path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_generation_that_is_interrupted_leaves_nothing(tmp_path, number):
    process = start(tmp_path, "sets.0.n_data=100000000")
    try:
        wait_for_partial(process, tmp_path)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted"
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))"
    process = start(tmp_path, "sets.0.n_data=1000000", "seq_len=100", "chunk_size=2048", prefix=limit)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert "error: sets.0.path: cannot write" in errors
    assert "Traceback" not in errors
    assert list((tmp_path / "out").iterdir()) == []


def test_the_script_writes_sets_with_their_entropy(tmp_path, capsys):
    assert run_command(app.main, [f"config={config(tmp_path)}"]) == 0
    printed = capsys.readouterr().out.splitlines()
    for name, count in (("train", 50), ("test", 20)):
        path = tmp_path / "out" / f"{name}.h5"
        reader = DatasetReader(path)
        kernels = reader.kernels()
        tokens = Sampler(kernels, 4, name).sample(range(count), 12)
        assert np.array_equal(reader.read(slice(None)), tokens)
        scores = Scorer(kernels).nll(torch.from_numpy(tokens.astype(np.int64))) / 11
        assert reader.entropy is not None
        assert reader.entropy.mean == pytest.approx(scores.mean().item(), rel=1e-12)
        assert reader.entropy.stderr == pytest.approx(scores.std().item() / count**0.5, rel=1e-12)
        assert reader.entropy.num_sequences == count
        assert any(line.startswith(f"wrote {path}: {count} sequences of 12 tokens") for line in printed)
        assert any(str(reader.entropy) in line for line in printed)
        with h5py.File(path, locking=False) as file:
            assert set(file.attrs) == {name for name in ATTRIBUTES if "_lower" not in name and "_upper" not in name} - {
                "entropy_note"
            }
            assert file["tokens"].compression == "gzip"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["test.h5", "train.h5"]


def test_the_script_scores_only_the_first_sequences_of_a_large_set(tmp_path, monkeypatch):
    monkeypatch.setattr(app, "SCORED_SEQUENCES", 25)
    assert run_command(app.main, [f"config={config(tmp_path)}"]) == 0
    reader = DatasetReader(tmp_path / "out" / "train.h5")
    scores = Scorer(reader.kernels()).nll(torch.from_numpy(reader.read(slice(0, 25)).astype(np.int64))) / 11
    assert reader.entropy is not None
    assert reader.entropy.num_sequences == 25
    assert reader.entropy.mean == pytest.approx(scores.mean().item(), rel=1e-12)


def test_existing_files_are_replaced_only_on_demand(tmp_path, capsys):
    path = config(tmp_path)
    assert run_command(app.main, [f"config={path}"]) == 0
    before = (tmp_path / "out" / "train.h5").read_bytes()
    assert run_command(app.main, [f"config={path}", "seed=9"]) == 2
    errors = capsys.readouterr().err
    for i, name in enumerate(("train", "test")):
        target = tmp_path / "out" / f"{name}.h5"
        assert (
            f"error: sets.{i}.path: {target} exists - choose another path, remove it, or set overwrite=true" in errors
        )
    assert (tmp_path / "out" / "train.h5").read_bytes() == before
    assert run_command(app.main, [f"config={path}", "seed=9", "overwrite=true"]) == 0
    assert DatasetReader(tmp_path / "out" / "train.h5").seed == 9


def test_sets_without_an_entropy_say_why(tmp_path, capsys):
    names = [f"Z{i}" for i in range(10)]
    latents = [NodeSpec(name=name, state_dim=8, alpha=0.3) for name in names]
    observed = NodeSpec(name="X", state_dim=6, alpha=0.3, parents=tuple(names), observed=True)
    huge = GSSMSpec(nodes=(*latents, observed)).model_dump(mode="json")
    assert run_command(app.main, [f"config={config(tmp_path, gssm=huge)}"]) == 0
    assert "no entropy: the exact bound is out of reach" in capsys.readouterr().out
    reader = DatasetReader(tmp_path / "out" / "train.h5")
    assert reader.entropy is reader.entropy_bounds is None
    with h5py.File(tmp_path / "out" / "train.h5", locking=False) as file:
        assert "out of reach" in file.attrs["entropy_note"]


def test_sets_whose_kernels_are_redrawn_carry_bounds_of_their_own_sequences(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(app, "BOUNDED_SEQUENCES", 10)
    path = config(tmp_path, gssm=two_nodes(mode="context").model_dump(mode="json"))
    assert run_command(app.main, [f"config={path}"]) == 0
    reader = DatasetReader(tmp_path / "out" / "train.h5")
    assert reader.entropy is None
    assert reader.entropy_bounds is not None
    lower, upper = reader.entropy_bounds
    assert lower.num_sequences == upper.num_sequences == 10
    assert f"entropy: {lower.mean:.4f} ± {lower.stderr:.4f} to {upper.mean:.4f}" in capsys.readouterr().out
    kernels, sampler = reader.kernels(), Sampler(reader.kernels(), 4, "train")
    truths = context.true_draws(sampler, range(10), 12)
    found = context.two_sided(kernels, reader.read(slice(0, 10)), truths, particles=2000)
    assert found.upper is not None
    assert lower.mean == pytest.approx(-found.upper.mean() / 11, abs=0.05)
    assert upper.mean == pytest.approx(-found.lower.mean() / 11, abs=0.05)
    with h5py.File(tmp_path / "out" / "train.h5", locking=False) as file:
        assert set(file.attrs) == set(ATTRIBUTES) - {"entropy", "entropy_stderr", "entropy_note"}


def urn(alpha: float) -> dict:
    node = NodeSpec(name="X", state_dim=6, alpha=alpha, kernel_type="fullrank", mode="context", observed=True)
    return GSSMSpec(nodes=(node,)).model_dump(mode="json")


def test_sets_with_a_formula_are_scored_by_it(tmp_path):
    assert run_command(app.main, [f"config={config(tmp_path, gssm=urn(0.3))}"]) == 0
    reader = DatasetReader(tmp_path / "out" / "train.h5")
    scores = -ClosedForm(reader.kernels()).log_likelihood(reader.read(slice(None))).mean(axis=1)
    assert reader.entropy is not None
    assert reader.entropy.mean == pytest.approx(scores.mean(), rel=1e-12)


def test_a_formula_that_does_not_hold_leaves_a_set_without_entropy(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("nanollama.data.polya.MAX_FLOOR_ERROR", 0)
    assert run_command(app.main, [f"config={config(tmp_path, gssm=urn(0.3))}"]) == 0
    assert "no entropy: sequence 0: the floor of the kernels may change" in capsys.readouterr().out
    assert len(DatasetReader(tmp_path / "out" / "train.h5")) == 50
