from __future__ import annotations

import gzip
import lzma
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.data.bounds import entropy
from nanollama.data.calibration import (
    OutOfReach,
    SeedMean,
    calibrate,
    compressed,
    factor_limits,
    mean_entropy,
    moving_nodes,
    scaled,
)
from nanollama.data.gssm import draw_kernels
from nanollama.data.sampler import Sampler
from nanollama.spec.base import SpecError
from nanollama.spec.gssm import GSSMSpec, NodeSpec

GRAPH = GSSMSpec(
    nodes=(
        NodeSpec(name="A", state_dim=6, alpha=0.1),
        NodeSpec(name="B", state_dim=4, alpha=0.2, parents=("A",), mode="slow"),
        NodeSpec(name="idle", state_dim=4, alpha=0.2, parents=("A",)),
        NodeSpec(name="X", state_dim=8, alpha=0.05, parents=("B",), observed=True),
    )
)


def curve(function):
    return lambda factor: SeedMean(mean=function(math.log(factor)), stderr=0.01, values=(0.0, 0.0))


def found(function, target, *, tolerance=1e-3, limits=(1e-6, 1e6)):
    return calibrate(curve(function), target, tolerance=tolerance, limits=limits)


@settings(deadline=None, max_examples=100)
@given(
    middle=st.floats(-8, 8),
    slope=st.floats(0.1, 8),
    height=st.floats(0.5, 5),
    part=st.floats(0.02, 0.98),
)
def test_the_factor_of_a_smooth_rising_curve_is_found(middle, slope, height, part):
    target = height * part
    root = middle + math.log(part / (1 - part)) / slope

    def logistic(u):
        return height / (1 + math.exp(-slope * (u - middle)))

    if not -13 < root < 13:
        return
    calibration = found(logistic, target)
    assert calibration.reached
    assert abs(logistic(math.log(calibration.best.factor)) - target) <= 1e-3 + 1e-12
    assert len(calibration.evaluations) < 30
    assert calibration.rising


def test_a_curve_that_falls_first_is_searched_on_both_sides():
    calibration = found(lambda u: (u - 2) ** 2 / 10, 1.0, limits=(1e-6, 100.0))
    assert math.log(calibration.best.factor) == pytest.approx(2 - math.sqrt(10), abs=2e-3)
    calibration = found(lambda u: -u, 2.0)
    assert math.log(calibration.best.factor) == pytest.approx(-2.0, abs=2e-3)
    assert not calibration.rising


def test_a_jump_over_the_target_is_told_and_the_nearer_side_taken():
    calibration = found(lambda u: 1.0 + 0.01 * u if u < 1.7 else 2.0 + 0.01 * u, 1.4, tolerance=0.01)
    assert not calibration.reached
    assert calibration.best.entropy.mean == pytest.approx(1.017, abs=1e-4)
    assert math.log(calibration.best.factor) == pytest.approx(1.7, abs=2e-4)


def test_beside_a_jump_over_the_target_another_place_may_reach_it():
    calibration = found(lambda u: 1.0 if u < 1.7 else 1.4 if 1.73 < u < 1.75 else 2.0, 1.4, tolerance=0.01)
    assert calibration.reached
    assert 1.73 < math.log(calibration.best.factor) < 1.75
    assert len(calibration.evaluations) < 40


def test_a_target_out_of_reach_is_told_with_the_ends():
    with pytest.raises(OutOfReach) as caught:
        found(lambda u: 1 + math.tanh(u), 2.5, limits=(0.1, 10))
    assert caught.value.lowest.factor == pytest.approx(0.1)
    assert caught.value.highest.factor == pytest.approx(10)
    assert "no alphas give 2.5 nats/token: all that were tried give 0.0198 ± 0.0100 (alphas times 0.1) to 1.98" in str(
        caught.value
    )


def test_nothing_is_evaluated_beyond_the_limits():
    calibration = found(lambda u: u, 0.5, limits=(0.5, 2.0))
    assert all(0.5 <= e.factor <= 2 + 1e-12 for e in calibration.evaluations)
    assert calibration.reached


def test_a_target_that_holds_already_takes_one_evaluation():
    calibration = found(lambda u: 1.0 + u, 1.001, tolerance=0.01)
    assert [e.factor for e in calibration.evaluations] == [1.0]


def test_the_mean_over_seeds_is_that_of_independent_estimates():
    mean = mean_entropy(GRAPH, 9, seeds=3, num_sequences=20)
    each = [entropy_of(k) for k in range(3)]
    assert mean.values == pytest.approx(each, rel=1e-12)
    assert mean.mean == pytest.approx(np.mean(each), rel=1e-12)
    assert mean.stderr == pytest.approx(np.std(each, ddof=1) / math.sqrt(3), rel=1e-12)
    assert str(mean).endswith("nats/token over 3 seeds")
    with pytest.raises(ValueError, match="at least 2 seeds, found 1"):
        SeedMean.of([1.0])


def entropy_of(seed):
    return entropy(draw_kernels(GRAPH, seed), 9, 20, seed=seed, split="calibration").mean


def test_a_graph_is_calibrated_end_to_end():
    names = moving_nodes(GRAPH, "latents")
    calibration = calibrate(
        lambda factor: mean_entropy(scaled(GRAPH, names, factor), 17, seeds=4, num_sequences=30),
        1.0,
        tolerance=0.05,
        limits=factor_limits(GRAPH, names),
    )
    assert calibration.reached
    again = mean_entropy(scaled(GRAPH, names, calibration.best.factor), 17, seeds=4, num_sequences=30)
    assert again == calibration.best.entropy
    assert abs(again.mean - 1.0) <= 0.05


def test_compressors_get_the_predicted_tokens_in_the_smallest_type():
    sizes = compressed(GRAPH, 33, seeds=2, num_sequences=10)
    for seed in range(2):
        tokens = Sampler(draw_kernels(GRAPH, seed), seed, "calibration").sample(range(10), 33)
        text = tokens[:, 1:].astype(np.uint8).tobytes()
        assert len(text) == 320
        nats = math.log(256) / 320
        assert sizes["gzip"].values[seed] == pytest.approx(nats * len(gzip.compress(text, 9)), rel=1e-12)
        assert len(lzma.decompress(lzma.compress(text))) == 320
        assert sizes["xz"].values[seed] == pytest.approx(nats * len(lzma.compress(text, preset=6)), rel=0.05)


def test_compressors_need_more_than_the_entropy():
    bound = mean_entropy(GRAPH, 65, seeds=3, num_sequences=50)
    for size in compressed(GRAPH, 65, seeds=3, num_sequences=50).values():
        assert all(need > h for need, h in zip(size.values, bound.values, strict=True))


@pytest.mark.parametrize(
    ("which", "names"),
    [
        ("latents", ("A", "B")),
        ("observed", ("X",)),
        ("all", ("A", "B", "X")),
        ("B", ("B",)),
        ("X, A,X", ("X", "A")),
    ],
)
def test_nodes_are_chosen_by_group_or_name(which, names):
    assert moving_nodes(GRAPH, which) == names
    moved = scaled(GRAPH, names, 0.5)
    for node in GRAPH.nodes:
        assert moved.node(node.name).alpha == (node.alpha / 2 if node.name in names else node.alpha)
        assert moved.node(node.name).model_copy(update={"alpha": node.alpha}) == node


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("C", "nodes: no node is named 'C' - known: A, B, X, all, latents, observed"),
        ("latent", "nodes: no node is named 'latent' - did you mean 'latents'?"),
        ("A,idle", "nodes: no token depends on 'idle' - choose among A, B, X"),
        ("", "nodes: no node is named ''"),
    ],
)
def test_nodes_that_cannot_move_are_refused(which, message):
    with pytest.raises(SpecError) as caught:
        moving_nodes(GRAPH, which)
    assert str(caught.value).startswith(message)


def test_a_graph_without_latents_has_no_latents_to_move():
    alone = GSSMSpec(nodes=(NodeSpec(name="X", state_dim=8, alpha=0.05, observed=True),))
    with pytest.raises(SpecError, match="the graph has no latent - write nodes=observed"):
        moving_nodes(alone, "latents")


def test_the_limits_keep_every_alpha_in_range():
    low, high = factor_limits(GRAPH, ("A", "X"))
    assert 0.05 * low == pytest.approx(1e-6)
    assert 0.1 * high == pytest.approx(1e3)
    extreme = scaled(GRAPH, ("A", "X"), 1e-7)
    assert factor_limits(extreme, ("A",))[0] == 1.0
