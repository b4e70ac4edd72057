from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.training import result, train, write_config

NODES = [
    {"name": "Z", "state_dim": 8, "alpha": 0.1},
    {"name": "X", "state_dim": 16, "alpha": 0.1, "parents": ["Z"], "observed": True},
]
BLOCK = {"nb_heads": 4, "feed_forward": "swiglu", "hidden_dim": 256}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "goal"),
    [
        (0, 0.0076),
        (1, 0.0071),
        pytest.param(2, 0.0040, marks=pytest.mark.xfail(reason="not reached yet: 0.0046 ± 0.0001", strict=True)),
    ],
)
def test_two_thousand_steps_come_as_near_to_the_bound_as_the_original_did(
    tmp_path: Path, seed: int, goal: float
) -> None:
    config = write_config(
        tmp_path / "c.yaml",
        data={"seq_len": 64, "batch_size": 64, "seed": seed, "gssm": {"nodes": NODES}},
        model={"emb_dim": 64, "nb_layers": 2, "block": BLOCK},
        optim={"steps": 2000, "lr": 1e-3, "scheduler": "constant", "warmup": 0},
        orchestration={"logging": {"period": 1}, "utils": {"seed": seed}},
    )
    assert train(config, tmp_path / "run") == 0
    final = result(tmp_path / "run" / "1")  # means over the last 200 steps
    assert final.excess is not None
    assert final.excess <= goal
