from __future__ import annotations

import pytest

from nanollama.spec.base import Spec, SpecError, content_hash, parse
from nanollama.spec.model import HawkSpec, MambaSpec, MinGRUSpec, MinLSTMSpec, ModelSpec, TransformerSpec


class Holder(Spec):
    model: ModelSpec


def model_of(**keys: object) -> ModelSpec:
    return parse(Holder, {"model": {"emb_dim": 8, "nb_layers": 1, **keys}}).model


def problems(**keys: object) -> list[str]:
    with pytest.raises(SpecError) as caught:
        model_of(**keys)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("transformer", TransformerSpec),
        ("mingru", MinGRUSpec),
        ("minlstm", MinLSTMSpec),
        ("hawk", HawkSpec),
        ("mamba", MambaSpec),
    ],
)
def test_the_implementation_chooses_the_learner(name: str, kind: type) -> None:
    spec = model_of(implementation=name)
    assert isinstance(spec, kind)
    assert spec.implementation == name
    assert parse(Holder, Holder(model=spec).model_dump(mode="json")).model == spec


@pytest.mark.parametrize("keys", [{}, {"implementation": ""}, {"implementation": None}])
def test_a_learner_left_out_is_a_transformer(keys: dict[str, object]) -> None:
    spec = model_of(**keys)
    assert isinstance(spec, TransformerSpec)
    assert content_hash(spec) == content_hash(model_of(implementation="transformer"))


def test_an_unknown_learner_is_refused_at_its_key_with_the_nearest_name() -> None:
    assert problems(implementation="mambo") == [
        "model.implementation: no learner is called 'mambo' - did you mean 'mamba'?"
    ]
    assert problems(implementation="rwkv") == [
        "model.implementation: no learner is called 'rwkv' - known: hawk, mamba, mingru, minlstm, transformer"
    ]
    assert problems(implementation=3) == [
        "model.implementation: no learner is called 3 - known: transformer, mingru, minlstm, hawk, mamba"
    ]


def test_a_model_that_is_no_section_is_refused() -> None:
    with pytest.raises(SpecError, match=r"^model: should be a section"):
        parse(Holder, {"model": 5})


def test_defaults_follow_the_width() -> None:
    mingru, hawk, mamba = (model_of(implementation=name) for name in ("mingru", "hawk", "mamba"))
    assert isinstance(mingru, MinGRUSpec)
    assert isinstance(hawk, HawkSpec)
    assert isinstance(mamba, MambaSpec)
    assert (mingru.hidden_dim, hawk.hidden_dim, hawk.ffn_dim, mamba.hidden_dim) == (24, 32, 32, 24)
    assert mamba.block.state_dim == 128


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"block": {"nb_heads": 3}},
            ["model.emb_dim: emb_dim 8 is not divisible by block.nb_heads 3 - use 6 or 12"],
        ),
        (
            {"block": {"nb_heads": 8}},
            [
                (
                    "model.emb_dim: the head dimension emb_dim / nb_heads = 1 is odd, "
                    "but rotary positions turn pairs of channels - use 16"
                )
            ],
        ),
        (
            {"block": {"nb_kv_heads": 3}},
            ["model.block.nb_kv_heads: nb_kv_heads 3 does not divide nb_heads 4 - use 1, 2, 4"],
        ),
        (
            {"implementation": "mingru", "block": {"nb_heads": 3, "hidden_dim": 10}},
            [
                "model.emb_dim: emb_dim 8 is not divisible by block.nb_heads 3 - use 6 or 9",
                "model.block.hidden_dim: hidden_dim 10 is not divisible by block.nb_heads 3 - use 9 or 12",
            ],
        ),
        (
            {"implementation": "hawk", "block": {"nb_heads": 5}},
            ["model.block.hidden_dim: hidden_dim 32 is not divisible by block.nb_heads 5 - use 30 or 35"],
        ),
        (
            {"implementation": "mamba", "block": {"nb_heads": 8, "nb_groups": 3}},
            ["model.block.nb_groups: nb_groups 3 does not divide nb_heads 8 - use 1, 2, 4, 8"],
        ),
        (
            {"implementation": "minlstm", "block": {"conv_size": 5}},
            ["model.block.conv_size: should be less than or equal to 4, found 5"],
        ),
        (
            {"implementation": "mamba", "block": {"state_dims": 16}},
            ["model.block.state_dims: unknown key - did you mean 'state_dim'?"],
        ),
        (
            {"implementation": "hawk", "emb_dims": 16},
            ["model.emb_dims: unknown key - did you mean 'emb_dim'?"],
        ),
        (
            {"implementation": "mingru", "block": {"rope_theta": 100.0}},
            ["model.block.rope_theta: unknown key - known: conv_size, ffn_dim, hidden_dim, nb_heads"],
        ),
    ],
)
def test_what_cannot_be_built_is_refused_with_a_remedy(keys: dict[str, object], expected: list[str]) -> None:
    assert problems(**keys) == expected
