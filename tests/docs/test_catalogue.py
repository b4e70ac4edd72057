from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

from backend.catalogue import bounds
from backend.specs import estimate, pricing
from nanollama.api.client import Client
from nanollama.api.schemas import SyncRequest, TransitionRequest, WorkerRegistration
from tests.support.service import SPEC_YAML, serve_new_sqlite
from worker.datasets import LOOK_SECONDS

TEXT = (Path(__file__).parents[2] / "docs" / "catalogue.md").read_text()
RESULT = {
    "step": 9,
    "nats_per_token": 1.25,
    "stderr": 0.01,
    "num_sequences": 9,
    "seq_len": 16,
    "by_position": {"positions": [1, 2], "mean": [1.5, 1.0], "stderr": [0.1, 0.1]},
}


def work(url: str) -> None:
    """Take the job and end it, as a worker would."""
    who = {"name": "w", "pool": "p", "executor": "local", "host": "h", "user": "u", "run_root": "/", "slots": 1}
    with Client(url) as client:
        client.register("w", WorkerRegistration.model_validate(who | {"version": "1"}))
        (lease,) = client.sync("w", SyncRequest(free_slots=1, wait_seconds=20)).leases
        ended = {"transition_id": "t" * 8, "epoch": lease.epoch, "to": "SUCCEEDED", "exit_code": 0, "result": RESULT}
        client.transition(lease.attempt_id, TransitionRequest.model_validate(ended))


def test_the_snippet_of_the_page_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(SPEC_YAML)
    with serve_new_sqlite(tmp_path) as url:
        monkeypatch.setenv("N2N_URL", url)
        worker = threading.Thread(target=work, args=(url,))
        worker.start()
        exec(compile(code, "catalogue.md", "exec"), {})
        worker.join()
    assert capsys.readouterr().out == "1.2500 ± 0.0100 nats/token\nthe second token costs 1.5\n"
    assert Path("graph.svg").read_text().startswith("<svg")


def test_what_the_page_says_about_numbers() -> None:
    assert f"{pricing.PRICED_STATES:,} joint states" in TEXT
    assert pricing.PRICED_ENTRIES == 2 * 2**20
    assert f"scores {bounds.EXACT_SEQUENCES:,} fresh sequences" in TEXT
    assert f"over {bounds.CONTEXT_SEQUENCES} sequences" in TEXT
    assert bounds.MAX_SECONDS == LOOK_SECONDS == 600
    assert (estimate.NEAREST, estimate.MAX_RATIO) == (5, 4.0)
