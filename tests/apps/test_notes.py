from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nanollama.apps.gssm.train import main
from nanollama.spec.base import SpecError
from tests.support.examples import experiment


def test_the_training_app_tells_what_is_idle_in_its_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    path = tmp_path / "c.yaml"
    path.write_text(
        yaml.safe_dump({"run_config": {**experiment(), "low_memory_hmm": False, "cluster": {"device": "cuda"}}})
    )
    with pytest.raises(SpecError, match="CUDA is asked for"):
        main([f"config={path}"])
    assert capsys.readouterr().err.startswith("note: run_config.low_memory_hmm: is idle: ")
    monkeypatch.setenv("RANK", "1")
    assert main([f"config={path}"]) == 2
    assert capsys.readouterr().err == ""
