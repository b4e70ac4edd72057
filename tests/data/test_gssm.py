from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.data.gssm import (
    FLOOR,
    Kernels,
    draw_kernels,
    joint_table,
    load_kernels,
    product_weights,
    relevant_latents,
    save_kernels,
    table_shapes,
)
from nanollama.spec.base import SpecError, canonical_json
from nanollama.spec.gssm import GSSMSpec, NodeSpec
from tests.support.gssm import Oracle, graphs

MIXED = GSSMSpec(
    nodes=(
        NodeSpec(name="C", state_dim=3, alpha=0.2, parents=("B", "X"), mode="slow", kernel_type="fullrank"),
        NodeSpec(name="B", state_dim=2, alpha=0.5, parents=("A",), mode="slow"),
        NodeSpec(name="A", state_dim=4, alpha=1e-3),
        NodeSpec(name="D", state_dim=3, alpha=0.3, parents=("A",), mode="dead"),
        NodeSpec(name="X", state_dim=5, alpha=0.7, parents=("C", "A"), observed=True),
        NodeSpec(name="late", state_dim=3, alpha=1.0, parents=("C",)),
    )
)


def rederived(spec: GSSMSpec, seed: int) -> dict[str, list[np.ndarray]]:
    """The kernels once more, from the definition, entry by entry."""
    rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(1)[0])
    sizes = {node.name: node.state_dim for node in spec.nodes}
    x = next(node.name for node in spec.nodes if node.observed)
    taken: dict[str, list[np.ndarray]] = {}
    while x not in taken:
        for node in spec.nodes:
            if node.name in taken or x in taken or any(p != x and p not in taken for p in node.parents):
                continue
            inputs = ([] if node.observed else [node.name]) + list(node.parents)
            counts = [sizes[name] for name in inputs]
            if node.kernel_type == "fullrank":
                counts = [int(np.prod(counts, dtype=int))]
            taken[node.name] = []
            for j, rows in enumerate(counts):
                table = rng.dirichlet([node.alpha] * node.state_dim, size=rows)
                for r in range(rows):
                    target = None
                    if node.mode == "dead":
                        target = 0
                    elif node.mode == "slow" and node.kernel_type == "fullrank":
                        target = int(np.unravel_index(r, [sizes[name] for name in inputs])[0])
                    elif node.mode == "slow" and j == 0:
                        target = r
                    if target is not None:
                        best = int(np.argmax(table[r]))
                        table[r, best], table[r, target] = float(table[r, target]), float(table[r, best])
                    clipped = [max(entry, 1e-10) for entry in table[r]]
                    table[r] = np.array(clipped) / sum(clipped)
                taken[node.name].append(table)
    return taken


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_kernels_follow_their_definition(seed):
    kernels = draw_kernels(MIXED, seed)
    expected = rederived(MIXED, seed)
    assert list(kernels.tables) == list(expected) == ["A", "D", "B", "C", "X"]
    for name, tables in expected.items():
        assert len(tables) == len(kernels.tables[name])
        for found, table in zip(kernels.tables[name], tables, strict=True):
            np.testing.assert_allclose(found, table, rtol=1e-14, atol=0)


@settings(deadline=None, max_examples=60)
@given(spec=graphs(), seed=st.integers(0, 2**63 - 1))
def test_kernels_of_any_graph_follow_their_definition(spec, seed):
    kernels = draw_kernels(spec, seed)
    expected = rederived(spec, seed)
    assert kernels.tables.keys() == expected.keys()
    for name, tables in expected.items():
        for found, table in zip(kernels.tables[name], tables, strict=True):
            np.testing.assert_allclose(found, table, rtol=1e-14, atol=0)


def test_golden_kernels():
    spec = GSSMSpec(
        nodes=(
            NodeSpec(name="Z", state_dim=3, alpha=0.4, mode="slow"),
            NodeSpec(name="X", state_dim=2, alpha=1.0, parents=("Z",), observed=True),
        )
    )
    kernels = draw_kernels(spec, 20)
    (z,), (x,) = kernels.tables["Z"], kernels.tables["X"]
    np.testing.assert_allclose(z, GOLDEN_Z, rtol=1e-12)
    np.testing.assert_allclose(x, GOLDEN_X, rtol=1e-12)


GOLDEN_Z = [
    [0.9146609218456379, 0.0013647151310941918, 0.08397436302326802],
    [0.22705539209423026, 0.6714776025437019, 0.10146700536206775],
    [0.02567712416509492, 0.0007398418481694925, 0.9735830339867356],
]
GOLDEN_X = [
    [0.5343872549333516, 0.46561274506664846],
    [0.6872876140663217, 0.3127123859336784],
    [0.4389599418820354, 0.5610400581179645],
]


@settings(deadline=None, max_examples=40)
@given(spec=graphs(), seed=st.integers(0, 2**32))
def test_rows_are_floored_distributions_and_read_only(spec, seed):
    for node in spec.build_order():
        tables = draw_kernels(spec, seed).tables[node.name]
        assert tuple(table.shape for table in tables) == table_shapes(spec, node)
        for table in tables:
            np.testing.assert_allclose(table.sum(axis=1), 1, rtol=0, atol=1e-14)
            assert table.min() >= FLOOR * (1 - 1e-8)
            assert not table.flags.writeable


def test_modes_put_the_largest_entry_where_they_say():
    kernels = draw_kernels(MIXED, 3)
    assert (kernels.tables["B"][0].argmax(axis=1) == np.arange(2)).all()
    assert (kernels.tables["C"][0].reshape(3, 2, 5, 3).argmax(axis=-1) == np.arange(3)[:, None, None]).all()
    for table in kernels.tables["D"]:
        assert (table.argmax(axis=1) == 0).all()


def test_a_node_in_context_mode_has_no_fixed_kernel_and_leaves_the_others_alone():
    nodes = [n.model_copy(update={"mode": "context"}) if n.name == "A" else n for n in MIXED.nodes]
    plain, context = draw_kernels(MIXED, 4), draw_kernels(GSSMSpec(nodes=tuple(nodes)), 4)
    assert "A" not in context.tables
    for name, tables in context.tables.items():
        for a, b in zip(tables, plain.tables[name], strict=True):
            assert np.array_equal(a, b)
    with pytest.raises(SpecError, match=r"context mode \('A'\)"):
        joint_table(context, "A")


@settings(deadline=None, max_examples=40)
@given(spec=graphs(), seed=st.integers(0, 2**32))
def test_joint_tables_hold_the_conditional_of_every_input(spec, seed):
    kernels = draw_kernels(spec, seed)
    oracle = Oracle(kernels)
    for node in spec.build_order():
        sizes = [spec.node(name).state_dim for name in spec.inputs(node)]
        inputs = [axis.ravel() for axis in np.indices(sizes)] if sizes else []
        expected = oracle.conditional(node, inputs, int(np.prod(sizes, dtype=int)))
        table = joint_table(kernels, node.name)
        assert table.shape == (*sizes, node.state_dim)
        np.testing.assert_allclose(table.reshape(expected.shape), expected, rtol=1e-11, atol=0)


def test_joint_tables_over_the_budget_are_refused_before_they_are_built():
    latents = tuple(NodeSpec(name=f"Z{i}", state_dim=100, alpha=1.0) for i in range(5))
    names = tuple(node.name for node in latents)
    spec = GSSMSpec(nodes=(*latents, NodeSpec(name="X", state_dim=10, alpha=1.0, parents=names, observed=True)))
    with pytest.raises(SpecError, match=r"'X' over all its inputs has 100,000,000,000 entries, .* - give it fewer"):
        joint_table(draw_kernels(spec, 0), "X")


def test_products_of_many_peaked_rows_do_not_underflow():
    rows = [np.array([1e-10, 1e-10, 0.5])] * 80 + [np.array([1.0, 1e-10, 1e-10])] * 80
    found = product_weights(rows)
    expected = 80 * np.log([1e-10, 1e-20, 0.5e-10])
    np.testing.assert_allclose(found[0] / found[2], np.exp(expected[0] - expected[2]), rtol=1e-12)
    assert found[1] == 0


def test_relevant_latents_are_those_that_reach_the_tokens():
    assert [node.name for node in relevant_latents(MIXED)] == ["A", "B", "C"]


def test_the_hash_depends_on_every_bit_of_the_law():
    base = draw_kernels(MIXED, 1)
    assert base.content_hash() == draw_kernels(MIXED, 1).content_hash()
    assert base.content_hash() != draw_kernels(MIXED, 2).content_hash()
    table = base.tables["A"][0].copy()
    table[0, 0] = np.nextafter(table[0, 0], 1)
    assert base.content_hash() != Kernels(MIXED, 1, {**base.tables, "A": (table,)}).content_hash()
    swapped = [n.model_copy(update={"parents": ("D", "A")}) if n.observed else n for n in MIXED.nodes]
    assert base.content_hash() != Kernels(GSSMSpec(nodes=tuple(swapped)), 1, base.tables).content_hash()


@settings(deadline=None, max_examples=20)
@given(spec=graphs(modes=("default", "slow", "dead", "context")), seed=st.integers(0, 2**32))
def test_kernels_survive_a_file_to_the_last_bit(spec, seed, tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / "k.npz"
    kernels = draw_kernels(spec, seed)
    save_kernels(kernels, path)
    loaded = load_kernels(path)
    assert loaded.spec == spec
    assert loaded.seed is None
    assert loaded.content_hash() == kernels.content_hash()
    assert [p.name for p in path.parent.iterdir()] == ["k.npz"]


def test_the_file_has_the_documented_keys(tmp_path):
    kernels = draw_kernels(MIXED, 0)
    save_kernels(kernels, tmp_path / "k.npz")
    with np.load(tmp_path / "k.npz", allow_pickle=False) as file:
        assert json.loads(str(file["spec"])) == MIXED.model_dump(mode="json")
        keys = {
            "kernel.A.0",
            "kernel.B.0",
            "kernel.B.1",
            "kernel.D.0",
            "kernel.D.1",
            "kernel.C.0",
            "kernel.X.0",
            "kernel.X.1",
        }
        assert set(file.files) == {"spec", *keys}
        assert np.array_equal(file["kernel.C.0"], kernels.tables["C"][0])


def foreign(path, arrays):
    kernels = draw_kernels(MIXED, 0)
    content = {f"kernel.{n}.{j}": t for n, tables in kernels.tables.items() for j, t in enumerate(tables)}
    content = {"spec": np.array(canonical_json(MIXED)), **content, **arrays}
    np.savez(path, **{key: value for key, value in content.items() if value is not None})
    return path


def uneven(*rows):
    table = np.full((4, 3), 1 / 3)
    table[list(rows)] = 0.4
    return table


def spoilt(value):
    table = np.full((4, 3), 1 / 3)
    table[3, 1] = value
    return table


def test_tables_of_another_program_are_floored(tmp_path):
    table = np.eye(4, dtype=np.float32)
    loaded = load_kernels(foreign(tmp_path / "k.npz", {"kernel.A.0": table}))
    np.testing.assert_allclose(loaded.tables["A"][0], np.where(table > 0, 1 - 3e-10, 1e-10), rtol=1e-9)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"kernel.A.0": None}, r"kernel\.A\.0 \(node 'A', table 0\) is missing - write float64 of shape \[4, 4\]"),
        ({"kernel.A.0": np.eye(3)}, r"kernel\.A\.0 .* has shape \[3, 3\], but the spec asks for \[4, 4\]"),
        ({"kernel.A.0": np.eye(4, dtype=int)}, r"kernel\.A\.0 .* holds int64, not floating-point"),
        ({"kernel.D.1": uneven(2)}, r"kernel\.D\.1 \(node 'D', table 1\) has row 2 which sums to 1\.2, not to 1 - "),
        ({"kernel.D.1": uneven(1, 3)}, r"kernel\.D\.1 .* has row 1 which sums to 1\.2, not to 1; 2 rows do not"),
        ({"kernel.D.1": spoilt(np.nan)}, r"kernel\.D\.1 .* holds nan in row 3, column 1"),
        ({"kernel.D.1": spoilt(np.inf)}, r"kernel\.D\.1 .* holds inf in row 3, column 1"),
        ({"kernel.D.1": spoilt(-1e-9)}, r"kernel\.D\.1 .* holds -1e-09 in row 3, column 1"),
        ({"kernel.E.0": np.eye(4)}, r"kernel\.E\.0 belongs to no table of the spec - did you mean 'kernel\.\w\.0'"),
        ({"kernel.A.1": np.eye(4)}, r"kernel\.A\.1 belongs to no table of the spec"),
        ({"spec": None}, "has no `spec` - write the graph's JSON text"),
        ({"spec": np.array("{")}, "spec is not JSON: .* at line 1, column 2"),
        ({"spec": np.array("[" * 100_000)}, "spec is not JSON"),
        ({"spec": np.array(b"\xff")}, "spec is not JSON"),
        ({"spec": np.array(["{}"])}, r"spec holds <U2 \[1\], not one text"),
        ({"spec": np.array(3)}, r"spec holds int64 \[\], not one text"),
        ({"spec": np.array('{"nodes": []}')}, "no node is observed"),
        ({"spec": np.array("[]")}, "expected a mapping"),
    ],
)
def test_files_with_wrong_content_are_refused(tmp_path, arrays, message):
    with pytest.raises(SpecError, match=message):
        load_kernels(foreign(tmp_path / "k.npz", arrays))


def test_every_table_with_a_fault_is_named(tmp_path):
    arrays = {"kernel.A.0": None, "kernel.D.1": uneven(0), "kernel.Z.0": np.eye(2)}
    with pytest.raises(SpecError) as caught:
        load_kernels(foreign(tmp_path / "k.npz", arrays))
    assert [p.message.split(": ")[1].split(" ")[0] for p in caught.value.problems] == [*arrays]


def test_tables_of_a_node_in_context_mode_are_refused(tmp_path):
    nodes = [n.model_copy(update={"mode": "context"}) if n.name == "A" else n for n in MIXED.nodes]
    spec = np.array(canonical_json(GSSMSpec(nodes=tuple(nodes))))
    with pytest.raises(SpecError, match=r"kernel\.A\.0 belongs to a node in context mode, .* - remove it"):
        load_kernels(foreign(tmp_path / "k.npz", {"spec": spec}))
    loaded = load_kernels(foreign(tmp_path / "k.npz", {"spec": spec, "kernel.A.0": None}))
    assert "A" not in loaded.tables


def test_a_spec_of_bytes_is_read(tmp_path):
    loaded = load_kernels(foreign(tmp_path / "k.npz", {"spec": np.array(canonical_json(MIXED).encode())}))
    assert loaded.spec == MIXED


def test_tables_that_were_clipped_but_not_normalised_are_normalised(tmp_path):
    clipped = np.maximum(np.eye(4), 1e-10)
    loaded = load_kernels(foreign(tmp_path / "k.npz", {"kernel.A.0": clipped}))
    np.testing.assert_allclose(loaded.tables["A"][0], clipped / (1 + 3e-10), rtol=1e-15)


def test_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(FileNotFoundError):
        save_kernels(draw_kernels(MIXED, 0), tmp_path / "none" / "k.npz")
    (tmp_path / "k.npz").mkdir()
    with pytest.raises(IsADirectoryError):
        save_kernels(draw_kernels(MIXED, 0), tmp_path / "k.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["k.npz"]


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04broken", b"\x93NUMPY"])
def test_files_that_are_no_npz_are_refused(tmp_path, content):
    (tmp_path / "k.npz").write_bytes(content)
    with pytest.raises(SpecError, match="not a readable"):
        load_kernels(tmp_path / "k.npz")


def test_a_missing_file_and_a_plain_array_are_refused(tmp_path):
    with pytest.raises(SpecError, match="there is no file"):
        load_kernels(tmp_path / "k.npz")
    np.save(tmp_path / "k.npy", np.eye(2))
    with pytest.raises(SpecError, match="not a readable"):
        load_kernels(tmp_path / "k.npy")


def test_kernels_and_sampler_need_no_torch():
    code = "import sys; sys.modules['torch'] = None; import nanollama.data.gssm, nanollama.data.sampler"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        (np.full((2, 3), np.nan), "node 'X', table 0 holds nan in row 0, column 0"),
        (np.array([[0.5, 0.25, 0.25], [2.0, -0.5, -0.5]]), "node 'X', table 0 holds -0.5 in row 1, column 1"),
        (np.array([[0.5, 0.25, 0.25], [np.inf, 0.0, 0.0]]), "node 'X', table 0 holds inf in row 1, column 0"),
        (np.array([[0.5, 0.25, 0.25], [0.5, 0.5, 0.5]]), "node 'X', table 0 has row 1 which sums to 1.5, not to 1"),
        (np.full((3, 3), 1 / 3), r"node 'X', table 0 has shape \[3, 3\], but the spec asks for \[2, 3\]"),
        (None, "node 'X' has 0 tables, but its inputs ask for 1"),
    ],
)
def test_tables_that_are_no_kernels_are_refused_wherever_they_come_from(table, fault):
    nodes = (
        NodeSpec(name="Z", state_dim=2, alpha=1.0),
        NodeSpec(name="X", state_dim=3, alpha=1.0, parents=("Z",), observed=True),
    )
    tables = {"Z": (np.full((2, 2), 0.5),)} | ({} if table is None else {"X": (table,)})
    with pytest.raises(ValueError, match=fault):
        Kernels(spec=GSSMSpec(nodes=nodes), seed=None, tables=tables)
