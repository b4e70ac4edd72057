"""Ancestral sampling with counter-based randomness: a sequence depends on (seed, split, index) and nothing else."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nanollama.data.gssm import (
    Array,
    IntArray,
    Kernels,
    draw_tables,
    input_sizes,
    joint_weights,
    product_weights,
    relevant_latents,
    table_shapes,
)
from nanollama.spec.gssm import NodeSpec

_STATES, _KERNELS = 0, 1  # last word of the counter: what the random numbers are for
_BLOCK = 256  # steps whose uniforms are drawn together; a multiple of the 4 numbers of one Philox block
_WORKING_BYTES = 2**28  # of uniforms and per-sequence kernels held at a time
_MAX_CACHED_ENTRIES = 2**22  # cumulative tables of more entries are computed row by row at each step


class Sampler:
    """Draws sequences of a GSSM.

    Sequence i of a split is bit-identical whatever the batch it is drawn in, and a longer sequence begins with the
    shorter one.
    """

    def __init__(self, kernels: Kernels, seed: int, split: str) -> None:
        self.kernels = kernels
        self.seed = seed
        self.split = split
        self._spec = kernels.spec
        self._order = kernels.spec.build_order()
        self._sizes = {node.name: input_sizes(self._spec, node) for node in self._order}
        self._context = [node for node in self._order if node.mode == "context"]
        digest = hashlib.sha256(f"nanollama sequences, seed {seed}, split {split}".encode()).digest()
        self._key = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)
        self._cached = {node.name: self._joint_cumulative(node) for node in self._order if self._fits(node)}

    def sample(self, indices: ArrayLike, seq_len: int) -> IntArray:
        """Tokens of the sequences with the given indices: int64 of shape [len(indices), seq_len]; the first is 0."""
        observed = self._spec.observed
        nodes = [*relevant_latents(self._spec), observed]
        return self._sample(indices, seq_len, nodes)[observed.name]

    def sample_states(self, indices: ArrayLike, seq_len: int) -> dict[str, IntArray]:
        """States of every node of the build order, each int64 of shape [len(indices), seq_len]."""
        return self._sample(indices, seq_len, self._order)

    def context_tables(self, index: int) -> dict[str, tuple[Array, ...]]:
        """The kernels of the nodes in context mode that generate one sequence."""
        rng = self._generator(index, _KERNELS)
        return {node.name: draw_tables(self._spec, node, rng) for node in self._context}

    def _generator(self, index: int, purpose: int, block: int = 0) -> np.random.Generator:
        counter = np.array([block, 0, index, purpose], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(counter=counter, key=self._key))

    def _sample(self, indices: ArrayLike, seq_len: int, nodes: Sequence[NodeSpec]) -> dict[str, IntArray]:
        index = np.asarray(indices, dtype=np.uint64).reshape(-1)
        shapes = [shape for node in self._context for shape in table_shapes(self._spec, node)]
        numbers = min(_BLOCK, seq_len) * len(self._order) + sum(math.prod(shape) for shape in shapes)
        batch = max(1, _WORKING_BYTES // (8 * numbers))
        states = {node.name: np.zeros((len(index), seq_len), dtype=np.int64) for node in nodes}
        for start in range(0, len(index), batch):
            part = slice(start, start + batch)
            for name, drawn in self._sample_part(index[part], seq_len, nodes).items():
                states[name][part] = drawn.T
        return states

    def _sample_part(self, index: NDArray[np.uint64], seq_len: int, nodes: Sequence[NodeSpec]) -> dict[str, IntArray]:
        """States of shape [seq_len, len(index)]."""
        own_tables = self._stacked_context_tables(index)
        column = {node.name: i for i, node in enumerate(self._order)}
        # time comes first, so that what one step reads and writes is contiguous
        states = {node.name: np.zeros((seq_len, len(index)), dtype=np.int64) for node in nodes}
        observed = self._spec.observed.name
        uniforms = np.empty((len(index), min(_BLOCK, seq_len - 1), len(self._order)))
        for t in range(1, seq_len):
            offset = (t - 1) % _BLOCK
            if offset == 0:
                self._fill(uniforms, index, t - 1)
            for node in nodes:
                inputs = [] if node.observed else [states[node.name][t - 1]]
                inputs += [states[parent][t - 1 if parent == observed else t] for parent in node.parents]
                cumulative = self._cumulative(node, inputs, own_tables, len(index))
                below = cumulative <= uniforms[:, offset, column[node.name], None]
                states[node.name][t] = below.sum(axis=1)
        return states

    def _fill(self, uniforms: Array, index: NDArray[np.uint64], step: int) -> None:
        block = step * len(self._order) // 4
        for row, i in enumerate(index):
            self._generator(i, _STATES, block).random(out=uniforms[row])

    def _cumulative(
        self, node: NodeSpec, inputs: Sequence[IntArray], own: Mapping[str, tuple[Array, ...]], batch: int
    ) -> Array:
        """Cumulative distribution of a node given its inputs, [batch, state_dim]."""
        sizes = self._sizes[node.name]
        if node.name in self._cached:
            return self._cached[node.name][_ravel(inputs, sizes, batch)]
        rows = [_ravel(inputs, sizes, batch)] if node.kernel_type == "fullrank" else inputs
        if node.name in own:
            each = np.arange(batch)
            factors = [table[each, row] for table, row in zip(own[node.name], rows, strict=True)]
        else:
            factors = [table[row] for table, row in zip(self.kernels.tables[node.name], rows, strict=True)]
        return _to_cumulative(np.broadcast_to(product_weights(factors), (batch, node.state_dim)))

    def _joint_cumulative(self, node: NodeSpec) -> Array:
        weights = joint_weights(self._spec, node, self.kernels.tables[node.name])
        return _to_cumulative(weights.reshape(-1, node.state_dim))

    def _fits(self, node: NodeSpec) -> bool:
        entries = math.prod((*self._sizes[node.name], node.state_dim))
        return node.mode != "context" and entries <= _MAX_CACHED_ENTRIES

    def _stacked_context_tables(self, index: NDArray[np.uint64]) -> dict[str, tuple[Array, ...]]:
        """Kernels of the nodes in context mode, tables of shape [len(index), rows, state_dim]."""
        if not self._context or not len(index):
            return {}
        drawn = [self.context_tables(int(i)) for i in index]
        return {
            node.name: tuple(np.stack(tables) for tables in zip(*(d[node.name] for d in drawn), strict=True))
            for node in self._context
        }


def _ravel(inputs: Sequence[IntArray], sizes: Sequence[int], batch: int) -> IntArray:
    """Row of a joint table, inputs in C order; unlike ravel_multi_index it accepts any number of inputs."""
    row = np.zeros(batch, dtype=np.int64)
    for states, size in zip(inputs, sizes, strict=True):
        row = row * size + states
    return row


def _to_cumulative(weights: Array) -> Array:
    """Cumulative distributions along the last axis; the last entry is exactly 1, above every uniform number."""
    sums = np.cumsum(weights, axis=-1)
    sums /= sums[..., -1:]
    return sums
