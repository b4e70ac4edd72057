"""Markov moves of the rows of product kernels given the counts of their inputs and outputs."""

# ruff: noqa: PLR0917 - compiled functions are called by position

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nanollama.data.collapsed import (
    COUNTS,
    DATA,
    FIRST,
    INNER,
    KIND,
    LAST,
    PRODUCT,
    RESCALE_EVERY,
    ROWS,
    SIZE,
    Model,
    rescale,
)
from nanollama.data.gssm import Array
from nanollama.data.jit import jit
from nanollama.data.variates import floor_row, log_dirichlet, log_gamma_variate, log_sum, uniform


@jit()
def draw_weights(model: Model, state: NDArray[np.uint64], logs: Array, weights: Array) -> None:
    """Draw the rows of all product kernels of a particle from the prior: logarithms, and floored rows."""
    nodes, tables, _, _, _, alphas = model
    for i in range(len(nodes)):
        if nodes[i, KIND] == PRODUCT:
            size = nodes[i, SIZE]
            prior = np.full(size, alphas[i])
            for j in range(nodes[i, FIRST], nodes[i, LAST]):
                for start in range(tables[j, DATA], tables[j, DATA] + tables[j, ROWS] * size, size):
                    log_dirichlet(state, prior, logs[start : start + size])
                    floor_row(logs[start : start + size], weights[start : start + size])


@jit()
def floor_weights(model: Model, logs: Array, weights: Array) -> None:
    """Floored rows of the product kernels of a particle from the logarithms of their rows."""
    nodes, tables = model[:2]
    for i in range(len(nodes)):
        if nodes[i, KIND] == PRODUCT:
            size = nodes[i, SIZE]
            for j in range(nodes[i, FIRST], nodes[i, LAST]):
                for start in range(tables[j, DATA], tables[j, DATA] + tables[j, ROWS] * size, size):
                    floor_row(logs[start : start + size], weights[start : start + size])


@jit()
def move_weights(
    model: Model,
    state: NDArray[np.uint64],
    counts: NDArray[np.uint16],
    logs: Array,
    weights: Array,
    room: Array,
    direction: np.int64,
) -> None:
    """Move every row of every product kernel of a particle, leaving their posterior given the counts invariant.

    Each move of a row is reversible, so that the moves in the opposite order are the reversal of the whole.

    Args:
        model: Plan.arrays.
        state: of the generator.
        counts: of the particle.
        logs: logarithms of its rows, changed in place.
        weights: its floored rows, changed in place.
        room: float64 [6, largest size] to work in.
        direction: 1, or -1 for the reversal.
    """
    nodes, tables = model[:2]
    for p in range(len(nodes)):
        i = p if direction > 0 else len(nodes) - 1 - p
        if nodes[i, KIND] != PRODUCT:
            continue
        for q in range(nodes[i, LAST] - nodes[i, FIRST]):
            j = nodes[i, FIRST] + q if direction > 0 else nodes[i, LAST] - 1 - q
            for r in range(tables[j, ROWS]):
                row = r if direction > 0 else tables[j, ROWS] - 1 - r
                _move_row(model, i, j, row, state, counts, logs, weights, room)


@jit()
def _move_row(
    model: Model,
    i: int,
    j: int,
    row: int,
    state: NDArray[np.uint64],
    counts: NDArray[np.uint16],
    logs: Array,
    weights: Array,
    room: Array,
) -> None:
    """One Metropolis-Hastings move of a row of table j of node i.

    The proposal keeps Dirichlet(alpha + share * n) invariant, n the counts of what was drawn with this row: the law
    of the row if it were the node's only one. How much it keeps of the old row and which share it takes are drawn
    at random, because a row's true posterior is narrower or wider as the other rows have it.
    """
    nodes, tables, _, _, _, alphas = model
    size, inner, rows = nodes[i, SIZE], tables[j, INNER], tables[j, ROWS]
    start = tables[j, DATA] + row * size
    old_log, old = logs[start : start + size], weights[start : start + size]
    seen, target, new_log, new = room[0, :size], room[1, :size], room[2, :size], room[3, :size]
    total = 0.0
    for v in range(size):
        seen[v] = 0.0
    joint_rows = tables[nodes[i, LAST], ROWS]
    for outer in range(row * inner, joint_rows, rows * inner):
        for joint in range(outer, outer + inner):
            for v in range(size):
                seen[v] += counts[nodes[i, COUNTS] + joint * size + v]
    share = 0.5 ** np.floor(3.0 * uniform(state))
    keep = 0.5 * np.floor(3.0 * uniform(state))  # 0, 0.5 or 1
    keep = 0.9 if keep == 1.0 else keep
    for v in range(size):
        total += seen[v]
        target[v] = alphas[i] + share * seen[v]
    if keep == 0.0 or total == 0.0:
        log_dirichlet(state, target, new_log)
    else:
        _thin(state, target, keep, old_log, new_log)
    floor_row(new_log, new)
    if total > 0.0:
        log_ratio = 0.0
        for v in range(size):
            if seen[v] > 0.0:
                log_ratio += seen[v] * (math.log(new[v] / old[v]) - share * (new_log[v] - old_log[v]))
        log_ratio += _normalisers(model, i, j, row, counts, weights, old, new, room)
        if math.log(uniform(state)) >= log_ratio:
            return
    for v in range(size):
        old_log[v], old[v] = new_log[v], new[v]


@jit()
def _thin(state: NDArray[np.uint64], target: Array, keep: float, old_log: Array, new_log: Array) -> None:
    """A step that is reversible with respect to Dirichlet(target): the beta-gamma process of Lewis et al. 1989.

    A Gamma(a) variate is thinned to Gamma(keep * a) by a beta variate, and Gamma((1 - keep) * a) is added anew.
    """
    total = 0.0
    for v in range(len(target)):
        total += target[v]
    size_log = log_gamma_variate(state, total)
    for v in range(len(target)):
        kept = log_gamma_variate(state, keep * target[v])
        lost = log_gamma_variate(state, (1.0 - keep) * target[v])
        added = log_gamma_variate(state, (1.0 - keep) * target[v])
        thinned = old_log[v] + size_log + kept - _log_add(kept, lost)
        new_log[v] = _log_add(thinned, added)
    total = log_sum(new_log)
    for v in range(len(target)):
        new_log[v] -= total


@jit()
def _log_add(a: float, b: float) -> float:
    high, low = max(a, b), min(a, b)
    return high + math.log1p(math.exp(low - high))


@jit()
def _normalisers(
    model: Model,
    i: int,
    j: int,
    row: int,
    counts: NDArray[np.uint16],
    weights: Array,
    old: Array,
    new: Array,
    room: Array,
) -> float:
    """How much the normalisers of the products that use the row change the log-likelihood of the counts."""
    nodes, tables = model[:2]
    size, inner, rows = nodes[i, SIZE], tables[j, INNER], tables[j, ROWS]
    others = room[4, :size]
    joint_rows = tables[nodes[i, LAST], ROWS]
    change = 0.0
    for outer in range(row * inner, joint_rows, rows * inner):
        for joint in range(outer, outer + inner):
            drawn = 0.0
            for v in range(size):
                drawn += counts[nodes[i, COUNTS] + joint * size + v]
            if drawn == 0.0:
                continue
            for v in range(size):
                others[v] = 1.0
            for k in range(nodes[i, FIRST], nodes[i, LAST]):
                if k == j:
                    continue
                start = tables[k, DATA] + joint // tables[k, INNER] % tables[k, ROWS] * size
                for v in range(size):
                    others[v] *= weights[start + v]
                if (k - nodes[i, FIRST]) % RESCALE_EVERY == RESCALE_EVERY - 1:
                    rescale(others, size)
            before = after = 0.0
            for v in range(size):
                before += others[v] * old[v]
                after += others[v] * new[v]
            change -= drawn * math.log(after / before)
    return change
