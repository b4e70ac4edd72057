"""Training steps of every learner at about a million parameters, beside the same recurrence taken step by step."""

from __future__ import annotations

import time
from collections.abc import Callable
from unittest import mock

import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.nn import functional

from nanollama.model import hawk, mamba, minrnn
from nanollama.model.build import build_model, num_parameters
from nanollama.model.learner import Learner
from nanollama.model.scan import scan
from nanollama.spec.model import ModelSpec
from tests.bench.timing import Row

VOCAB, BATCH, LENGTH = 32, 32, 256
ROUNDS = 3
GOAL = 12_700
"""Tokens/s of the transformer that this project grew from, compiled, at the same size on two cores."""

SCANS = ((16, 256, 192), (16, 2048, 192))
"""Sequences, positions and channels of the scans that are timed alone."""

LEARNERS: dict[str, dict[str, object]] = {
    "transformer": {"nb_layers": 4, "block": {"nb_heads": 4, "feed_forward": "swiglu"}},
    "mingru": {"nb_layers": 7},
    "minlstm": {"nb_layers": 5},
    "hawk": {"nb_layers": 2},
    "mamba": {"nb_layers": 7, "block": {"state_dim": 16}},  # more states than these, and the loop fills the memory
}


def bench_learners() -> list[Row]:
    """Forward and backward passes in float32, the best of three, taking turns with the loop over time."""
    rows = [_bench_scan(*shape) for shape in SCANS]
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(VOCAB, (BATCH, LENGTH + 1), generator=generator)
    for name, keys in LEARNERS.items():
        spec: ModelSpec = TypeAdapter(ModelSpec).validate_python({"implementation": name, "emb_dim": 128, **keys})
        torch.manual_seed(0)
        model = build_model(spec, VOCAB)
        loops = {"mingru": minrnn, "minlstm": minrnn, "hawk": hawk}
        candidates = [_step(model, tokens_BT)]
        if name in loops:
            candidates.append(mock.patch.object(loops[name], "scan", _sequential_scan)(_step(model, tokens_BT)))
        if name == "mamba":
            candidates.append(mock.patch.object(mamba, "state_space", _sequential_state_space)(candidates[0]))
        ours, *loop = (BATCH * LENGTH / seconds for seconds in _best(candidates))
        rows.append(
            Row(
                work=f"{name}, {num_parameters(model) / 1e6:.2f} M, {BATCH} x {LENGTH}: tokens trained on",
                ours=f"{ours:,.0f} /s",
                beside=f"loop over time {loop[0]:,.0f} /s" if loop else f"the original {GOAL:,} /s, not in this run",
                ratio=f"{ours / (loop[0] if loop else GOAL):.1f} x",
                goal="" if loop else "> 1 x",
            )
        )
    return rows


def _bench_scan(batch: int, length: int, channels: int) -> Row:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, batch, length, channels, generator=generator).requires_grad_()
    way = torch.randn(batch, length, channels, generator=generator)
    ours, loop = _best([lambda: scan(a, b).backward(way), lambda: _sequential_scan(a, b, None).backward(way)])
    return Row(
        work=f"scan of {batch} x {length} x {channels}, forward and backward",
        ours=f"{ours * 1e3:.1f} ms",
        beside=f"loop over time {loop * 1e3:.1f} ms",
        ratio=f"{loop / ours:.1f} x",
    )


def _step(model: Learner, tokens_BT: Tensor) -> Callable[[], None]:
    def step() -> None:
        logits_BTV = model(tokens_BT[:, :-1])
        functional.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
        model.zero_grad()

    return step


def _best(candidates: list[Callable[[], None]]) -> list[float]:
    """Least seconds of each candidate, after one turn that does not count."""
    best = [float("inf")] * len(candidates)
    for turn in range(ROUNDS + 1):
        for i, candidate in enumerate(candidates):
            start = time.perf_counter()
            candidate()
            if turn:
                best[i] = min(best[i], time.perf_counter() - start)
    return best


def _sequential_scan(a: Tensor, b: Tensor, initial: Tensor | None) -> Tensor:
    """The scan as one writes it first, with autograd's backward pass."""
    h = torch.zeros_like(b[:, 0]) if initial is None else initial
    states = []
    for a_t, b_t in zip(a.unbind(1), b.unbind(1), strict=True):
        h = a_t * h + b_t
        states.append(h)
    return torch.stack(states, dim=1)


def _sequential_state_space(
    x_BTHP: Tensor, log_a_BTH: Tensor, b_BTGS: Tensor, c_BTGS: Tensor, initial_BHPS: Tensor | None, *, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """The same for Mamba: the state of every head, one position after the other."""
    heads_per_group = x_BTHP.shape[2] // b_BTGS.shape[2]
    b_BTHS, c_BTHS = (maps.repeat_interleave(heads_per_group, dim=2) for maps in (b_BTGS, c_BTGS))
    h_BHPS = x_BTHP.new_zeros(*x_BTHP[:, 0].shape, b_BTHS.shape[-1]) if initial_BHPS is None else initial_BHPS
    outputs = []
    for x_BHP, log_a_BH, b_BHS, c_BHS in zip(
        x_BTHP.unbind(1), log_a_BTH.unbind(1), b_BTHS.unbind(1), c_BTHS.unbind(1), strict=True
    ):
        h_BHPS = log_a_BH.exp()[..., None, None] * h_BHPS + x_BHP[..., None] * b_BHS[:, :, None]
        outputs.append((h_BHPS @ c_BHS[..., None]).squeeze(-1))
    return torch.stack(outputs, dim=1), h_BHPS
