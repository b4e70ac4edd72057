"""How exact inference treats a graph: which step for which latents, chosen by a cost model that can be printed.

A step replaces the states of one latent, or of a few fused ones, at t-1 by those at t in the joint distribution of S
states. It can be done in several ways that give the same answer:

- dense: a matrix product with P(new | old, parents);
- sparse: the same where rows are a few entries above a constant, row = excess + c * ones. The excess is multiplied as
  a sparse matrix, all the rest is one weighted sum (a rank-one term), so that nothing is neglected;
- factored: a product kernel with parents, K_0[old, new] * F[parents, new] / Z[parents, old], is a product with K_0
  alone between two scalings; K_0 is dense or sparse.

Independent latents are not kept apart: after the first token the observed node ties them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nanollama.data.gssm import (
    MAX_JOINT_ENTRIES,
    Array,
    Kernels,
    context_problem,
    joint_table,
    product_weights,
    relevant_latents,
)
from nanollama.data.ways import Ints32, Observation, Option, Step, Tables
from nanollama.spec.base import SpecError
from nanollama.spec.gssm import NodeSpec

METHODS = ("auto", "dense", "sparse", "factored", "factored sparse", "fused")
"""What a caller can force; a latent to which a way does not apply is treated by the dense or sparse step."""

# the cost model, in nanoseconds of one core (AMD Zen 4, 2.6 GHz); only ratios matter
_DENSE_NS = 0.04  # a multiplication
_SPARSE_NS = 0.17
_VECTOR = 8  # columns that a multiplication takes at a time, needed or not
_PASS_NS = 0.45  # moving a number to the block and back
_RANK_ONE_NS = 0.6
_TABLE_NS = 0.8  # reading an entry of a table that depends on the parents, shared by the lanes

_CACHE_BYTES = 2**19  # of the fast cache that a joint distribution may fill
_MANY_STATES = 2**15  # from here on sequences are treated one by one
_MAX_LANES = 64
_FUSED_STATES = 256  # of a block of fused latents
_FUSED_ENTRIES = 2**18  # of its table


@dataclass
class Plan:
    """The steps for a graph, in topological order of the latents.

    Raises:
        SpecError: nodes in context mode that the tokens depend on.
    """

    kernels: Kernels
    method: str = "auto"
    item: int = 8
    table_bytes: int = 2**29
    latents: tuple[NodeSpec, ...] = field(init=False)
    constant: tuple[str, ...] = field(init=False)
    dims: tuple[int, ...] = field(init=False)
    lanes: int = field(init=False)
    steps: tuple[Step, ...] = field(init=False)
    observation: Observation = field(init=False)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"there is no method '{self.method}'; use one of {', '.join(METHODS)}")
        spec = self.kernels.spec
        relevant = relevant_latents(spec)
        context = [node.name for node in (*relevant, spec.observed) if node.mode == "context"]
        if context:
            raise SpecError([context_problem(context)])
        # a latent with a single state needs no axis: all its tables are indexed at 0
        self.latents = tuple(node for node in relevant if node.state_dim > 1)
        self.constant = tuple(node.name for node in relevant if node.state_dim == 1)
        self.dims = tuple(node.state_dim for node in self.latents)
        self._axis = {node.name: i for i, node in enumerate(self.latents)}
        self.lanes = self._lanes()
        self.steps = tuple(self._step(first, stop) for first, stop in self._blocks())
        streamed = any(not step.sparse and 8 * step.states**2 > 2 * _CACHE_BYTES for step in self.steps)
        if streamed and not self.feedback:  # a matrix beyond the cache is read once for all sequences
            self.lanes = _MAX_LANES
        self.observation = self._observed()

    @property
    def states(self) -> int:
        """S, joint states of the latents."""
        return math.prod(self.dims)

    @property
    def feedback(self) -> bool:
        """Whether tables depend on x(t-1), so that every sequence needs its own."""
        observed = self.kernels.spec.observed
        return observed.state_dim > 1 and any(observed.name in node.parents for node in self.latents)

    @property
    def multiplications(self) -> int:
        """Multiplications that one token of one sequence costs."""
        emission = self.states + (2 * self.observation.num_parents if self.observation.factored else 0)
        return sum(step.option.multiplications for step in self.steps) + emission

    @property
    def fixed_bytes(self) -> int:
        """Memory of the tables."""
        maps = sum(4 * len(step.parents) for step in self.steps if step.parents is not None)
        seen = 0 if self.observation.parents is None else self.observation.parents.nbytes
        return sum(step.option.bytes for step in self.steps) + maps + self.observation.bytes + seen

    def nanoseconds(self) -> float:
        """What a token of a sequence costs by the model."""
        return sum(step.option.nanoseconds for step in self.steps) + 2 * _PASS_NS * self.states

    def describe(self) -> str:
        """`8 x 8 = 64 joint states`."""
        return f"{' x '.join(map(str, self.dims)) or 1} = {self.states:,} joint states"

    # ---- which steps ----

    def _lanes(self) -> int:
        """Sequences that are treated together, innermost: as many as the cache holds, for wide vector operations."""
        if self.feedback or (self.states >= _MANY_STATES and len(self.dims) > 1):
            return 1
        return min(_MAX_LANES, max(8, _CACHE_BYTES // (8 * self.states) // 8 * 8))

    def _blocks(self) -> list[tuple[int, int]]:
        """Ranges of latents that make up a step; neighbours are fused while that is cheaper."""
        blocks = [(i, i + 1) for i in range(len(self.latents))]
        if self.method not in ("auto", "fused"):
            return blocks
        while len(blocks) > 1:
            merges = []
            for i in range(len(blocks) - 1):
                first, stop = blocks[i][0], blocks[i + 1][1]
                if self._fusible(first, stop):
                    apart = sum(self._step(*block).option.nanoseconds for block in blocks[i : i + 2])
                    merges.append((self._step(first, stop).option.nanoseconds - apart, i))
            gain, i = min(merges, default=(0.0, 0))
            if not merges or (gain >= 0 and self.method != "fused"):
                break
            blocks[i : i + 2] = [(blocks[i][0], blocks[i + 1][1])]
        return blocks

    def _fusible(self, first: int, stop: int) -> bool:
        states = math.prod(self.dims[first:stop])
        if states > _FUSED_STATES:
            return False
        parents, feedback = self._block_parents(first, stop)
        return math.prod(self.dims[axis] for axis in parents) * feedback * states**2 <= _FUSED_ENTRIES

    def _block_parents(self, first: int, stop: int) -> tuple[list[int], int]:
        """Axes of the parents outside the block in ascending order, and V if x(t-1) is a parent (else 1)."""
        observed = self.kernels.spec.observed
        names = {name for node in self.latents[first:stop] for name in node.parents}
        parents = sorted({self._axis[name] for name in names if name in self._axis} - set(range(first, stop)))
        return parents, observed.state_dim if observed.name in names else 1

    def _step(self, first: int, stop: int) -> Step:
        axes, feedback = self._block_parents(first, stop)
        before, after = math.prod(self.dims[:first]), math.prod(self.dims[stop:])
        states = math.prod(self.dims[first:stop])
        num_parents = math.prod(self.dims[axis] for axis in axes)
        shape = (before, states, after, num_parents, feedback)
        options = self._options(self.latents[first:stop], shape)
        wanted = {"auto": options, "fused": options}.get(self.method)
        if wanted is None:
            wanted = [option for option in options if option.method == self.method]
            plain = self.method.removeprefix("factored ").replace("factored", "dense")
            wanted = wanted or [option for option in options if option.method == plain]
            if not wanted:
                table = f"{states:,} x {states:,} x {num_parents * feedback:,} entries"
                message = f"the {plain} step of '{self.latents[first].name}' needs a table of {table}"
                raise ValueError(f"{message}, over {MAX_JOINT_ENTRIES:,}; use method 'auto'")
        return Step(
            names=tuple(node.name for node in self.latents[first:stop]),
            before=before,
            states=states,
            after=after,
            parents=_parent_states(self.dims[:first], axes) if axes else None,
            num_parents=num_parents,
            feedback=feedback,
            option=min(wanted, key=lambda option: option.nanoseconds),
            options=tuple(options),
        )

    def _options(self, block: Sequence[NodeSpec], shape: tuple[int, int, int, int, int]) -> list[Option]:
        _, states, _, num_parents, feedback = shape
        blocks = num_parents * feedback
        dense = self._option("dense", shape, blocks, states * states * blocks)
        options = [dense] if states * states * blocks <= MAX_JOINT_ENTRIES else []
        if len(block) > 1:
            return [dense]
        node = block[0]
        own = self.kernels.tables[node.name][0]
        if node.parents and node.kernel_type == "product":
            options.append(self._option("factored", shape, 1, states * states))
            options.append(self._option("factored sparse", shape, 1, _above_background(own)))
            if self.method == "sparse":
                options.append(self._option("sparse", shape, blocks, states * states * blocks))
        else:
            options.append(self._option("sparse", shape, blocks, _above_background(own)))
        return options

    def _option(self, method: str, shape: tuple[int, int, int, int, int], blocks: int, entries: int) -> Option:
        """Price a way whose matrices have `entries` stored numbers in all of their `blocks`."""
        before, states, after, num_parents, feedback = shape
        total = before * states * after
        each = entries / (states * blocks)  # multiplications for a number of the joint distribution
        inner = after * self.lanes
        width = min(_MAX_LANES, inner if blocks > 1 and num_parents > 1 else before * inner)
        multiplications, nanoseconds = total * each, total * _PASS_NS
        idle = max(1, _VECTOR / width)
        if method.endswith("sparse"):
            nanoseconds += total * (each * _SPARSE_NS + _RANK_ONE_NS) * idle
            multiplications += 2 * total
            size = entries * (self.item + 4) + blocks * states * (8 + self.item)
        else:
            nanoseconds += total * each * _DENSE_NS * idle
            size = self.item * entries
        if blocks > 1:
            nanoseconds += entries / feedback * _TABLE_NS / self.lanes
        if method.startswith("factored"):
            multiplications += 2 * total
            size += 2 * self.item * num_parents * feedback * states
        return Option(method=method, multiplications=round(multiplications), nanoseconds=nanoseconds, bytes=size)

    def _observed(self) -> Observation:
        node = self.kernels.spec.observed
        axes = sorted(self._axis[name] for name in node.parents if name in self._axis)
        count = math.prod(self.dims[axis] for axis in axes)
        size = count * node.state_dim * self.item
        too_large = size > self.table_bytes or count * node.state_dim > MAX_JOINT_ENTRIES
        factored = node.kernel_type == "product" and len(axes) > 1 and too_large
        parents = None if count == self.states else _parent_states(self.dims, axes)
        return Observation(count, factored, 8 * count if factored else size, parents)

    # ---- their tables ----

    def tables(self, step: Step) -> Tables:
        """Compute what a step multiplies with, in float64."""
        if step.factored:
            return self._factors(step)
        first = self._axis[step.names[0]]
        table = self._joint(first, first + len(step.names))
        return Tables(matrix=table.reshape(-1, step.states, step.states))

    def _joint(self, first: int, stop: int) -> Array:
        """P(new states | x(t-1), parents, old states) of a block, axes in that order (Einstein summation)."""
        block = self.latents[first:stop]
        axes, feedback = self._block_parents(first, stop)
        if len(block) == 1 and not axes and feedback == 1 and len(block[0].parents) == 0:
            return self.kernels.tables[block[0].name][0]
        observed = self.kernels.spec.observed.name
        new = {node.name: i for i, node in enumerate(block)}
        old = {node.name: len(block) + i for i, node in enumerate(block)}
        outside = {self.latents[axis].name: 2 * len(block) + i for i, axis in enumerate(axes)}
        outside[observed] = 2 * len(block) + len(axes)
        operands: list[Any] = []
        for node in block:
            table = joint_table(self.kernels, node.name)
            inputs = self.kernels.spec.inputs(node)
            kept = [name for name, size in zip(inputs, table.shape, strict=False) if size > 1]
            labels = [old[node.name], *(new.get(name, outside.get(name, -1)) for name in kept[1:]), new[node.name]]
            operands += [table.reshape([size for size in table.shape[:-1] if size > 1] + [node.state_dim]), labels]
        result = [outside[observed]] if feedback > 1 else []
        result += [outside[self.latents[axis].name] for axis in axes] + list(old.values()) + list(new.values())
        joint: Array = np.ascontiguousarray(np.einsum(*operands, result))
        return joint

    def _factors(self, step: Step) -> Tables:
        """K_0, and the scalings: F(parents, new) by which it is multiplied and 1 / Z(parents, old)."""
        node = self.latents[self._axis[step.names[0]]]
        own, *others = self.kernels.tables[node.name]
        axes, feedback = self._block_parents(self._axis[node.name], self._axis[node.name] + 1)
        observed = self.kernels.spec.observed.name
        place = {self.latents[axis].name: 1 + i for i, axis in enumerate(axes)}
        place[observed] = 0
        full = [feedback, *(self.dims[axis] for axis in axes), node.state_dim]
        factors = []
        for name, table in zip(node.parents, others, strict=True):
            view = [1] * (len(full) - 1) + [node.state_dim]
            if name in place and len(table) > 1:
                view[place[name]] = len(table)
            factors.append(table.reshape(view))
        weights = np.broadcast_to(product_weights(factors), full).reshape(-1, node.state_dim)
        post = weights / np.maximum(weights.max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
        return Tables(matrix=own[None], pre=_inverse(post @ own.T), post=post)

    def emission_table(self) -> Array:
        """P(x | parents), [V, P]."""
        node = self.kernels.spec.observed
        if node.kernel_type == "product":
            lead, trail, inverse = self.emission_factors()
            table = np.empty((node.state_dim, len(inverse)), dtype=np.float64 if self.item == 8 else np.float32)
            for row, a, b in zip(table, lead, trail, strict=True):
                np.multiply(np.multiply.outer(a, b).reshape(-1), inverse, out=row, casting="same_kind")
            return table
        joint = joint_table(self.kernels, node.name, max_entries=2**62)
        names = [name for name, size in zip(node.parents, joint.shape, strict=False) if size > 1]
        joint = joint.reshape([size for size in joint.shape[:-1] if size > 1] + [node.state_dim])
        order = sorted(range(len(names)), key=lambda i: self._axis[names[i]])
        return np.ascontiguousarray(joint.transpose(len(names), *order).reshape(node.state_dim, -1))

    def emission_factors(self) -> tuple[Array, Array, Array]:
        """Factors of a product kernel: lead [V, A], trail [V, C] and inverse [A * C] of its sum over the symbols."""
        node = self.kernels.spec.observed
        tables = dict(zip(node.parents, self.kernels.tables[node.name], strict=True))
        single = [table for name, table in tables.items() if name not in self._axis]
        parts = [tables[name] for name in sorted((n for n in tables if n in self._axis), key=self._axis.__getitem__)]
        half = next((i for i in range(len(parts)) if _rows(parts[: i + 1]) ** 2 > _rows(parts)), len(parts))
        lead = _outer([*single, *parts[:half]], node.state_dim)
        trail = _outer(parts[half:], node.state_dim)
        return lead.T.copy(), trail.T.copy(), _inverse(lead @ trail.T).reshape(-1)

    # ---- for the reader ----

    def explain(self) -> str:
        """The steps, with the ways that were weighed and their costs."""
        lines = [f"{self.describe()}, method {self.method}, {self.lanes} sequences together"]
        for step in self.steps:
            depends = f", tables for {step.num_parents:,} states of parents" if step.parents is not None else ""
            depends += f" and {step.feedback} previous symbols" if step.feedback > 1 else ""
            lines.append(f"{' + '.join(step.names)}: {step.states:,} states{depends}")
            lines += [f"  {'->' if option == step.option else '  '} {option}" for option in step.options]
        kind = "factors" if self.observation.factored else "a table"
        name = self.kernels.spec.observed.name
        lines.append(f"{name}: {kind} for {self.observation.num_parents:,} states of parents")
        total = f"{self.multiplications:,} multiplications, {self.nanoseconds() / 1e3:,.2f} us of one core"
        lines.append(f"in all: {total} a token, {self.fixed_bytes:,} bytes of tables")
        return "\n".join(lines)


def _above_background(table: Array) -> int:
    """Entries above the smallest of their rows."""
    return int(np.count_nonzero(table > table.min(axis=1, keepdims=True)))


def _parent_states(dims: Sequence[int], axes: Sequence[int]) -> Ints32:
    """For each joint state of `dims` (C order) the joint state of the given axes."""
    states = np.zeros((1,) * len(dims), dtype=np.int32)
    for axis in axes:
        view = [1] * len(dims)
        view[axis] = dims[axis]
        states = states * np.int32(dims[axis]) + np.arange(dims[axis], dtype=np.int32).reshape(view)
    return np.ascontiguousarray(np.broadcast_to(states, tuple(dims))).reshape(-1)


def _inverse(values: Array) -> Array:
    """1 / values; zero where a distribution has no mass at all, so that what needs it has probability zero."""
    inverse: Array = np.divide(1, values, out=np.zeros_like(values), where=values > 0)
    return inverse


def _rows(tables: Sequence[Array]) -> int:
    return math.prod(len(table) for table in tables)


def _outer(tables: Sequence[Array], columns: int) -> Array:
    """Products of one row of each table, [product of the rows, columns], each scaled to a largest entry of 1."""
    joined = np.ones((1, columns))
    for table in tables:
        joined = (joined[:, None, :] * table[None]).reshape(-1, columns)
        largest = joined.max(axis=1, keepdims=True)
        joined /= np.where(largest > 0, largest, 1)
    return joined
