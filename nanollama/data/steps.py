"""Compiled loops of exact inference: one step of the forward and backward recursions, one latent at a time.

Shapes: S joint states of the latents in C order, L sequences (lanes) that are treated together and lie innermost, V
symbols, P joint states of the observed node's parents. A joint distribution is a flat array of S * L numbers that is
changed in place. Recursions: L. R. Rabiner, A tutorial on hidden Markov models, Proc. IEEE 77(2), 1989, section III;
one latent after the other: Z. Ghahramani and M. I. Jordan, Factorial hidden Markov models, Machine Learning 29, 1997,
appendix B.
"""

# ruff: noqa: PLR0917 - compiled functions have no keyword-only arguments

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nanollama.data.jit import jit
from nanollama.data.vectors import LANES, ROWS, add_sparse_row, set_dense_row, set_dense_rows

FAST = {"contract", "reassoc", "nsz"}  # sums in any order and fused; infinities and NaN keep their meaning
WIDTH = 64
"""Columns of a block: what is multiplied by a matrix at a time, small enough for the first caches."""

# columns of Program.ops
SPARSE, BEFORE, STATES, AFTER, MAP, MATRIX_P, MATRIX_X, MATRIX, GIVES, TAKES, SCALE_P, SCALE_X, PRE, POST = range(14)
NUM_FIELDS = 14

Floats = NDArray[Any]
Ints = NDArray[np.int64]


class Program(NamedTuple):
    """Steps of all latents as flat arrays; row i of `ops` holds the offsets of step i, -1 for what it lacks.

    A step views the joint distribution as [before, states, after * L] and replaces the middle axis:
    out[j] = post[j] * (sum over k of matrix[j, k] * in'[k] + takes[j] * sum over k of gives[k] * in'[k]) with
    in'[k] = pre[k] * in[k]; `gives` and `takes` are the rank-one term of a sparse matrix, one of them 1. Which block
    of tables holds depends on the parents' states, maps[MAP + outer index], and on x(t-1).
    """

    ops: Ints
    maps: NDArray[np.int32]
    dense: Floats
    starts: Ints
    indices: NDArray[np.int32]
    values: Floats
    scales: Floats


class Emission(NamedTuple):
    """P(x | parents): `table` is [V, P] flat; or it is empty and a probability is lead * trail * inverse.

    `lead` is [V, leading parents' states] and `trail` [V, trailing parents' states], flat, `inverse` is [P], all
    float64. `parents` is the parents' joint state for each of the S states, empty where both are the same. `sizes` is
    (P, leading states, trailing states).
    """

    sizes: Ints
    table: Floats
    lead: NDArray[np.float64]
    trail: NDArray[np.float64]
    inverse: NDArray[np.float64]
    parents: NDArray[np.int32]


class Work(NamedTuple):
    """Scratch of one thread.

    x and y: [states, WIDTH or all padded columns] of the largest step; `weights`: [P, L]; `seen`: [P, L] where not
    all latents are parents of the observed node, and P more where its probabilities are computed from factors.
    """

    x: Floats
    y: Floats
    weights: Floats
    seen: Floats


@jit()
def padded(width: int) -> int:
    """Columns that are computed for `width` columns; what the others hold is never read."""
    return (width + LANES - 1) // LANES * LANES


@jit(fastmath=FAST)
def _load(
    program: Program, op: int, joint: Floats, lanes: int, first: int, width: int, previous: int, x: Floats
) -> None:
    """Copy columns first .. first + width - 1 of [before, states, inner] to x [states, stride], times `pre`."""
    ops = program.ops[op]
    states, inner, stride = ops[STATES], ops[AFTER] * lanes, padded(width)
    column = 0
    while column < width:
        outer = (first + column) // inner
        offset = (first + column) - outer * inner
        run = min(inner - offset, width - column)
        source = outer * states * inner + offset
        if ops[PRE] >= 0:
            parents = program.maps[ops[MAP] + outer] if ops[MAP] >= 0 else 0
            scale = ops[PRE] + (parents * ops[SCALE_P] + previous * ops[SCALE_X]) * states
            for k in range(states):
                factor = program.scales[scale + k]
                into = x[k * stride + column : k * stride + column + run]
                old = joint[source + k * inner : source + k * inner + run]
                for i in range(run):
                    into[i] = factor * old[i]
        elif run == 1:
            for k in range(states):
                x[k * stride + column] = joint[source + k * inner]
        else:
            for k in range(states):
                into = x[k * stride + column : k * stride + column + run]
                old = joint[source + k * inner : source + k * inner + run]
                for i in range(run):
                    into[i] = old[i]
        column += run


@jit(fastmath=FAST)
def _store(
    program: Program, op: int, joint: Floats, lanes: int, first: int, width: int, previous: int, y: Floats
) -> None:
    """Copy y [states, stride], times `post`, back to the columns."""
    ops = program.ops[op]
    states, inner, stride = ops[STATES], ops[AFTER] * lanes, padded(width)
    column = 0
    while column < width:
        outer = (first + column) // inner
        offset = (first + column) - outer * inner
        run = min(inner - offset, width - column)
        target = outer * states * inner + offset
        if ops[POST] >= 0:
            parents = program.maps[ops[MAP] + outer] if ops[MAP] >= 0 else 0
            scale = ops[POST] + (parents * ops[SCALE_P] + previous * ops[SCALE_X]) * states
            for j in range(states):
                factor = program.scales[scale + j]
                new = y[j * stride + column : j * stride + column + run]
                into = joint[target + j * inner : target + j * inner + run]
                for i in range(run):
                    into[i] = factor * new[i]
        elif run == 1:
            for j in range(states):
                joint[target + j * inner] = y[j * stride + column]
        else:
            for j in range(states):
                new = y[j * stride + column : j * stride + column + run]
                into = joint[target + j * inner : target + j * inner + run]
                for i in range(run):
                    into[i] = new[i]
        column += run


@jit(fastmath=FAST)
def _multiply_dense(matrix: Floats, offset: int, states: int, x: Floats, y: Floats, stride: int) -> None:
    """Set y = matrix @ x, both [states, stride]."""
    quads = states // ROWS * ROWS
    for row in range(0, quads, ROWS):
        for column in range(0, stride, LANES):
            set_dense_rows(matrix, offset, states, x, stride, y, column, row)
    for row in range(quads, states):
        for column in range(0, stride, LANES):
            set_dense_row(matrix, offset, states, x, stride, y, column, row)


@jit(fastmath=FAST)
def _multiply_sparse(program: Program, first: int, states: int, x: Floats, y: Floats, stride: int) -> None:
    """Add matrix @ x to y, both [states, stride]; the matrix has the rows from `first` on."""
    for column in range(0, stride, LANES):
        for row in range(states):
            start, stop = program.starts[first + row], program.starts[first + row + 1]
            add_sparse_row(program.values, program.indices, start, stop, x, stride, y, column, row)


@jit(fastmath=FAST)
def _rank_one(program: Program, gives: int, takes: int, states: int, x: Floats, y: Floats, stride: int) -> None:
    """Set y [states, stride] to takes[j] * sum over k of gives[k] * x[k]; -1 stands for ones."""
    total = y[:stride]
    total[:] = 0
    for k in range(states):
        factor = program.scales[gives + k] if gives >= 0 else program.scales.dtype.type(1)
        old = x[k * stride : (k + 1) * stride]
        for i in range(stride):
            total[i] += factor * old[i]
    for j in range(states - 1, -1, -1):  # the first row, which holds the sum, comes last
        factor = program.scales[takes + j] if takes >= 0 else program.scales.dtype.type(1)
        into = y[j * stride : (j + 1) * stride]
        for i in range(stride):
            into[i] = factor * total[i]


@jit(fastmath=FAST)
def apply(
    program: Program, op: int, joint: Floats, lanes: int, start: int, stop: int, previous: int, x: Floats, y: Floats
) -> None:
    """Do one step in place for the outer indices start .. stop - 1; x and y are scratch of states * WIDTH."""
    ops = program.ops[op]
    states, inner = ops[STATES], ops[AFTER] * lanes
    span = inner if ops[MATRIX_P] else (stop - start) * inner  # columns that share a matrix
    for base in range(start * inner, stop * inner, span):
        parents = program.maps[ops[MAP] + base // inner] if ops[MATRIX_P] else 0
        row = (parents * ops[MATRIX_P] + previous * ops[MATRIX_X]) * states
        for first in range(base, base + span, WIDTH):
            width = min(WIDTH, base + span - first)
            stride = padded(width)
            _load(program, op, joint, lanes, first, width, previous, x)
            if ops[SPARSE]:
                gives = ops[GIVES] + row if ops[GIVES] >= 0 else -1
                takes = ops[TAKES] + row if ops[TAKES] >= 0 else -1
                _rank_one(program, gives, takes, states, x, y, stride)
                _multiply_sparse(program, ops[MATRIX] + row, states, x, y, stride)
            else:
                _multiply_dense(program.dense, ops[MATRIX] + row * states, states, x, y, stride)
            _store(program, op, joint, lanes, first, width, previous, y)


@jit(fastmath=FAST)
def _symbol(emission: Emission, symbol: int, weights: Floats, lane: int, lanes: int) -> None:
    """P(symbol | parents) from its factors, into one lane of `weights` [P, L]."""
    leading, trailing = emission.sizes[1], emission.sizes[2]
    for a in range(leading):
        factor = emission.lead[symbol * leading + a]
        for c in range(trailing):
            p = a * trailing + c
            weights[p * lanes + lane] = factor * emission.trail[symbol * trailing + c] * emission.inverse[p]


@jit(fastmath=FAST)
def symbol_weights(emission: Emission, tokens: NDArray[np.int32], t: int, weights: Floats) -> Floats:
    """P(x_t | parents) of every sequence, [P, L]; one sequence needs no copy of the table's row."""
    lanes, count = len(tokens), emission.sizes[0]
    if len(emission.table) == 0:
        for b in range(lanes):
            _symbol(emission, tokens[b, t], weights, b, lanes)
        return weights
    if lanes == 1:
        return emission.table[tokens[0, t] * count : (tokens[0, t] + 1) * count]
    for p in range(count):
        for b in range(lanes):
            weights[p * lanes + b] = emission.table[tokens[b, t] * count + p]
    return weights


@jit(fastmath=FAST)
def weigh(
    emission: Emission, joint: Floats, lanes: int, start: int, stop: int, weights: Floats, inverse: Floats, sums: Floats
) -> None:
    """Multiply the joint states start .. stop - 1 by their weights and by `inverse` [L]; add the result to `sums`."""
    mapped = len(emission.parents) > 0
    if lanes == 1:
        scale, total = inverse[0], 0.0
        if mapped:
            for s in range(start, stop):
                joint[s] *= weights[emission.parents[s]] * scale
                total += joint[s]
        else:
            for s in range(start, stop):
                joint[s] *= weights[s] * scale
                total += joint[s]
        sums[0] += total
        return
    for s in range(start, stop):
        p = emission.parents[s] if mapped else s
        row, weight = joint[s * lanes : (s + 1) * lanes], weights[p * lanes : (p + 1) * lanes]
        for b in range(lanes):
            row[b] *= weight[b] * inverse[b]
            sums[b] += row[b]


@jit(fastmath=FAST)
def predict(
    emission: Emission, joint: Floats, inverse: Floats, scale: float, t: int, seen: Floats, out: Floats
) -> None:
    """p(x_t = v | x_<t) into out [L, T - 1, V] from the joint distribution before x_t is seen."""
    lanes, _, symbols = out.shape
    count = emission.sizes[0]
    prior = joint
    if len(emission.parents):
        prior = seen
        seen[: count * lanes] = 0
        for s in range(len(emission.parents)):
            row = seen[emission.parents[s] * lanes : (emission.parents[s] + 1) * lanes]
            for b in range(lanes):
                row[b] += joint[s * lanes + b]
    totals = np.empty(lanes)
    for v in range(symbols):
        row = seen[len(seen) - count :] if len(emission.table) == 0 else seen[:0]
        if len(emission.table):
            row = emission.table[v * count : (v + 1) * count]
        else:
            _symbol(emission, v, row, 0, 1)
        totals[:] = 0
        if lanes == 1:
            total = 0.0
            for p in range(count):
                total += row[p] * prior[p]
            totals[0] = total
        else:
            for p in range(count):
                for b in range(lanes):
                    totals[b] += row[p] * prior[p * lanes + b]
        for b in range(lanes):
            out[b, t - 1, v] = totals[b] * inverse[b] / scale


@jit(fastmath=FAST)
def marginals_at(joint: Floats, lanes: int, latents: Ints, t: int, out: Floats) -> None:
    """Normalised marginals of each latent into out [L, T, sum of sizes]; rows of `latents`: before, states, after."""
    totals = np.empty(lanes)
    place = 0
    for n in range(len(latents)):
        before, states, after = latents[n]
        norms = np.zeros(lanes)
        for k in range(states):
            totals[:] = 0
            for o in range(before):
                base = (o * states + k) * after * lanes
                for i in range(after):
                    for b in range(lanes):
                        totals[b] += joint[base + i * lanes + b]
            for b in range(lanes):
                out[b, t, place + k] = totals[b]
                norms[b] += totals[b]
        for k in range(states):
            for b in range(lanes):
                out[b, t, place + k] /= norms[b]
        place += states


@jit(fastmath=FAST)
def rescale(joint: Floats, lanes: int, scale: float, inverse: Floats) -> None:
    """What each sequence must be multiplied by to sum to `scale`, into `inverse` [L]."""
    totals = np.zeros(lanes)
    for s in range(len(joint) // lanes):
        for b in range(lanes):
            totals[b] += joint[s * lanes + b]
    for b in range(lanes):
        inverse[b] = scale / totals[b]
