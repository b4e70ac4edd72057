from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nanollama.apps.gssm.held_out import HeldOutSequences
from nanollama.cluster.cluster import Cluster
from nanollama.data.gssm import draw_kernels
from nanollama.data.sampler import Sampler
from nanollama.monitor import evaluation as module
from nanollama.monitor.evaluation import MAX_SHIPPED, Evaluation, Evaluator, Moments, write_evaluation
from nanollama.spec.base import parse
from nanollama.spec.gssm import GSSMSpec
from nanollama.spec.rundir import EventLine, encode_line
from tests.support.gssm import Oracle

ALONE = Cluster(rank=0, world_size=1, device=torch.device("cpu"))
GRAPH = {
    "nodes": [
        {"name": "Z", "state_dim": 2, "alpha": 0.4},
        {"name": "X", "state_dim": 3, "alpha": 0.4, "parents": ["Z"], "observed": True},
    ]
}
LENGTH = 5


class LastToken(nn.Module):
    """Predicts by the last token alone; `seen` counts its calls, each in evaluation mode and without gradients."""

    def __init__(self, symbols: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.table = nn.Parameter(torch.randn(symbols, symbols, generator=generator))
        self.seen = 0

    def forward(self, tokens_BT: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.seen += 1
        return self.table[tokens_BT]


def held_out(count: int, *, graph: dict[str, Any] = GRAPH, length: int = LENGTH) -> HeldOutSequences:
    kernels = draw_kernels(parse(GSSMSpec, graph), 5)
    sampler = Sampler(kernels, 5, "test")
    return HeldOutSequences(
        kernels,
        lambda start, stop: sampler.sample(range(start, stop), length),
        num_sequences=count,
        seq_len=length,
        device="cpu",
    )


def by_hand(count: int, model: LastToken) -> dict[str, np.ndarray]:
    """Loss, bound, excess and KL of each sequence and position, by enumeration of all paths: [count, LENGTH - 1]."""
    kernels = draw_kernels(parse(GSSMSpec, GRAPH), 5)
    oracle = Oracle(kernels)
    tokens = Sampler(kernels, 5, "test").sample(range(count), LENGTH)
    table = model.table.detach().double().numpy()
    log_q = table - np.log(np.exp(table).sum(axis=1, keepdims=True))
    shape = (count, LENGTH - 1)
    loss, bound, kl = np.empty(shape), np.empty(shape), np.empty(shape)
    for i, row in enumerate(tokens.tolist()):
        for t in range(1, LENGTH):
            p = oracle.predictive(tuple(row), t)
            q = log_q[row[t - 1]]
            loss[i, t - 1], bound[i, t - 1] = -q[row[t]], -math.log(p[row[t]])
            kl[i, t - 1] = sum(p[v] * (math.log(p[v]) - q[v]) for v in range(3))
    return {"loss": loss, "bound": bound, "excess": loss - bound, "kl": kl}


@pytest.mark.parametrize("batch_size", [1, 4, 11, 100])
def test_an_evaluation_is_what_enumeration_gives(batch_size: int) -> None:
    model = LastToken(3)
    found = Evaluator(held_out(11), ALONE, batch_size=batch_size).evaluate(model)
    assert model.training
    assert found.num_sequences == 11
    assert model.seen == math.ceil(11 / batch_size)
    expected = by_hand(11, model)
    assert set(found.means) == set(expected)
    assert set(found.by_position) == {*expected, *(f"{name}_stderr" for name in expected)}
    for name, values in expected.items():
        means = values.mean(axis=1)
        assert found.means[name] == pytest.approx(means.mean(), abs=1e-6)
        assert found.stderrs[name] == pytest.approx(means.std(ddof=1) / math.sqrt(11), abs=1e-6)
        assert found.by_position[name] == pytest.approx(values.mean(axis=0), abs=1e-6)
        errors = values.std(axis=0, ddof=1) / math.sqrt(11)
        assert found.by_position[f"{name}_stderr"] == pytest.approx(errors, abs=1e-6)
    assert found.score == found.means["excess"]


def test_batches_are_cut_to_what_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Evaluator(held_out(8), ALONE, batch_size=100).evaluate(LastToken(3))
    monkeypatch.setattr(module, "WORKING_BYTES", 2 * 48 * (LENGTH - 1) * 3)
    model = LastToken(3)
    assert Evaluator(held_out(8), ALONE, batch_size=100).evaluate(model).means == pytest.approx(whole.means)
    assert model.seen == 4


class Rank:
    """One of several ranks that are played one after the other; the others' values are those of an earlier play."""

    device = torch.device("cpu")

    def __init__(self, rank: int, world_size: int, said: list[list[Any]]) -> None:
        self.rank, self.world_size, self.said = rank, world_size, said
        self.round = 0

    def gather(self, value: Any) -> list[Any]:
        if len(self.said) == self.round:
            self.said.append([None] * self.world_size)
        self.said[self.round][self.rank] = value
        self.round += 1
        return self.said[self.round - 1]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_batches_and_find_what_one_finds(world_size: int) -> None:
    alone = Evaluator(held_out(11), ALONE, batch_size=3).evaluate(LastToken(3))
    said: list[list[Any]] = []
    for _ in range(2):  # the second time each hears what all others say
        models = [LastToken(3) for _ in range(world_size)]
        found = [
            Evaluator(held_out(11), Rank(rank, world_size, said), batch_size=3).evaluate(model)
            for rank, model in enumerate(models)
        ]
    for other in found:
        assert other.means == alone.means
        assert other.stderrs == alone.stderrs
        assert other.by_position == alone.by_position
    assert [model.seen for model in models] == [math.ceil(4 / world_size)] * world_size  # none is left out of a round


def test_a_graph_without_a_bound_has_a_loss_alone() -> None:
    nodes = [{**GRAPH["nodes"][0], "mode": "context"}, GRAPH["nodes"][1]]
    sequences = held_out(6, graph={"nodes": nodes})
    assert "context" in sequences.scorer_note
    found = Evaluator(sequences, ALONE, batch_size=4).evaluate(LastToken(3))
    assert set(found.metrics()) == {"eval/loss", "eval/loss_stderr"}
    assert found.score == found.means["loss"]


def test_a_learner_that_has_diverged_is_said_to_be_none(tmp_path: Path) -> None:
    model = LastToken(3)
    model.table.data[0, 0] = math.inf
    found = Evaluator(held_out(6), ALONE, batch_size=6).evaluate(model)
    assert math.isnan(found.metrics()["eval/kl"])
    assert math.isnan(found.metrics()["eval/excess"])
    path = write_evaluation(tmp_path, 7, found.record())
    stored = json.loads(path.read_text())
    assert (path.parent.name, path.name, stored["step"]) == ("evaluations", "0000000007.json", 7)
    assert (stored["excess"], stored["by_position"]["kl"][0]) == (None, None)
    line = EventLine(seq=0, kind="evaluated", step=7, time=0.0, by_position=found.shipped_curves())
    assert EventLine.model_validate_json(encode_line(line.model_dump(exclude_none=True)), strict=True) == line


def test_the_positions_of_a_long_sequence_that_are_shipped() -> None:
    values = [1 / 3 + t for t in range(1, 3000)]
    curves = Evaluation(2, {"loss": 0.0}, {"loss": 0.0}, {"loss": values}).shipped_curves()
    positions = [int(t) for t in curves["positions"] if t is not None]
    assert MAX_SHIPPED / 2 < len(positions) <= MAX_SHIPPED
    assert (positions[0], positions[-1]) == (1, 2999)
    assert sorted(set(positions)) == positions
    assert curves["loss"] == [pytest.approx(1 / 3 + t, rel=1e-5) for t in positions]
    short = Evaluation(2, {"loss": 0.0}, {"loss": 0.0}, {"loss": values[:4]}).shipped_curves()
    assert short["positions"] == [1, 2, 3, 4]


def test_moments_of_parts_are_those_of_the_whole() -> None:
    values = torch.randn(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1e6
    together = Moments.of(values[:1]) + Moments.of(values[1:6]) + Moments.of(values[6:])
    assert together.count == 9
    torch.testing.assert_close(together.mean, values.mean(dim=0), rtol=1e-14, atol=0)
    torch.testing.assert_close(together.stderr, values.std(dim=0) / 3, rtol=1e-6, atol=0)
