from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from nanollama.optim import build_optimizer, clip_gradient, learning_rate, set_learning_rate, update
from nanollama.spec.optim import OptimSpec


def test_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    optimizer = build_optimizer(OptimSpec(steps=1, weight_decay=0.5), model)
    decays = {id(w): group["weight_decay"] for group in optimizer.param_groups for w in group["params"]}
    assert {name: decays[id(w)] for name, w in model.named_parameters()} == {
        "0.weight": 0.5,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
    }


def test_a_step_without_gradient_shrinks_matrices_by_lr_times_decay() -> None:
    model = nn.Linear(3, 2)
    before = {name: w.detach().clone() for name, w in model.named_parameters()}
    optimizer = build_optimizer(OptimSpec(steps=1, weight_decay=0.5), model)
    set_learning_rate(optimizer, 0.1)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before["weight"] * 0.95)
    torch.testing.assert_close(model.bias.detach(), before["bias"])


@settings(deadline=None)
@given(
    steps=st.integers(1, 400),
    warmup_share=st.floats(0, 1),
    ratio=st.floats(0, 1),
    scheduler=st.sampled_from(["cosine", "constant", "wsd"]),
)
def test_schedule_climbs_then_falls_within_its_limits(
    steps: int, warmup_share: float, ratio: float, scheduler: str
) -> None:
    warmup = int(steps * warmup_share)
    decay = round(0.1 * steps)
    assume(scheduler != "wsd" or warmup + decay <= steps)
    keys = {"steps": steps, "warmup": warmup, "lr": 0.25, "lr_min_ratio": ratio, "scheduler": scheduler}
    rates = [learning_rate(OptimSpec.model_validate(keys), step) for step in range(1, steps + 1)]
    peak = max(warmup, 1) - 1
    assert all(0 < a < b for a, b in pairwise(rates[: peak + 1]))
    assert all(a >= b >= 0 for a, b in pairwise(rates[peak:]))
    if warmup:
        assert rates[peak] == pytest.approx(0.25)
    if warmup < steps:
        assert rates[-1] == pytest.approx(
            0.25 * ratio if scheduler == "cosine" or (scheduler == "wsd" and decay) else 0.25
        )


def test_middle_of_the_cosine_is_the_mean_of_its_ends() -> None:
    spec = OptimSpec(steps=30, warmup=10, lr=1.0, lr_min_ratio=0.2)
    assert learning_rate(spec, 20) == pytest.approx(0.6)


def test_wsd_is_stable_until_its_decay_which_is_linear() -> None:
    keys = {"steps": 20, "warmup": 4, "lr": 1.0, "lr_min_ratio": 0.2, "decay_ratio": 0.4, "scheduler": "wsd"}
    rates = [learning_rate(OptimSpec.model_validate(keys), step) for step in range(1, 21)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:12] == [1.0] * 8
    assert rates[12:] == pytest.approx([1 - 0.1 * step for step in range(1, 9)])


def test_a_lost_step_leaves_weights_moments_and_the_count_of_steps() -> None:
    torch.manual_seed(0)
    model, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    optimizers = [build_optimizer(OptimSpec(steps=9), each) for each in (model, twin)]
    for value, lost in ((1.0, 0.0), (float("nan"), 1.0), (2.0, 0.0)):
        for each, optimizer in zip((model, twin), optimizers, strict=True):
            for weight in each.parameters():
                weight.grad = torch.full_like(weight, value)
            if each is model:
                update(optimizer, 0.1, torch.tensor(lost))
            elif not lost:
                set_learning_rate(optimizer, 0.1)
                optimizer.step()
    assert all(weight.grad is None for weight in model.parameters())
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(optimizers[0].state_dict()["state"], optimizers[1].state_dict()["state"])


def test_clipping_keeps_the_direction_and_reports_the_norm_before() -> None:
    model = nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    assert float(clip_gradient(model, 1.0)) == pytest.approx(5.0)
    torch.testing.assert_close(model.weight.grad, torch.tensor([[0.6, 0.8]]), rtol=1e-4, atol=0)
    model.weight.grad = torch.tensor([[0.3, 0.4]])
    assert float(clip_gradient(model, 1.0)) == pytest.approx(0.5)
    torch.testing.assert_close(model.weight.grad, torch.tensor([[0.3, 0.4]]))
