"""Requests and answers as they look, for the documentation: an example for every schema that is a body or an answer."""

from __future__ import annotations

from typing import Any, Final

from nanollama.spec.yaml_text import load_yaml

_RUN_ID, _EXPERIMENT_ID, _ATTEMPT_ID = "r01jv3m8wq2x7k4", "e01jv3m8wq2x7k3", "a01jv3m8wq2x7k5"
_HASH = "5f2b" * 16
_THEN, _NOW = "2026-01-01T12:00:00Z", "2026-01-01T12:05:00Z"
_YAML = """\
data:
  seq_len: 16
  batch_size: 8
  gssm:
    nodes:
      - {name: z, state_dim: 4, alpha: 0.1}
      - {name: x, state_dim: 8, alpha: 0.1, parents: [z], observed: true}
model:
  emb_dim: 16
  nb_layers: 2
  block: {nb_heads: 2}
optim:
  steps: 100
  warmup: 10
grid:
  optim.lr: [1e-3, 3e-4]
  orchestration.utils.seed: [0, 1]
"""
_CONFIG: dict[str, Any] = {key: value for key, value in load_yaml(_YAML).items() if key != "grid"}
_PROGRESS = {
    "step": 40,
    "total_steps": 100,
    "tokens": 4800,
    "loss": 1.61,
    "bound": 1.52,
    "excess": 0.09,
    "tokens_per_second": 52000.0,
    "updated_at": _NOW,
}
_RUN = {
    "id": _RUN_ID,
    "experiment_id": _EXPERIMENT_ID,
    "name": "lr=0.001,seed=0",
    "params": {"optim.lr": 0.001, "orchestration.utils.seed": 0},
    "state": "RUNNING",
    "reason": None,
    "cancel_requested": False,
    "attempt": 1,
    "priority": 0,
    "retries": 1,
    "tags": ["exp2"],
    "config_hash": _HASH,
    "created_at": _THEN,
    "started_at": _THEN,
    "progress": _PROGRESS,
    "worker": "node-7",
}
_EXPERIMENT = {
    "id": _EXPERIMENT_ID,
    "name": "two-nodes",
    "notes": "does the learning rate matter?",
    "tags": ["exp2"],
    "created_at": _THEN,
    "priority": 0,
    "resources": {"accelerators": 1},
    "num_runs": 4,
    "counts": {"RUNNING": 1, "QUEUED": 3},
    "runs": [_RUN],
}
_BOUND = {
    "state": "done",
    "run_id": _RUN_ID,
    "entropy": 1.5213,
    "entropy_stderr": 0.0004,
    "num_sequences": 10000,
    "seq_len": 16,
    "method": "forward filter",
}
_GSSM = {
    "hash": _HASH,
    "name": "two-nodes",
    "nodes": ["z", "x"],
    "num_latents": 1,
    "joint_states": 4,
    "vocab": 8,
    "seq_len": 16,
    "seed": 0,
    "num_runs": 4,
    "created_at": _THEN,
    "bound": _BOUND,
}
_ATTEMPT = {
    "id": _ATTEMPT_ID,
    "run_id": _RUN_ID,
    "number": 1,
    "state": "RUNNING",
    "epoch": 1,
    "worker_id": "node-7",
    "attempt_dir": f"/data/runs/{_RUN_ID}/1",
    "created_at": _THEN,
    "started_at": _THEN,
}
_REGISTRATION = {
    "name": "node-7",
    "pool": "cluster:ada:/data/runs",
    "executor": "local",
    "host": "node-7",
    "user": "ada",
    "run_root": "/data/runs",
    "slots": 4,
    "version": "1.0.0",
    "accelerators": 4,
    "cpus": 32,
    "memory_gb": 256.0,
    "labels": ["a100"],
}
_TOKEN = {"id": "t01jv3m8wq2x7k6", "name": "notebook", "scopes": ["read", "submit"], "created_at": _THEN}
_SERIES = {
    "step": [10, 20],
    "tokens": [1200, 2400],
    "time": [1767268810.0, 1767268820.0],
    "value": [2.08, 1.74],
}
_METRICS = {"run_id": _RUN_ID, "keys": ["loss", "bound", "excess"], "series": {"loss": _SERIES}}
_PROBLEM = {
    "path": "optim.step",
    "message": "unknown key",
    "remedy": "did you mean 'steps'?",
    "line": 13,
    "column": 3,
}
_DATASET = {
    "path": "/data/sets/train.h5",
    "num_sequences": 100000,
    "seq_len": 16,
    "vocab": 8,
    "size_bytes": 1600000,
    "split": "train",
    "gssm_hash": _HASH,
    "entropy": 1.5213,
    "entropy_stderr": 0.0004,
}

EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    # bodies
    "SpecInput": {"yaml": _YAML},
    "ExperimentCreate": {"yaml": _YAML, "name": "two-nodes", "tags": ["exp2"], "resources": {"accelerators": 1}},
    "ExperimentPatch": {"notes": "the learning rate matters", "tags": ["exp2", "done"]},
    "Clone": {"overrides": {"optim.lr": 0.0003}, "name": "two-nodes, slower", "reuse": "ask"},
    "RunPatch": {"tags": ["exp2", "best"], "notes": "the one for the paper"},
    "RunSelection": {"filter": "state:queued tag:exp2"},
    "Prioritise": {"filter": "tag:exp2", "priority": 10},
    "Archive": {"filter": "state:failed created<30d", "archived": True},
    "Retag": {"ids": [_RUN_ID], "add": ["best"], "remove": ["exp2"]},
    "Resolve": {"to": "INTERRUPTED", "reason": "the node was replaced"},
    "MetricsQuery": {"runs": [_RUN_ID], "keys": ["loss", "bound"], "x": "tokens", "max_points": 1000, "spacing": "log"},
    "TokenCreate": {"name": "notebook", "scopes": ["read", "submit"], "expires_in_days": 90},
    "WorkerRegistration": _REGISTRATION,
    "SyncRequest": {"held": [{"attempt_id": _ATTEMPT_ID, "epoch": 1}], "free_slots": 3, "wait_seconds": 20},
    "TransitionRequest": {
        "transition_id": "9f1c2d3e4b5a6978",
        "epoch": 1,
        "to": "SUCCEEDED",
        "exit_code": 0,
        "result": {"step": 100, "loss": 1.55},
    },
    "UnknownReport": {"epoch": 1, "reason": "the job is gone, and left no exit.json"},
    "DatasetReports": {"datasets": [_DATASET]},
    # answers
    "Run": _RUN,
    "RunDetail": {**_RUN, "config": _CONFIG, "result": None},
    "RunPage": {"items": [_RUN], "next_cursor": None, "counts": {"RUNNING": 1, "QUEUED": 3}},
    "RunsChanged": {"changed": [_RUN_ID], "more": False},
    "Attempt": _ATTEMPT,
    "Event": {
        "id": 7,
        "attempt": 1,
        "kind": "transition",
        "at": _THEN,
        "from_state": "LEASED",
        "to_state": "RUNNING",
    },
    "Experiment": _EXPERIMENT,
    "ExperimentDetail": {**_EXPERIMENT, "yaml": _YAML},
    "ExperimentPage": {"items": [_EXPERIMENT], "next_cursor": None},
    "Validation": {
        "valid": False,
        "problems": [_PROBLEM],
        "num_runs": 0,
    },
    "Template": {"name": "debug", "summary": "Can two layers learn a chain of two nodes?", "yaml": _YAML},
    "Metrics": _METRICS,
    "MetricsReply": {"x": "step", "runs": [_METRICS]},
    "RunValues": {
        "run_id": _RUN_ID,
        "values": {
            "loss": {"last": 1.61, "last_step": 40, "min": 1.6, "min_step": 38, "max": 2.08, "max_step": 1},
        },
    },
    "Checkpoint": {
        "step": 40,
        "attempt": 1,
        "path": f"/data/runs/{_RUN_ID}/checkpoints/0000000040",
        "size_bytes": 52310,
        "digest": _HASH,
        "created_at": _NOW,
        "pinned": False,
        "evaluation_loss": 1.6,
        "evaluation_excess": 0.08,
    },
    "CheckpointFile": {"name": "model.pt", "size_bytes": 51200},
    "Evaluation": {
        "step": 40,
        "attempt": 1,
        "at": _NOW,
        "loss": 1.6,
        "loss_stderr": 0.01,
        "bound": 1.52,
        "bound_stderr": 0.01,
        "excess": 0.08,
        "excess_stderr": 0.002,
        "kl": 0.079,
        "kl_stderr": 0.001,
        "by_position": {"positions": [1, 2], "loss": [2.05, 1.8], "bound": [2.04, 1.71]},
        "probes": {"layer2/z": 0.98},
    },
    "GSSM": _GSSM,
    "GSSMPage": {"items": [_GSSM], "next_cursor": None},
    "GSSMDetail": {
        **_GSSM,
        "config": {**_CONFIG["data"], "seed": 0},
        "by_position": {"positions": [1, 2], "entropy": [2.04, 1.71], "entropy_stderr": [0.001, 0.001]},
        "runs": [_RUN],
    },
    "Dataset": {**_DATASET, "pool": _REGISTRATION["pool"], "num_runs": 2, "present": True},
    "Worker": {
        **_REGISTRATION,
        "id": "node-7",
        "busy": 1,
        "alive": True,
        "draining": False,
        "last_seen_at": _NOW,
    },
    "WorkerTerms": {"worker_id": "node-7", "lease_seconds": 90, "heartbeat_seconds": 20, "upload_seconds": 1},
    "SyncReply": {
        "leases": [
            {
                "attempt_id": _ATTEMPT_ID,
                "run_id": _RUN_ID,
                "run_name": _RUN["name"],
                "number": 1,
                "epoch": 1,
                "state": "LEASED",
                "app": "gssm.train",
                "config": _CONFIG,
                "experiment_id": _EXPERIMENT_ID,
            }
        ],
        "upload_seconds": 1,
    },
    "Queue": {
        "waiting": 3,
        "items": [
            {
                "position": 0,
                "run_id": _RUN_ID,
                "run_name": _RUN["name"],
                "experiment_id": _EXPERIMENT_ID,
                "attempt": 1,
                "priority": 0,
                "since": _THEN,
                "resources": {"accelerators": 1},
                "reason": "busy",
                "detail": "every worker that could run it is busy",
            }
        ],
    },
    "StreamInfo": {"attempt_id": _ATTEMPT_ID, "name": "metrics/rank0.jsonl", "length": 4096},
    "LogTail": {
        "attempt": 1,
        "name": "stdout.log",
        "offset": 0,
        "length": 21,
        "text": "step 40: loss 1.6100\n",
        "streams": ["stdout.log"],
    },
    "Token": _TOKEN,
    "NewToken": {**_TOKEN, "secret": "n2n_…"},
    "ImportReply": {"experiments": [_EXPERIMENT_ID], "runs": [_RUN_ID], "skipped": []},
    "Health": {"status": "ok", "version": "1.0.0", "database": "sqlite"},
    "ErrorBody": {
        "type": "about:blank",
        "title": "Unprocessable Content",
        "status": 422,
        "detail": "the config has 1 problem",
        "code": "invalid",
        "problems": [_PROBLEM],
    },
}
"""By name of the schema."""
