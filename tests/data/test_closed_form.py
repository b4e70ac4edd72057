from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from nanollama.data import polya
from nanollama.data.context import ClosedForm, closed_form_applies, entropy, two_sided
from nanollama.data.filter import ImpossibleSequence
from nanollama.data.gssm import draw_kernels
from nanollama.spec.base import SpecError
from tests.data.urns import graph, urn_probability


def test_the_closed_form_applies_where_all_symbols_come_from_one_known_row():
    applies = {
        "no parents": (graph(("X", 3, (), "context", "fullrank")), True),
        "a product without inputs is uniform": (graph(("X", 3, (), "context", "product")), True),
        "one state": (graph(("Z", 1, (), "context", "product"), ("X", 3, ("Z",), "context", "product")), True),
        "two rows": (
            graph(
                ("A", 1, (), "default", "product"),
                ("B", 1, (), "slow", "product"),
                ("X", 3, ("A", "B"), "context", "fullrank"),
            ),
            True,
        ),
        "product of rows": (
            graph(
                ("A", 1, (), "default", "product"),
                ("B", 1, (), "slow", "product"),
                ("X", 3, ("A", "B"), "context", "product"),
            ),
            False,
        ),
        "one symbol": (graph(("Z", 2, (), "context", "product"), ("X", 1, ("Z",), "default", "product")), True),
        "fixed kernels": (graph(("X", 3, (), "default", "product")), False),
        "feedback is no copy": (
            graph(("Z", 2, ("X",), "default", "product"), ("X", 2, ("Z",), "context", "product")),
            False,
        ),
    }
    for spec, expected in applies.values():
        assert closed_form_applies(spec) is expected
        kernels = draw_kernels(spec, 0)
        if not expected:
            with pytest.raises(SpecError, match="no closed form"):
                ClosedForm(kernels)
            continue
        tokens = np.array(list(itertools.product([0], *[range(kernels.vocab_size)] * 3)))
        closed = ClosedForm(kernels)
        logs, predictive = closed.log_likelihood(tokens), closed.predictive(tokens)
        assert predictive.shape == (len(tokens), 3, kernels.vocab_size)
        np.testing.assert_allclose(predictive.sum(axis=-1), 1, atol=1e-12)
        np.testing.assert_allclose(np.take_along_axis(predictive, tokens[:, 1:, None], 2)[..., 0], np.exp(logs))
        # each particle sees the same single urn, so that the estimate is exact
        particles = two_sided(kernels, tokens, None, particles=2)
        np.testing.assert_allclose(particles.lower, logs.sum(axis=1), atol=1e-6)
        expected_p = [urn_probability(kernels, tuple(row)) for row in tokens] if spec.observed.parents else None
        if expected_p and kernels.vocab_size > 1:
            np.testing.assert_allclose(np.exp(logs.sum(axis=1)), expected_p)


def test_the_closed_form_refuses_what_the_exact_filter_refuses():
    closed = ClosedForm(draw_kernels(graph(("X", 3, (), "context", "fullrank")), 0))
    with pytest.raises(ValueError, match="sequence 0 holds 3 at position 1"):
        closed.log_likelihood([[0, 3]])
    with pytest.raises(ImpossibleSequence, match="position 0"):
        closed.predictive([[1, 0]])
    assert closed.log_likelihood(np.zeros((0, 4), dtype=int)).shape == (0, 3)
    assert closed.predictive(np.zeros((2, 1), dtype=int)).shape == (2, 0, 3)
    tiny = ClosedForm(draw_kernels(graph(("X", 3, (), "context", "fullrank"), alpha=1e-6), 0))
    with pytest.raises(ValueError, match=r"sequence 1: the floor .* alpha = 1e-06 is too small"):
        tiny.log_likelihood([[0, 1, 1, 1] + [1] * 100, [0, 1, 2, 1] + [1] * 100])


def test_closed_form_entropy_has_no_gap():
    found = entropy(draw_kernels(graph(("X", 2, (), "context", "fullrank")), 0), 9, 500)
    assert found.lower == found.upper
    assert found.gap == found.gap_stderr == found.particles == 0
    assert "closed form" in found.method


@pytest.mark.parametrize(
    ("alpha", "counts"), [(0.2, (1, 5)), (0.2, (2, 4)), (1.5, (1, 1)), (0.05, (1, 7)), (0.1, (0, 3))]
)
def test_the_floor_moves_the_probability_no_further_than_stated(alpha, counts, monkeypatch):
    monkeypatch.setattr(polya, "FLOOR", 1e-4)
    spec = graph(("X", 2, (), "context", "fullrank"), alpha=alpha)
    tokens = [0] + [0] * counts[0] + [1] * counts[1]
    # q = u^(1 / alpha) / 2 turns the pole of the Beta density at 0 into a uniform one
    q = 0.5 * ((np.arange(2_000_000) + 0.5) / 2_000_000) ** (1 / alpha)
    logs = {}
    for floor in (0.0, 1e-4):
        low = np.maximum(q, floor)
        total = low + (1 - q)
        first, second = low / total, (1 - q) / total
        values = first ** counts[0] * second ** counts[1] + second ** counts[0] * first ** counts[1]
        logs[floor] = math.log(np.mean(values * (1 - q) ** (alpha - 1)))
    difference = logs[1e-4] - logs[0.0]
    below, above = polya.floor_gap(spec, sum(counts))
    assert -below <= difference <= above
    assert abs(difference) <= ClosedForm(draw_kernels(spec, 0)).floor_error([tokens])[0] + 1e-9
