"""Configs that the tests bend."""

from __future__ import annotations

from typing import Any


def experiment() -> dict[str, Any]:
    """A small valid training config, fresh each time."""
    return {
        "data": {
            "seq_len": 16,
            "batch_size": 8,
            "gssm": {
                "nodes": [
                    {"name": "Z", "state_dim": 4, "alpha": 0.5},
                    {"name": "Y", "state_dim": 3, "alpha": 0.5, "parents": ["Z"]},
                    {"name": "X", "state_dim": 5, "alpha": 0.5, "parents": ["Z", "Y"], "observed": True},
                ]
            },
        },
        "model": {"emb_dim": 16, "nb_layers": 1, "block": {"nb_heads": 2}},
        "optim": {"steps": 10, "warmup": 2},
    }
