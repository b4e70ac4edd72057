from __future__ import annotations

import json

import pytest
import torch

from nanollama.data.bounds import Scorer
from nanollama.data.gssm import draw_kernels
from nanollama.data.sampler import Sampler
from nanollama.model.build import build_model
from nanollama.spec.gssm import GSSMSpec
from tests.model.golden import FOLDER, first_losses
from tests.model.learners import LEARNERS, next_token_loss, spec_of

STEPS, BATCH, LENGTH = 300, 64, 65


@pytest.mark.parametrize("name", LEARNERS)
def test_the_first_losses_are_those_of_before(name: str) -> None:
    expected = json.loads((FOLDER / f"{name}.json").read_text())
    assert first_losses(name) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_comes_close_to_the_bound_of_a_two_state_world(name: str) -> None:
    latent = {"name": "Z", "state_dim": 2, "alpha": 0.3, "mode": "slow"}
    observed = {"name": "X", "state_dim": 4, "alpha": 0.5, "parents": ("Z",), "observed": True}
    kernels = draw_kernels(GSSMSpec.model_validate({"nodes": (latent, observed)}), seed=2)
    train, test = Sampler(kernels, 0, "train"), Sampler(kernels, 0, "test")
    held_out_BT = torch.from_numpy(test.sample(range(1024), LENGTH)).long()
    bound = Scorer(kernels).nll(held_out_BT).mean().item() / (LENGTH - 1)
    counts = torch.bincount((held_out_BT[:, :-1] * 4 + held_out_BT[:, 1:]).flatten(), minlength=16).view(4, 4).double()
    law = counts / counts.sum(dim=1, keepdim=True)
    bigram = -(counts / counts.sum() * law.log()).nansum().item()
    assert bigram - bound > 0.1  # a learner that only looks one token back stays this far away

    torch.manual_seed(0)
    model = build_model(spec_of(implementation=name, emb_dim=32), 4)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 5e-3 * min(1, (step + 1) / 20, 2 * (1 - step / STEPS))
        batch_BT = torch.from_numpy(train.sample(range(step * BATCH, (step + 1) * BATCH), LENGTH)).long()
        next_token_loss(model, batch_BT).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        excess = next_token_loss(model, held_out_BT).item() - bound
    assert -0.002 < excess < 0.02
