"""The first losses of every learner. After a change that is meant to alter them: `python -m tests.model.golden`."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from nanollama.model.build import build_model
from tests.model.learners import LEARNERS, VOCAB, hidden_markov_tokens, next_token_loss, spec_of

FOLDER = Path(__file__).parent / "golden"
STEPS = 20


def first_losses(name: str) -> list[float]:
    """Losses of 20 steps of AdamW, each on 8 new sequences of 33 tokens."""
    torch.manual_seed(0)
    model = build_model(spec_of(implementation=name, emb_dim=32), VOCAB)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(STEPS):
        loss = next_token_loss(model, hidden_markov_tokens(step, 8, 33))
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


def main() -> None:
    """Write the files anew."""
    for name in LEARNERS:
        (FOLDER / f"{name}.json").write_text(json.dumps(first_losses(name), indent=1) + "\n")


if __name__ == "__main__":
    main()
