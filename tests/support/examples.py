"""Configs that the tests bend."""

from __future__ import annotations

from typing import Any

import yaml


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


def tiny_yaml(steps: int, **orchestration: Any) -> str:
    """A config that trains a hundred steps a second and logs every one of them, as YAML."""
    latent = {"name": "z", "state_dim": 4, "alpha": 0.1}
    observed = {"name": "x", "state_dim": 8, "alpha": 0.1, "parents": ["z"], "observed": True}
    return yaml.safe_dump(
        {
            "data": {"seq_len": 8, "batch_size": 4, "gssm": {"nodes": [latent, observed]}},
            "model": {"emb_dim": 8, "nb_layers": 1, "block": {"nb_heads": 1}},
            "optim": {"steps": steps, "warmup": 1},
            "orchestration": {"name": "tiny", "logging": {"period": 1}, **orchestration},
        }
    )
