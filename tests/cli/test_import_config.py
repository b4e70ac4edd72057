from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.grid import expand
from nanollama.spec.load import read_document
from tests.support.examples import experiment


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    path = tmp_path / "nested.yaml"
    launcher = {"launcher": "local", "log_dir": "$PLACE/here", "grid": {"optim": {"lr": "[0.1] + [0.2]"}}}
    path.write_text(yaml.safe_dump({"launcher": launcher, "run_config": {**experiment(), "low_memory_hmm": False}}))
    return path


def test_an_older_config_is_shown_in_the_shape_of_today(
    n2n: Callable[..., int], nested: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLACE", "/data")
    assert n2n("import-config", nested, "optim.warmup=1") == 0
    printed = capsys.readouterr()
    assert "# note: run_config.low_memory_hmm: is idle" in printed.out
    assert "run_config:" not in printed.out
    assert "log_dir: $PLACE/here" in printed.out
    assert printed.err == "a training config with a grid of 2 runs, from lr=0.1 to lr=0.2\n"

    written = nested.with_name("new.yaml")
    assert n2n("import-config", nested, "-o", written) == 0
    old, new = (read_document([f"config={path}"]) for path in (nested, written))
    assert new.notes == ()
    assert [run.spec for run in expand(old, ExperimentSpec)] == [run.spec for run in expand(new, ExperimentSpec)]
    assert n2n("import-config", nested, "-o", written) == 2
    assert "exists - choose another file" in capsys.readouterr().err


def test_errors_end_with_2_and_nothing_is_written(
    n2n: Callable[..., int], nested: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLACE", "/data")
    written = nested.with_name("new.yaml")
    assert n2n("import-config", nested, "model.emb_dmi=3", "-o", written) == 2
    assert "error: model.emb_dmi: unknown key - did you mean 'emb_dim'?" in capsys.readouterr().err
    assert not written.exists()
    assert n2n("import-config", nested, "-o", nested.with_name("no") / "new.yaml") == 2
    assert "cannot write" in capsys.readouterr().err


def test_validate_checks_every_run_and_tells_the_notes(
    n2n: Callable[..., int], nested: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLACE", "/data")
    assert n2n("validate", nested) == 0
    printed = capsys.readouterr()
    assert printed.out == "valid: a training config with a grid of 2 runs, from lr=0.1 to lr=0.2\n"
    assert "note: run_config.low_memory_hmm: is idle" in printed.err
    assert n2n("validate", nested, "grid.model={emb_dim: [8, 7]}") == 2
    assert "grid.model.emb_dim.1: emb_dim 7 is not divisible" in capsys.readouterr().err
