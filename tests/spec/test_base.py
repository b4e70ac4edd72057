"""Validation: every problem at once, each at its path."""

from __future__ import annotations

from typing import Any

import pytest

from nanollama.spec.base import SpecError, canonical_json, content_hash, parse
from nanollama.spec.data import DatasetSpec
from nanollama.spec.experiment import ExperimentSpec
from tests.support.examples import experiment


def problems(data: Any) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        parse(ExperimentSpec, data)
    return {p.path: f"{p.message} - {p.remedy}" for p in caught.value.problems}


def nodes(data: dict[str, Any]) -> list[dict[str, Any]]:
    return data["data"]["gssm"]["nodes"]


def test_a_valid_config_parses() -> None:
    spec = parse(ExperimentSpec, experiment())
    assert spec.data.gssm.observed.name == "X"
    assert spec.optim.lr == 3e-4


def test_every_problem_is_reported_at_once() -> None:
    data = experiment()
    data["optim"]["steps"] = 0
    data["optim"]["lr"] = "fast"
    data["modle"] = {}
    nodes(data)[0]["alpha"] = -1.0
    nodes(data)[1]["parnts"] = []
    found = problems(data)
    assert set(found) == {
        "optim.steps",
        "optim.lr",
        "modle",
        "data.gssm.nodes.0.alpha",
        "data.gssm.nodes.1.parnts",
    }
    assert "did you mean 'model'?" in found["modle"]
    assert "did you mean 'parents'?" in found["data.gssm.nodes.1.parnts"]
    assert "'fast'" in found["optim.lr"]


def test_a_missing_key_is_named() -> None:
    data = experiment()
    del data["data"]["seq_len"]
    del data["model"]["emb_dim"]
    assert set(problems(data)) == {"data.seq_len", "model.emb_dim"}


@pytest.mark.parametrize("value", [True, "3", 3.5, None, [], float("nan")])
def test_types_are_strict(value: object) -> None:
    data = experiment()
    data["optim"]["steps"] = value
    assert "optim.steps" in problems(data)


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [("lr", "nan", "finite"), ("lr", float("nan"), "finite"), ("lr", "0.1", "without quotes"), ("steps", [3], "[3]")],
)
def test_wrong_values_are_shown_with_a_remedy(key: str, value: object, remedy: str) -> None:
    data = experiment()
    data["optim"][key] = value
    assert remedy in problems(data)[f"optim.{key}"]


@pytest.mark.parametrize("name", ["", "../evil", "x" * 201])
def test_names_that_are_not_accepted_say_which_are(name: str) -> None:
    data = experiment() | {"orchestration": {"name": name}}
    assert "1 to 200 characters, no slashes" in problems(data)["orchestration.name"]


def test_infinite_numbers_are_refused() -> None:
    data = experiment()
    nodes(data)[0]["alpha"] = float("inf")
    assert "data.gssm.nodes.0.alpha" in problems(data)


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_anything_but_a_mapping_is_refused(data: object) -> None:
    assert "expected a mapping" in problems(data)[""]


def test_two_observed_nodes() -> None:
    data = experiment()
    nodes(data)[1]["observed"] = True
    found = problems(data)
    assert "'Y', 'X'" in found["data.gssm.nodes.2.observed"]


def test_no_observed_node() -> None:
    data = experiment()
    nodes(data)[2]["observed"] = False
    assert "no node is observed" in problems(data)["data.gssm.nodes"]


def test_no_nodes_at_all() -> None:
    data = experiment()
    data["data"]["gssm"]["nodes"] = []
    assert "no node is observed" in problems(data)["data.gssm.nodes"]


def test_dangling_parent_suggests_the_nearest() -> None:
    data = experiment()
    nodes(data)[0]["name"] = "slow_one"
    nodes(data)[1]["parents"] = ["slow_on"]
    nodes(data)[2]["parents"] = ["Y"]
    assert "did you mean 'slow_one'?" in problems(data)["data.gssm.nodes.1.parents.0"]


def test_an_invalid_node_does_not_hide_what_is_wrong_with_the_graph() -> None:
    data = experiment()
    nodes(data)[0]["state_dim"] = 0
    nodes(data)[1] |= {"parents": ["Q"], "alhpa": 1}
    assert set(problems(data)) == {
        "data.gssm.nodes.0.state_dim",
        "data.gssm.nodes.1.alhpa",
        "data.gssm.nodes.1.parents.0",
    }


@pytest.mark.parametrize("broken", [3, None, {"name": 3}, {"name": "A", "parents": 3}, {"name": "A", "parents": [3]}])
def test_nodes_that_are_no_nodes_are_reported_alone(broken: object) -> None:
    data = experiment()
    nodes(data)[0] = broken  # type: ignore[call-overload]
    assert all(path.startswith("data.gssm.nodes.0") for path in problems(data))


def test_a_cycle_is_spelt_out() -> None:
    data = experiment()
    nodes(data)[0]["parents"] = ["Y"]
    (message,) = problems(data).values()
    assert "Z <- Y <- Z" in message


def test_feedback_from_the_observed_node_is_no_cycle() -> None:
    data = experiment()
    nodes(data)[0]["parents"] = ["X"]
    spec = parse(ExperimentSpec, data)
    assert [node.name for node in spec.data.gssm.build_order()] == ["Z", "Y", "X"]


@pytest.mark.parametrize("index", [0, 2])
def test_a_node_cannot_list_itself(index: int) -> None:
    data = experiment()
    nodes(data)[index]["parents"] = [nodes(data)[index]["name"]]
    assert "lists itself" in problems(data)[f"data.gssm.nodes.{index}.parents.0"]


def test_duplicate_names_and_parents() -> None:
    data = experiment()
    nodes(data)[2]["parents"] = ["Z", "Z"]
    assert "listed twice" in problems(data)["data.gssm.nodes.2.parents.1"]
    nodes(data)[1]["name"] = "Z"
    assert "taken" in problems(data)["data.gssm.nodes.1.name"]


@pytest.mark.parametrize("mode", ["slow", "dead"])
def test_observed_node_cannot_be_slow_or_dead(mode: str) -> None:
    data = experiment()
    nodes(data)[2]["mode"] = mode
    assert "data.gssm.nodes.2.mode" in problems(data)


def test_modes_ignore_case() -> None:
    data = experiment()
    nodes(data)[0] |= {"mode": "SLOW", "kernel_type": "FullRank"}
    spec = parse(ExperimentSpec, data)
    assert spec.data.gssm.node("Z").mode == "slow"
    assert spec.data.gssm.node("Z").kernel_type == "fullrank"


def test_a_table_beyond_the_budget_is_refused() -> None:
    data = experiment()
    nodes(data)[2] |= {"state_dim": 4096, "kernel_type": "fullrank"}
    nodes(data)[0]["state_dim"] = 4096
    nodes(data)[1]["state_dim"] = 4096
    assert "entries" in problems(data)["data.gssm.nodes.2.kernel_type"]


def test_build_order_takes_nodes_as_they_become_ready_and_stops_at_the_observed_one() -> None:
    data = experiment()
    nodes(data)[:] = [
        {"name": "A", "state_dim": 2, "alpha": 1.0, "parents": ["B"]},
        {"name": "B", "state_dim": 2, "alpha": 1.0, "parents": ["C"]},
        {"name": "C", "state_dim": 2, "alpha": 1.0},
        {"name": "X", "state_dim": 2, "alpha": 1.0, "parents": ["C"], "observed": True},
        {"name": "D", "state_dim": 2, "alpha": 1.0},
    ]
    spec = parse(ExperimentSpec, data)
    assert [node.name for node in spec.data.gssm.build_order()] == ["C", "X"]
    nodes(data)[3]["parents"] = ["A"]
    spec = parse(ExperimentSpec, data)
    assert [node.name for node in spec.data.gssm.build_order()] == ["C", "D", "B", "A", "X"]


@pytest.mark.parametrize(("emb_dim", "heads", "remedy"), [(10, 4, "8 or 16"), (12, 4, "8 or 16"), (3, 4, "8")])
def test_heads_must_divide_the_width_into_pairs(emb_dim: int, heads: int, remedy: str) -> None:
    data = experiment()
    data["model"] |= {"emb_dim": emb_dim, "block": {"nb_heads": heads}}
    assert f"use {remedy}" in problems(data)["model.emb_dim"]


def test_sections_are_checked_against_each_other() -> None:
    data = experiment()
    data["model"]["vocab_size"] = 4
    data["optim"] |= {"warmup": 20, "grad_acc_steps": 3}
    data["cluster"] = {"device": "cpu", "backend": "nccl", "nproc_per_node": 2}
    assert set(problems(data)) == {"model.vocab_size", "optim.warmup", "data.batch_size", "cluster.backend"}


def test_file_data_is_told_by_its_path() -> None:
    data = experiment()
    data["data"] = {"path": "train.h5", "batch_size": 8, "seq_len": 4}
    assert "unknown key" in problems(data)["data.seq_len"]
    del data["data"]["seq_len"]
    assert parse(ExperimentSpec, data).data.path == "train.h5"


def test_a_batch_is_no_larger_than_the_sequences_that_are_used() -> None:
    data = experiment()
    data["data"] = {"path": "train.h5", "batch_size": 8, "n_data": 7}
    assert "batch_size 8 is more than the 7 sequences" in problems(data)["data.batch_size"]
    data["data"]["n_data"] = 8
    assert parse(ExperimentSpec, data).data.n_data == 8


def test_hash_depends_on_content_alone() -> None:
    data = experiment()
    spec = parse(ExperimentSpec, data)
    again = parse(ExperimentSpec, dict(reversed(list(data.items()))))
    assert content_hash(spec) == content_hash(again)
    data["optim"]["lr"] = 1e-3
    assert content_hash(parse(ExperimentSpec, data)) != content_hash(spec)
    assert '"lr":0.0003' in canonical_json(spec)


def test_dataset_sets_need_names_and_paths_of_their_own() -> None:
    data = {"seq_len": 8, "gssm": experiment()["data"]["gssm"], "sets": []}
    with pytest.raises(SpecError, match="no set is listed"):
        parse(DatasetSpec, data)
    data["sets"] = [{"name": "train", "path": "a.h5", "n_data": 3}, {"name": "train", "path": "a.h5", "n_data": 3}]
    with pytest.raises(SpecError) as caught:
        parse(DatasetSpec, data)
    assert [p.path for p in caught.value.problems] == ["sets.1.name", "sets.1.path"]
