"""A plan's tables as the flat arrays that the compiled loops read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanollama.data.gssm import Array
from nanollama.data.plan import Plan
from nanollama.data.steps import (
    AFTER,
    BEFORE,
    GIVES,
    MAP,
    MATRIX,
    MATRIX_P,
    MATRIX_X,
    NUM_FIELDS,
    POST,
    PRE,
    SCALE_P,
    SCALE_X,
    SPARSE,
    STATES,
    TAKES,
    Emission,
    Program,
)
from nanollama.data.ways import Sparse


class _Pool:
    """Arrays that are laid end to end."""

    def __init__(self, dtype: Any) -> None:
        self._parts: list[NDArray[Any]] = []
        self._dtype = np.dtype(dtype)
        self._length = 0

    def add(self, values: NDArray[Any]) -> int:
        """Append the values; returns where they begin."""
        begin = self._length
        self._parts.append(values.astype(self._dtype, copy=False).reshape(-1))
        self._length += values.size
        return begin

    def joined(self) -> NDArray[Any]:
        """A writable copy of all parts: the compiled loops know one kind of array."""
        if not self._parts:
            return np.empty(0, dtype=self._dtype)
        return np.concatenate(self._parts)


def build_program(plan: Plan, dtype: np.dtype[Any], *, transposed: bool = False) -> Program:
    """The steps of the forward recursion, or those of the backward one, in the same order."""
    ops = np.full((len(plan.steps), NUM_FIELDS), -1, dtype=np.int64)
    maps, dense, starts, indices = _Pool(np.int32), _Pool(dtype), _Pool(np.int64), _Pool(np.int32)
    values, scales = _Pool(dtype), _Pool(dtype)
    for row, step in zip(ops, plan.steps, strict=True):
        tables = plan.tables(step)
        row[[SPARSE, BEFORE, STATES, AFTER]] = step.sparse, step.before, step.states, step.after
        varies = len(tables.matrix) > 1
        row[MATRIX_P] = int(varies and step.num_parents > 1)
        row[MATRIX_X] = step.num_parents if varies and step.feedback > 1 else 0
        row[SCALE_P], row[SCALE_X] = int(step.num_parents > 1), step.num_parents if step.feedback > 1 else 0
        if step.parents is not None:
            row[MAP] = maps.add(step.parents)
        if tables.pre is not None and tables.post is not None:
            row[PRE] = scales.add(tables.post if transposed else tables.pre)
            row[POST] = scales.add(tables.pre if transposed else tables.post)
        if step.sparse:
            sparse = Sparse.of(tables.matrix)
            row[TAKES if transposed else GIVES] = scales.add(sparse.background)
            excess, sources, begins = _by_rows(sparse, step.states, transposed=transposed)
            row[MATRIX] = starts.add(values.add(excess) + begins)
            indices.add(sources)
        else:
            row[MATRIX] = dense.add(tables.matrix if transposed else tables.matrix.transpose(0, 2, 1))
    joined = (pool.joined() for pool in (maps, dense, starts, indices, values, scales))
    return Program(ops, *joined)


def _by_rows(sparse: Sparse, states: int, *, transposed: bool) -> tuple[Array, NDArray[np.int64], NDArray[np.int64]]:
    """The excess by rows of the result, with the states that it multiplies and where each row begins."""
    result, source = (sparse.old, sparse.new) if transposed else (sparse.new, sparse.old)
    rows = sparse.block * states + result
    order = np.argsort(rows, kind="stable")
    counts = np.bincount(rows, minlength=len(sparse.background) * states)
    return sparse.value[order], source[order], np.concatenate([[0], np.cumsum(counts)])


def build_emission(plan: Plan, dtype: np.dtype[Any]) -> Emission:
    """The observed node's table, or the factors of one that is too large."""
    observation = plan.observation
    parents = np.empty(0, dtype=np.int32) if observation.parents is None else observation.parents
    count = observation.num_parents
    if observation.factored:
        lead, trail, inverse = plan.emission_factors()
        sizes = np.array([count, lead.shape[1], trail.shape[1]])
        table = np.empty(0, dtype=dtype)
        return Emission(sizes, table, lead.reshape(-1), trail.reshape(-1), inverse, parents)
    table = plan.emission_table().astype(dtype, copy=False).reshape(-1)
    if not table.flags.writeable:
        table = table.copy()
    empty = np.empty(0)
    return Emission(np.array([count, count, 1]), table, empty, empty, empty, parents)
