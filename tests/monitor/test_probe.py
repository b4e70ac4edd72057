from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nanollama.apps.gssm.held_out import HeldOutSequences
from nanollama.monitor.evaluation import Evaluator
from nanollama.monitor.probe import Probe
from tests.monitor.test_evaluation import ALONE, GRAPH, held_out

SEQUENCES, LENGTH = 400, 12


class Carrier(nn.Module):
    """Its stream holds random numbers, then the posterior mixed into random directions, then that with noise."""

    def __init__(self, sequences: HeldOutSequences) -> None:
        super().__init__()
        self.scorer = sequences.scorer

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return torch.zeros(*tokens_BT.shape, 3)

    def hidden_states(self, tokens_BT: Tensor) -> list[Tensor]:
        assert self.scorer is not None
        posterior = self.scorer.posterior(tokens_BT)
        belief_BTS = torch.cat([posterior[name] for name in sorted(posterior)], dim=2)
        generator = torch.Generator().manual_seed(int(tokens_BT.sum()))
        noise_BTD = torch.randn(*tokens_BT.shape, 6, generator=generator)
        mixing = torch.randn(belief_BTS.shape[2], 6, generator=torch.Generator().manual_seed(0)).double()
        carried_BTD = belief_BTS @ mixing + 3
        return [noise_BTD, carried_BTD.float(), (carried_BTD + 0.02 * noise_BTD).float()]


def test_a_stream_that_holds_the_posterior_has_an_r2_of_one_and_noise_none() -> None:
    sequences = held_out(SEQUENCES, length=LENGTH)
    found = Evaluator(sequences, ALONE, batch_size=64, probe=True).evaluate(Carrier(sequences))
    assert {layer: set(r2) for layer, r2 in found.probe.items()} == {layer: {"Z"} for layer in range(3)}
    assert found.probe[0]["Z"] == pytest.approx(0, abs=0.02)
    assert found.probe[0]["Z"] < 0.01
    assert found.probe[1]["Z"] == pytest.approx(1, abs=1e-6)
    assert 0.05 < found.probe[2]["Z"] < 0.95
    assert found.metrics()["probe/layer1/Z"] == found.probe[1]["Z"]
    assert found.record()["probe"]["layer1"] == {"Z": found.probe[1]["Z"]}


def test_a_latent_that_never_changes_has_no_r2() -> None:
    nodes = [GRAPH["nodes"][0], {"name": "C", "state_dim": 1, "alpha": 1.0}]
    nodes += [{**GRAPH["nodes"][1], "parents": ["Z", "C"]}]
    sequences = held_out(SEQUENCES, graph={"nodes": nodes}, length=LENGTH)
    found = Evaluator(sequences, ALONE, batch_size=64, probe=True).evaluate(Carrier(sequences))
    assert set(found.probe[1]) == {"Z"}


@pytest.mark.parametrize("batch", [1, 3, 10, 20])
def test_sums_give_the_least_squares_of_the_first_half_scored_on_the_second(batch: int) -> None:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(20, 5, 4, dtype=torch.float64, generator=generator) + 2
    a = features @ torch.randn(4, 2, dtype=torch.float64, generator=generator)
    b = torch.randn(20, 5, 3, dtype=torch.float64, generator=generator)
    beliefs = {"a": a + b[..., :2], "b": b}
    probe = Probe(20)
    for start in range(0, 20, batch):
        part = slice(start, start + batch)
        probe.add(start, [features[part]], {name: belief[part] for name, belief in beliefs.items()})
    (found,) = probe.result().values()
    fit, test = slice(0, 10), slice(10, 20)
    with_one = torch.cat([torch.ones(20, 5, 1, dtype=torch.float64), features], dim=2)[:, 1:]
    for name, belief in beliefs.items():
        weights = torch.linalg.lstsq(with_one[fit].flatten(0, 1), belief[fit, 1:].flatten(0, 1)).solution
        target = belief[test, 1:].flatten(0, 1)
        errors = ((with_one[test].flatten(0, 1) @ weights - target) ** 2).sum()
        spread = ((target - target.mean(dim=0)) ** 2).sum()
        assert found[name] == pytest.approx(float(1 - errors / spread), abs=1e-4)


def test_the_sums_of_ranks_make_up_the_whole() -> None:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(12, 4, 2, dtype=torch.float64, generator=generator)
    beliefs = features @ torch.randn(2, 3, dtype=torch.float64, generator=generator)
    beliefs += torch.randn(beliefs.shape, dtype=torch.float64, generator=generator)
    whole, *ranks = [Probe(12) for _ in range(4)]
    whole.add(0, [features], {"Z": beliefs})
    for number in range(2):  # the third has no batch
        part = slice(6 * number, 6 * number + 6)
        ranks[number].add(6 * number, [features[part]], {"Z": beliefs[part]})
    sums = [(rank._sums, rank._names) for rank in ranks]
    assert ranks[2].result(lambda _: sums)[0]["Z"] == pytest.approx(whole.result()[0]["Z"], abs=1e-12)
