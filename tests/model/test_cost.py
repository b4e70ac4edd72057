"""The closed forms of what learners cost, against the learners themselves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.model.build import build_model, num_parameters
from nanollama.spec import cost
from nanollama.spec.base import parse
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.model import LEARNERS, ModelSpec
from tests.support.examples import experiment

HEADS = st.sampled_from([1, 2, 4])
WIDTHS = st.sampled_from([8, 16, 24])
MAYBE_WIDTH = st.one_of(st.none(), WIDTHS)
CONV = st.one_of(st.none(), st.integers(2, 4))
BLOCKS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "transformer": {
        "nb_heads": st.just(4),
        "nb_kv_heads": st.one_of(st.none(), HEADS),
        "feed_forward": st.sampled_from(["gelu", "swiglu"]),
        "hidden_dim": MAYBE_WIDTH,
    },
    "mingru": {"nb_heads": HEADS, "conv_size": CONV, "hidden_dim": MAYBE_WIDTH, "ffn_dim": MAYBE_WIDTH},
    "minlstm": {"nb_heads": HEADS, "conv_size": CONV, "hidden_dim": MAYBE_WIDTH, "ffn_dim": MAYBE_WIDTH},
    "hawk": {"nb_heads": HEADS, "conv_size": CONV, "hidden_dim": MAYBE_WIDTH, "ffn_dim": MAYBE_WIDTH},
    "mamba": {
        "nb_heads": st.just(4),
        "nb_groups": HEADS,
        "conv_size": CONV,
        "hidden_dim": MAYBE_WIDTH,
        "state_dim": st.integers(1, 20),
        "ssm_chunk_size": st.integers(1, 9),
    },
}


@st.composite
def specs(draw: st.DrawFn, learner: str) -> ModelSpec:
    block = {name: draw(strategy) for name, strategy in BLOCKS[learner].items()}
    model = {
        "implementation": learner,
        "emb_dim": draw(st.sampled_from([8, 16, 40])),
        "nb_layers": draw(st.integers(1, 3)),
        "weight_tying": draw(st.booleans()),
        "vocab_size": draw(st.one_of(st.none(), st.integers(5, 30))),
        "block": block,
    }
    return parse(ExperimentSpec, experiment() | {"model": model}).model


@pytest.mark.parametrize("learner", LEARNERS)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_closed_forms_count_what_the_learner_has(learner: str, data: st.DataObject) -> None:
    spec, length = data.draw(specs(learner)), data.draw(st.integers(2, 40))
    model = build_model(spec, 5)
    found = cost.cost_of(spec, vocab=5, seq_len=length)
    assert found.parameters == num_parameters(model)
    assert found.flops_per_token == pytest.approx(model.flops_per_token(length - 1).total, rel=1e-12)
