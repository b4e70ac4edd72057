"""What docs/runs.md says about runs can be done as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from nanollama.api.client import Client
from nanollama.api.status import AttemptState
from tests.support.acting_worker import ActingWorker
from tests.support.service import SPEC_YAML, serve_new_sqlite

TEXT = (Path(__file__).parents[2] / "docs" / "runs.md").read_text()


def test_the_code_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with serve_new_sqlite(tmp_path) as url, Client(url) as client:
        monkeypatch.setenv("N2N_URL", url)
        first = client.submit(yaml=SPEC_YAML, name="first").runs[0].id
        second = client.submit(yaml=SPEC_YAML, name="second").runs[0].id
        worker = ActingWorker(client)
        client.cancel(first)
        held = worker.start()
        held.train(100, checkpoint_period=50)
        held.evaluate(100)
        held.report(AttemptState.SUCCEEDED, result=True)
        blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
        assert len(blocks) == 3
        found: dict[str, Any] = {}
        for block in blocks:
            exec(block, found)
        shown = capsys.readouterr().out
        (evaluation,) = client.evaluations(second)
        assert f"100 1234567 {evaluation.loss} None None" in shown
        assert re.search(rf"\[\] \['{found['run'].experiment_id}', '{second}'\]", shown)
        assert client.run(second).tags == ["baseline"]
        assert not client.run(first).archived
        found["client"].close()
