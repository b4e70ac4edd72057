"""The model of a particle: latent states and Polya urns in place of kernels, laid out for compiled loops.

A particle at time t is a path of the latents up to t, of which only the last states and the counts of every urn are
kept, and the rows of the product kernels with several inputs, which no urn can replace. Its target is their joint
posterior given x_1 .. x_t, all other rows of nodes in context mode being integrated out.

Letters: S joint states of the latents, N nodes (latents before the observed one), M tables.
"""

# ruff: noqa: PLR0917 - compiled functions are called by position

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanollama.data.gssm import (
    Array,
    IntArray,
    Kernels,
    input_sizes,
    joint_table,
    relevant_latents,
    table_shapes,
)
from nanollama.data.jit import jit
from nanollama.data.polya import context_nodes, is_urn
from nanollama.data.variates import unfloored
from nanollama.spec.base import Problem, SpecError
from nanollama.spec.gssm import NodeSpec

MAX_OPERATIONS = 2**16
"""Limit of the multiplications that one token costs a particle."""

Model = tuple[IntArray, IntArray, IntArray, IntArray, Array, Array]
"""What compiled functions take of a Plan: nodes, tables, offsets, states, fixed, alphas."""

FIXED, URN, PRODUCT = 0, 1, 2

# columns of Plan.nodes
KIND, SIZE, PREFIXES, TAIL, FIRST, LAST, COUNTS = range(7)
# columns of Plan.tables
DATA, TOTALS, ROWS, OWN, FEEDBACK, OFFSETS, INNER = range(7)

RESCALE_EVERY = 16  # factors of at least about 1e-10 each: their product stays far above the smallest float64


@dataclass(frozen=True)
class Plan:
    """Where things lie. The row of a table is OWN * own state at t-1 + FEEDBACK * x(t-1) + offsets[OFFSETS + prefix].

    The prefix of a node is the joint state of the latents before it, of which there are PREFIXES; TAIL joint states
    share one. The tables of a node are FIRST .. LAST - 1; table LAST of a product node is the row of its counts,
    which lie at COUNTS. INNER is by how much the row of the counts grows with that of a table.

    Attributes:
        nodes: int64 [N, 7].
        tables: int64 [M, 7]; DATA lies in `fixed`, in a particle's counts or in its weights, by the kind of the node;
            TOTALS are the counts of an urn's rows.
        offsets: int64, flat.
        states: each latent's state in each joint state, int64 [S, N - 1].
        fixed: the kernels of nodes that are not in context mode, flat.
        alphas: per node.
        num_counts: counts of a particle.
        num_weights: entries of the product kernels of a particle.
        operations: multiplications that one token costs a particle.
        order: the nodes.
    """

    nodes: IntArray
    tables: IntArray
    offsets: IntArray
    states: IntArray
    fixed: Array
    alphas: Array
    num_counts: int
    num_weights: int
    operations: int
    order: tuple[NodeSpec, ...]

    @property
    def arrays(self) -> Model:
        """What the compiled functions take."""
        return self.nodes, self.tables, self.offsets, self.states, self.fixed, self.alphas

    def joint_path(self, states: Mapping[str, NDArray[np.integer]], seq_len: int) -> IntArray:
        """The joint state at each t of paths {latent: [T]}.

        Raises:
            ValueError: a path that is missing, has another length, leaves the states or does not begin in state 0.
        """
        joint = np.zeros(seq_len, dtype=np.int64)
        for node in self.order[:-1]:
            path = np.asarray(states.get(node.name, ()))
            if path.shape != (seq_len,) or path.min() < 0 or path.max() >= node.state_dim or path[0] != 0:
                raise ValueError(
                    f"the true path of '{node.name}' is no path of {seq_len} states in 0 .. {node.state_dim - 1} from "
                    "state 0; take it from Sampler.sample_states"
                )
            joint = joint * node.state_dim + path
        return joint

    def log_weights(self, tables: Mapping[str, tuple[Array, ...]], rng: np.random.Generator) -> Array:
        """Logarithms of the product kernels' rows as they were before the floor, flat.

        Raises:
            ValueError: kernels that are missing or have another shape.
        """
        flat = np.zeros(self.num_weights)
        for i, node in enumerate(self.order):
            if self.nodes[i, KIND] != PRODUCT:
                continue
            given = tables.get(node.name, ())
            shapes = [(int(rows), node.state_dim) for rows in self.tables[self._own(i), ROWS]]
            if [table.shape for table in given] != shapes:
                raise ValueError(f"the true kernels of '{node.name}' lack the shapes {shapes}; take context_tables")
            for data, table in zip(self.tables[self._own(i), DATA], given, strict=True):
                flat[data : data + table.size] = unfloored(table, node.alpha, rng).reshape(-1)
        return flat

    def explain(self) -> str:
        """What a particle carries for each node, and what a token costs it."""
        kinds = {
            FIXED: "kernels that are fixed",
            URN: "rows integrated out, Polya urns",
            PRODUCT: "products of several rows, carried along and moved",
        }
        sizes = " x ".join(str(node.state_dim) for node in self.order[:-1]) or "1"
        lines = [f"context mode: {sizes} = {len(self.states):,} joint states, summed out for each particle and token"]
        for node, row in zip(self.order, self.nodes, strict=True):
            lines.append(f"{node.name}: {node.state_dim:,} states, {kinds[int(row[KIND])]}")
        carried = f"{self.num_counts:,} counts and {self.num_weights:,} entries of rows"
        lines.append(f"a particle carries {carried}; a token costs it {self.operations:,} multiplications")
        return "\n".join(lines)

    def _own(self, i: int) -> slice:
        return slice(int(self.nodes[i, FIRST]), int(self.nodes[i, LAST]))


def plan(kernels: Kernels) -> Plan:
    """Lay out the particles of a graph.

    Raises:
        SpecError: a graph without context mode, or too many joint states.
    """
    spec = kernels.spec
    if not context_nodes(spec):
        message = "no node in context mode reaches the tokens: there is nothing to estimate"
        raise SpecError([Problem(path="gssm.nodes", message=message, remedy="use Filter, which is exact")])
    latents = relevant_latents(spec)
    order = (*latents, spec.observed)
    sizes = [node.state_dim for node in latents]
    operations = _operations(kernels, order)
    layout = _Layout(kernels, order)
    for node in order:
        layout.add(node)
    joint = np.arange(math.prod(sizes))
    states = np.empty((len(joint), len(latents)), dtype=np.int64)
    for i, size in enumerate(sizes):
        states[:, i] = joint // math.prod(sizes[i + 1 :]) % size
    return Plan(
        nodes=np.array(layout.nodes, dtype=np.int64),
        tables=np.array(layout.tables, dtype=np.int64).reshape(-1, 7),
        offsets=np.concatenate([*layout.offsets, np.zeros(1, dtype=np.int64)]),
        states=states,
        fixed=np.concatenate([*layout.fixed, np.zeros(1)]),
        alphas=np.array([node.alpha for node in order]),
        num_counts=layout.num_counts,
        num_weights=layout.num_weights,
        operations=operations,
        order=order,
    )


def _operations(kernels: Kernels, order: tuple[NodeSpec, ...]) -> int:
    """Multiplications that one token costs a particle; moves of product kernels cost every row of their counts."""
    operations, prefixes = 0, 1
    for node in order:
        tables = max(1, len(table_shapes(kernels.spec, node)))
        several = node.mode == "context" and tables > 1
        operations += prefixes * (1 if node.observed and not several else node.state_dim) * (tables if several else 1)
        if several:
            sizes = input_sizes(kernels.spec, node)
            operations += tables * math.prod(sizes) * node.state_dim * tables + 30 * sum(sizes) * node.state_dim
        prefixes *= 1 if node.observed else node.state_dim
    if operations > MAX_OPERATIONS:
        dims = " x ".join(str(node.state_dim) for node in order[:-1])
        message = f"{dims} = {prefixes:,} joint states cost {operations:,} multiplications a token and particle"
        remedy = "use fewer or smaller latents, or fewer parents"
        raise SpecError([Problem(path="gssm.nodes", message=f"{message}, over {MAX_OPERATIONS:,}", remedy=remedy)])
    return operations


class _Layout:
    """Gathers the rows of a Plan, node by node."""

    def __init__(self, kernels: Kernels, order: tuple[NodeSpec, ...]) -> None:
        self.kernels = kernels
        self.axes = {node.name: i for i, node in enumerate(order[:-1])}
        self.sizes = [node.state_dim for node in order[:-1]]
        self.nodes: list[list[int]] = []
        self.tables: list[list[int]] = []
        self.offsets: list[IntArray] = []
        self.fixed: list[Array] = []
        self.num_counts = self.num_weights = 0

    def add(self, node: NodeSpec) -> None:
        spec, size = self.kernels.spec, node.state_dim
        inputs, sizes = spec.inputs(node), input_sizes(spec, node)
        shapes = table_shapes(spec, node)
        axis = len(self.nodes)
        prefixes = math.prod(self.sizes[:axis])
        first, counts = len(self.tables), 0
        strides = [math.prod(sizes[j + 1 :]) for j in range(len(sizes))]
        if node.mode != "context" or not shapes:
            kind = FIXED
            table = joint_table(self.kernels, node.name) if node.mode != "context" else np.full(size, 1 / size)
            self._table(node, axis, dict(zip(inputs, strides, strict=True)), data=sum(f.size for f in self.fixed))
            self.fixed.append(np.ascontiguousarray(table).reshape(-1))
        elif is_urn(spec, node):
            kind = URN
            rows = shapes[0][0]
            data = self._reserve(rows * size)
            self._table(
                node, axis, dict(zip(inputs, strides, strict=True)), data=data, totals=self._reserve(rows), rows=rows
            )
        else:
            kind = PRODUCT
            counts = self._reserve(math.prod(sizes) * size)
            for name, rows, inner in zip(inputs, sizes, strides, strict=True):
                self._table(node, axis, {name: 1}, data=self.num_weights, rows=rows, inner=inner)
                self.num_weights += rows * size
            self._table(node, axis, dict(zip(inputs, strides, strict=True)), rows=math.prod(sizes))
        last = len(self.tables) - (kind == PRODUCT)
        tail = math.prod(self.sizes[axis:])
        self.nodes.append([kind, size, prefixes, tail, first, last, counts])

    def _reserve(self, count: int) -> int:
        start = self.num_counts
        self.num_counts += count
        return start

    def _table(
        self,
        node: NodeSpec,
        axis: int,
        strides: Mapping[str, int],
        *,
        data: int = 0,
        totals: int = 0,
        rows: int = 0,
        inner: int = 0,
    ) -> None:
        """A table whose row is the sum of stride * input."""
        own = feedback = 0
        prefix = np.arange(math.prod(self.sizes[:axis]))
        offsets = np.zeros(len(prefix), dtype=np.int64)
        for name, stride in strides.items():
            if name == node.name:
                own = stride
            elif name == self.kernels.spec.observed.name:
                feedback = stride
            else:
                parent = self.axes[name]
                offsets += stride * (prefix // math.prod(self.sizes[parent + 1 : axis]) % self.sizes[parent])
        self.tables.append([data, totals, rows, own, feedback, sum(len(o) for o in self.offsets), inner])
        self.offsets.append(offsets)


@jit()
def weigh(
    model: Model,
    joint: IntArray,
    before: int,
    token: int,
    counts: NDArray[np.uint16],
    weights: Array,
    scratch: Array,
    sums: Array,
) -> None:
    """Fill each particle's sums[n] with the cumulative sums over z of p(z, x_t = token | particle n).

    The last one is p(x_t | particle n).

    Args:
        model: Plan.arrays.
        joint: joint states at t-1, [particles].
        before: x(t-1).
        token: x(t).
        counts: [particles, num_counts].
        weights: floored rows of the product kernels, [particles, num_weights].
        scratch: room for the largest row of a node.
        sums: [particles, S].
    """
    nodes, tables, offsets, states, fixed, alphas = model
    num_particles, num_states = sums.shape
    last = len(nodes) - 1
    sums[:, 0] = 1.0
    for i in range(last + 1):
        kind, size, first, prefixes = nodes[i, KIND], nodes[i, SIZE], nodes[i, FIRST], nodes[i, PREFIXES]
        # of the observed node only what it gives to the token is wanted; it then takes the place of its prefix
        low, high, stride = (token, token + 1, 1) if i == last else (0, size, size)
        shift = -token if i == last else 0
        data, totals, offset = tables[first, DATA], tables[first, TOTALS], tables[first, OFFSETS]
        for n in range(num_particles):
            own = states[joint[n], i] if i < last else 0
            row_0 = tables[first, OWN] * own + tables[first, FEEDBACK] * before
            for prefix in range(prefixes - 1, -1, -1):  # backwards, so that a prefix makes room for itself
                base, target = sums[n, prefix], prefix * stride + shift
                if kind == PRODUCT:
                    _product_row(nodes, tables, offsets, i, own, before, prefix, weights[n], scratch)
                    for v in range(low, high):
                        sums[n, target + v] = base * scratch[v]
                    continue
                row = row_0 + offsets[offset + prefix]
                start = data + row * size
                if kind == URN:
                    base /= size * alphas[i] + counts[n, totals + row]
                    for v in range(low, high):
                        sums[n, target + v] = base * (alphas[i] + counts[n, start + v])
                else:
                    for v in range(low, high):
                        sums[n, target + v] = base * fixed[start + v]
    for n in range(num_particles):
        for z in range(1, num_states):
            sums[n, z] += sums[n, z - 1]


@jit()
def _product_row(
    nodes: IntArray,
    tables: IntArray,
    offsets: IntArray,
    i: int,
    own: int,
    before: int,
    prefix: int,
    weights: Array,
    out: Array,
) -> None:
    """P(node i | inputs) of a product kernel, into out[:SIZE]."""
    size = nodes[i, SIZE]
    for v in range(size):
        out[v] = 1.0
    for j in range(nodes[i, FIRST], nodes[i, LAST]):
        row = tables[j, OWN] * own + tables[j, FEEDBACK] * before + offsets[tables[j, OFFSETS] + prefix]
        start = tables[j, DATA] + size * row
        for v in range(size):
            out[v] *= weights[start + v]
        if (j - nodes[i, FIRST]) % RESCALE_EVERY == RESCALE_EVERY - 1:
            rescale(out, size)
    total = 0.0
    for v in range(size):
        total += out[v]
    for v in range(size):
        out[v] /= total


@jit()
def rescale(values: Array, size: int) -> None:
    """Divide the first `size` values by the largest of them."""
    highest = 0.0
    for v in range(size):
        highest = max(highest, values[v])
    for v in range(size):
        values[v] /= highest


@jit()
def count(
    model: Model, joint: IntArray, now: IntArray, before: int, token: int, counts: NDArray[np.uint16], step: np.int64
) -> None:
    """Add `step` (1 or -1) to the counts of each particle that its move from joint[n] to now[n] and the token touch."""
    nodes, tables, offsets, states, _, _ = model
    last = len(nodes) - 1
    for i in range(last + 1):
        kind, size, tail = nodes[i, KIND], nodes[i, SIZE], nodes[i, TAIL]
        if kind == FIXED:
            continue
        j = nodes[i, LAST] if kind == PRODUCT else nodes[i, FIRST]
        data = nodes[i, COUNTS] if kind == PRODUCT else tables[j, DATA]
        for n in range(len(joint)):
            own = states[joint[n], i] if i < last else 0
            value = states[now[n], i] if i < last else token
            row = tables[j, OWN] * own + tables[j, FEEDBACK] * before + offsets[tables[j, OFFSETS] + now[n] // tail]
            counts[n, data + row * size + value] += step
            if kind == URN:
                counts[n, tables[j, TOTALS] + row] += step
