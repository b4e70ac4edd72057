"""Relative paths of data are made absolute wherever a config may have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanollama.spec.paths import absolute_paths


def test_paths_of_data_are_made_absolute_in_the_grid_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = {
        "data": {"path": "a.h5", "seq_len": 3},
        "evaluation": {"data": {"path": "/there/b.h5"}},
        "orchestration": {"log_dir": "runs"},
        "grid": {
            "data.path": ["a.h5", "c.h5"],
            "data": {"path": ["d$GRIDID.h5"]},
            "zip": [{"evaluation.data.path": ["e.h5"], "optim.lr": [1.0]}],
        },
    }
    assert absolute_paths(data) == {
        "data": {"path": f"{tmp_path}/a.h5", "seq_len": 3},
        "evaluation": {"data": {"path": "/there/b.h5"}},
        "orchestration": {"log_dir": "runs"},
        "grid": {
            "data.path": [f"{tmp_path}/a.h5", f"{tmp_path}/c.h5"],
            "data": {"path": [f"{tmp_path}/d$GRIDID.h5"]},
            "zip": [{"evaluation.data.path": [f"{tmp_path}/e.h5"], "optim.lr": [1.0]}],
        },
    }
