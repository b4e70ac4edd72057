from __future__ import annotations

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.nn import functional

from nanollama.model.build import build_model
from nanollama.model.learner import Learner
from nanollama.spec.model import ModelSpec

VOCAB = 7

OPTIONS: dict[str, dict[str, object]] = {
    "transformer": {"block": {"nb_heads": 2}},
    "transformer, head dim 2": {"block": {"nb_heads": 8}},
    "transformer, swiglu, grouped": {"block": {"nb_heads": 4, "nb_kv_heads": 2, "feed_forward": "swiglu"}},
    "transformer, one kv head, tied": {"weight_tying": True, "block": {"nb_heads": 4, "nb_kv_heads": 1}},
    "mingru": {"implementation": "mingru"},
    "mingru, all options": {
        "implementation": "mingru",
        "weight_tying": True,
        "block": {"nb_heads": 2, "conv_size": 4, "hidden_dim": 24, "ffn_dim": 40},
    },
    "minlstm": {"implementation": "minlstm"},
    "minlstm, heads, conv": {"implementation": "minlstm", "block": {"nb_heads": 4, "conv_size": 2}},
    "hawk": {"implementation": "hawk"},
    "hawk, no conv, one head": {
        "implementation": "hawk",
        "block": {"nb_heads": 1, "conv_size": None, "hidden_dim": 24, "ffn_dim": 20},
    },
    "mamba": {"implementation": "mamba", "block": {"state_dim": 8, "ssm_chunk_size": 4}},
    "mamba, groups, no conv": {
        "implementation": "mamba",
        "block": {"nb_heads": 6, "nb_groups": 3, "conv_size": None, "state_dim": 4, "ssm_chunk_size": 3},
    },
}
"""Every learner, and every option of each."""

LEARNERS = ["transformer", "mingru", "minlstm", "hawk", "mamba"]


def spec_of(**keys: object) -> ModelSpec:
    spec: ModelSpec = TypeAdapter(ModelSpec).validate_python({"emb_dim": 16, "nb_layers": 2, **keys})
    return spec


def learner(name: str, seed: int = 0, **keys: object) -> Learner:
    torch.manual_seed(seed)
    return build_model(spec_of(**{**OPTIONS[name], **keys}), VOCAB)


def tokens(seed: int = 0, batch: int = 3, length: int = 19) -> Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def next_token_loss(model: torch.nn.Module, tokens_BT: Tensor) -> Tensor:
    return functional.cross_entropy(model(tokens_BT[:, :-1]).flatten(0, 1), tokens_BT[:, 1:].flatten())


def hidden_markov_tokens(seed: int, batch: int, length: int) -> Tensor:
    """A GSSM of one latent, drawn here from tables written out, so that nothing but a learner can move its losses."""
    transition = np.array([[0.90, 0.08, 0.02], [0.05, 0.85, 0.10], [0.20, 0.05, 0.75]])
    emission = np.array(
        [
            [0.70, 0.10, 0.05, 0.05, 0.05, 0.03, 0.02],
            [0.02, 0.08, 0.60, 0.20, 0.04, 0.03, 0.03],
            [0.05, 0.05, 0.02, 0.03, 0.15, 0.30, 0.40],
        ]
    )
    uniform = np.random.Generator(np.random.Philox(seed)).random((2, length, batch))
    latent, drawn = np.zeros(batch, dtype=int), np.zeros((length, batch), dtype=np.int64)
    for t in range(1, length):
        latent = (transition.cumsum(1)[latent] < uniform[0, t, :, None]).sum(1).clip(max=2)
        drawn[t] = (emission.cumsum(1)[latent] < uniform[1, t, :, None]).sum(1).clip(max=VOCAB - 1)
    return torch.from_numpy(drawn.T.copy())
