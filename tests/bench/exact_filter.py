"""The exact bound: one node at a time in linear space, beside a dense S x S step in log space."""

from __future__ import annotations

import math

import numpy as np
import torch

from nanollama.data.bounds import Scorer
from nanollama.data.gssm import Kernels, draw_kernels, joint_table
from nanollama.data.sampler import Sampler
from nanollama.spec.gssm import GSSMSpec
from tests.bench.timing import Row, interleaved

BATCH, LENGTH = 16, 33


def bench_filter() -> list[Row]:
    """Chains of three latents that all feed the observed node."""
    rows = []
    for states in (4, 8, 10):
        kernels = draw_kernels(_chain(states), seed=0)
        tokens = torch.from_numpy(Sampler(kernels, 0, "bench").sample(range(BATCH), LENGTH))
        scorer = Scorer(kernels)
        transition, emission = _dense(kernels)
        ours, dense = interleaved(
            [lambda s=scorer, t=tokens: s.nll(t), lambda m=(transition, emission), t=tokens: _dense_nll(*m, t)]
        )
        difference = (scorer.nll(tokens) - _dense_nll(transition, emission, tokens)).abs().max().item()
        assert difference < 1e-8, difference
        work = f"exact bound, {states}^3 = {states**3} joint states, {BATCH} x {LENGTH} tokens"
        rows.append(Row(work, f"{ours * 1e3:.1f} ms", f"dense {dense * 1e3:.1f} ms", f"{dense / ours:.1f} x"))
    return rows


def _chain(states: int) -> GSSMSpec:
    latents = [
        {"name": f"Z{i}", "state_dim": states, "alpha": 0.1, "parents": (f"Z{i - 1}",) if i else ()} for i in range(3)
    ]
    observed = {"name": "X", "state_dim": 16, "alpha": 0.1, "parents": ("Z0", "Z1", "Z2"), "observed": True}
    return GSSMSpec.model_validate({"nodes": (*latents, observed)})


def _dense(kernels: Kernels) -> tuple[torch.Tensor, torch.Tensor]:
    """log P(z_t | z_t-1) of shape [S, S] and log P(x | z) of shape [S, V]."""
    z0, z1, z2 = (joint_table(kernels, name) for name in ("Z0", "Z1", "Z2"))
    states = z0.shape[0] * z1.shape[0] * z2.shape[0]
    dense = np.einsum("ad,bde,cef->abcdef", z0, z1, z2).reshape(states, states)
    emission = joint_table(kernels, "X").reshape(states, -1)
    return torch.from_numpy(dense).log(), torch.from_numpy(emission).log()


def _dense_nll(transition: torch.Tensor, emission: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    log_joint = torch.full((len(tokens), len(transition)), -math.inf, dtype=torch.float64)
    log_joint[:, 0] = 0
    for t in range(1, tokens.shape[1]):
        log_joint = torch.logsumexp(log_joint[:, :, None] + transition[None], dim=1) + emission[:, tokens[:, t]].T
    return -torch.logsumexp(log_joint, dim=1)
