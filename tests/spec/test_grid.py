from __future__ import annotations

import itertools
import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.spec.base import SpecError
from nanollama.spec.data import DatasetSpec
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.grid import MAX_NAME, MAX_RUNS, Variant, expand
from nanollama.spec.load import Document, read_document
from nanollama.spec.yaml_text import dump_yaml
from tests.support.examples import experiment

Problems = dict[str, str]


def document(grid: object, **changes: Any) -> Document:
    return Document({**experiment(), **changes, "grid": grid}, "", (), {}, frozenset())


def runs(grid: object, **changes: Any) -> list[Variant[ExperimentSpec]]:
    return expand(document(grid, **changes), ExperimentSpec)


def names(grid: object, **changes: Any) -> list[str]:
    return [run.name for run in runs(grid, **changes)]


def problems(grid: object, **changes: Any) -> Problems:
    with pytest.raises(SpecError) as caught:
        runs(grid, **changes)
    return {p.path: f"{p.message} - {p.remedy}" for p in caught.value.problems}


axes = st.dictionaries(
    st.sampled_from(
        ["optim.lr", "optim.weight_decay", "data.seed", "orchestration.utils.seed", "data.gssm.nodes.0.alpha"]
    ),
    st.lists(st.integers(1, 10**6), min_size=1, max_size=6, unique=True),
    max_size=4,
)


@settings(deadline=None)
@given(axes)
def test_runs_are_the_product_in_order_with_names_of_their_own(grid: dict[str, list[int]]) -> None:
    found = runs(grid)
    assert len(found) == math.prod(map(len, grid.values()))
    assert [list(run.values.values()) for run in found] == [list(row) for row in itertools.product(*grid.values())]
    assert [run.index for run in found] == list(range(len(found)))
    assert len({run.name for run in found}) == len(found)
    assert all(re.fullmatch(r"[A-Za-z0-9_.,=+@%:~-]+", run.name) for run in found)
    assert names(grid) == [run.name for run in found]
    for run in found[:3]:
        spec = run.spec
        for key, value in run.values.items():
            *sections, name = key.split(".")
            target: Any = spec
            for section in sections:
                target = target[int(section)] if section.isdigit() else getattr(target, section)
            assert getattr(target, name) == value


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(st.text(max_size=200), st.integers(), st.floats(allow_nan=False, allow_infinity=False)),
        min_size=1,
        max_size=6,
    )
)
def test_names_differ_whatever_the_values_are(values: list[Any]) -> None:
    distinct = [v for i, v in enumerate(values) if not any(type(v) is type(w) and v == w for w in values[:i])]
    made = Document({"grid": {"word": distinct, "other": ["a,word=b", "a"]}}, "", (), {}, frozenset())
    found = expand(made, ExperimentSpec, check=False)
    assert len({run.name for run in found}) == 2 * len(distinct)
    assert all(0 < len(run.name) <= MAX_NAME and "/" not in run.name for run in found)


def test_keys_are_shortened_as_far_as_they_stay_apart() -> None:
    assert names({"model.emb_dim": [16], "data.seed": [3]}) == ["emb_dim=16,seed=3"]
    assert names({"data.seed": [3], "orchestration.utils.seed": [4]}) == ["data.seed=3,utils.seed=4"]
    two = {"data.gssm.nodes.0.alpha": [0.1], "data.gssm.nodes.2.alpha": [1e-5]}
    assert names(two) == ["Z.alpha=0.1,X.alpha=1e-05"]
    assert names({"data": {"gssm": {"nodes": {"0": {"alpha": [1.0]}}}}}) == ["alpha=1"]


def test_graphs_go_by_number_or_by_label() -> None:
    nodes = experiment()["data"]["gssm"]["nodes"]
    grid = {"data.gssm.nodes": [nodes, {"label": "two latents", "value": [*nodes[:1], {**nodes[2], "parents": ["Z"]}]}]}
    found = runs(grid)
    assert [run.name for run in found] == ["graph=0", "graph=two_latents"]
    assert len(found[1].spec.data.gssm.nodes) == 2
    assert found[1].spec.orchestration.name == "run,graph=two_latents"


def test_keys_in_a_zip_advance_together() -> None:
    grid = {"optim.lr": [0.1, 0.2], "zip": [{"data.seed": [1, 2, 3], "model.emb_dim": "[8, 16] + [8]"}]}
    assert [tuple(run.values.values()) for run in runs(grid)] == [
        (lr, *pair) for lr in (0.1, 0.2) for pair in ((1, 8), (2, 16), (3, 8))
    ]
    assert len(runs({"zip": {"data.seed": [1, 2], "optim.lr": [0.1, 0.2]}})) == 2
    found = problems({"zip": [{"data.seed": [1, 2, 3], "optim.lr": [0.1]}, 3]})
    assert "different lengths: data.seed: 3, optim.lr: 1" in found["grid.zip.0"]
    assert "advance together" in found["grid.zip.1"]


@pytest.mark.parametrize(
    ("grid", "path", "message"),
    [
        ([1], "grid", "should be a section"),
        ({"optim.lr": 0.1}, "grid.optim.lr", "should be a list of values, found 0.1 - write [0.1]"),
        ({"model.implementation": "mamba"}, "grid.model.implementation", "write a list: [mamba]"),
        ({"optim": {"lr": "np.logspace(1, 2)"}}, "grid.optim.lr", "write a list: such as [8, 16, 32] or range(10)"),
        ({"optim.lr": []}, "grid.optim.lr", "has no values"),
        ({"optim.lr": [0.1, 0.2, 0.1]}, "grid.optim.lr.2", "value 2 repeats an earlier one: 0.1"),
        ({"optim.lr": [0.1], "optim": {"lr": [0.2]}}, "grid", "'optim.lr' is swept twice"),
        ({"optim.lrr": [0.1]}, "grid.optim.lrr.0", "unknown key - did you mean 'lr'?"),
        ({"data.gssm.nodes.9.alpha": [1.0]}, "grid.data.gssm.nodes.9.alpha.0", "not an index into a list of 3"),
        ({"data.batch_size.x": [1]}, "grid.data.batch_size.x.0", "data.batch_size is a plain value"),
        ({"optim.lr": [{"label": [], "value": 0.1}]}, "grid.optim.lr.0.label", "should be a short word, found []"),
    ],
)
def test_bad_grids(grid: object, path: str, message: str) -> None:
    assert message in problems(grid)[path]


def test_the_combination_is_named_where_not_all_have_the_problem() -> None:
    found = problems({"data.seed": [1, 2], "model.emb_dim": [8, 7, 0]})
    assert "(in seed=1,emb_dim=7 and 1 more) - use 4 or 8" in found["grid.model.emb_dim.1"]
    assert "found 0 (in seed=1,emb_dim=0 and 1 more)" in found["grid.model.emb_dim.2"]
    assert "(in " not in problems({"data.seed": [1, 2]}, optim={"steps": 0})["optim.steps"]


def test_more_runs_than_anybody_means_are_refused_with_their_number() -> None:
    grid = {"data.seed": f"range({MAX_RUNS // 10})", "optim.lr": [0.1 * i for i in range(1, 12)]}
    assert problems(grid)["grid"].startswith("the grid describes 1000 x 11 = 11,000 runs; the limit is 10,000 - split")
    assert len(expand(document({"data.seed": f"range({MAX_RUNS})"}), ExperimentSpec, check=False)) == MAX_RUNS


def test_problems_have_the_lines_of_the_grid(tmp_path: Any) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("grid:\n  model.emb_dim:\n    - 8\n    - 7\n" + dump_yaml(experiment()))
    with pytest.raises(SpecError) as caught:
        expand(read_document([f"config={path}"]), ExperimentSpec)
    (problem,) = caught.value.problems
    assert (problem.path, problem.line, problem.column) == ("grid.model.emb_dim.1", 4, 7)


def test_a_config_without_a_grid_is_one_run() -> None:
    (run,) = expand(Document(experiment(), "", (), {}, frozenset()), ExperimentSpec)
    assert (run.name, run.index, run.spec.orchestration.name) == ("run", 0, "run")


def test_grid_id_fills_paths_and_leaves_the_config() -> None:
    found = runs({"grid_id": "range(2, 4)"}, data={"path": "d/${GRIDID}/$GRIDID.h5", "batch_size": 8})
    assert [run.spec.data.path for run in found] == ["d/2/2.h5", "d/3/3.h5"]
    assert "grid_id" not in found[0].data


def test_sets_of_two_runs_never_share_a_file() -> None:
    data = {
        "seq_len": 8,
        "gssm": experiment()["data"]["gssm"],
        "sets": [{"name": "train", "path": "a.h5", "n_data": 3}],
        "grid": {"seed": [0, 1]},
    }
    with pytest.raises(SpecError, match=r"sets.0.path: a\.h5 would be written for seed=0 and for seed=1 - put .GRIDID"):
        expand(Document(data, "", (), {}, frozenset()), DatasetSpec)
    data["sets"][0]["path"] = "a$GRIDID.h5"
    assert len(expand(Document(data, "", (), {}, frozenset()), DatasetSpec)) == 2
