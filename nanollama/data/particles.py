"""Sequential Monte Carlo over the latents' paths with kernels integrated out, free or around a retained particle.

`free` estimates p(x) without bias: E w = p(x). `retained` is the same algorithm around a particle that is an exact
draw from the posterior of paths and kernels; then E 1/w = 1/p(x). The argument:

- Each step weighs a particle by p(x_t | its past), with its next state summed out, and draws the next state from
  p(z_t | its past, x_t): fully adapted (Pitt, Shephard 1999) and Rao-Blackwellised (Doucet et al. 2000; for static
  parameters with Dirichlet laws, Storvik 2002, Carvalho et al. 2010). w is the product over t of the mean weights, and
  unbiased for every number of particles (Del Moral 2004, proposition 7.4.1; with resampling when the weights demand
  it, Whiteley et al. 2016).
- The particles' rows of product kernels are moved after each step by a kernel that keeps the posterior given x_1..x_t
  invariant: a sequential Monte Carlo sampler (Chopin 2002; Del Moral et al. 2006), w is unbiased as before.
- The extended law of Andrieu, Doucet, Holenstein 2010 is that of all particles and one lineage, picked by its
  final weight, times w / p(x). Its lineage has the law of the posterior, continued backwards in time by the reversal of
  each move, and all else follows the conditional algorithm. So under it, which is what `retained` draws from,
  the mean of 1/w is 1/p(x) (Grosse, Ghahramani, Adams 2015).
- Resampling is systematic, and the next state of each copy is drawn by itself. Around a retained particle the offset
  has the density that is proportional to the number of its copies: a uniform point in the particle's own interval
  gives both the offset and the copy that is retained (Chopin, Singh 2015).
"""

# ruff: noqa: PLR0917 - compiled functions are called by position

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanollama.data.collapsed import SIZE, Model, count, weigh
from nanollama.data.gssm import Array, IntArray
from nanollama.data.jit import jit
from nanollama.data.moves import draw_weights, floor_weights, move_weights
from nanollama.data.variates import uniform

_RESAMPLE_BELOW = 0.5  # share of the particles that the effective sample size falls to before they are resampled


def bytes_needed(particles: int, num_states: int, num_counts: int, num_weights: int) -> int:
    """Memory of one estimate."""
    return particles * (8 * num_states + 2 * 2 * num_counts + 4 * 8 * num_weights + 2 * 8 + 4 * 8)


@jit()
def lineage(
    model: Model, state: NDArray[np.uint64], tokens: IntArray, path: IntArray, logs: Array, num_counts: int
) -> Array:
    """Rows of the product kernels that a retained particle has when x_t is weighed, as logarithms [T + 1, E].

    They end with `logs`, those that the sequence was drawn with, and go back through the reversal of each move.
    """
    trail = np.zeros((len(tokens) + 1, len(logs)))
    if len(logs) == 0:
        return trail
    counts = np.zeros((1, num_counts), dtype=np.uint16)
    for t in range(1, len(tokens)):
        count(model, path[t - 1 : t], path[t : t + 1], tokens[t - 1], tokens[t], counts, np.int64(1))
    logs, weights = logs.copy(), np.empty(len(logs))
    floor_weights(model, logs, weights)
    room = np.empty((6, model[0][:, SIZE].max()))
    for t in range(len(tokens) - 1, 0, -1):
        for e in range(len(logs)):
            trail[t, e] = logs[e]
        count(model, path[t - 1 : t], path[t : t + 1], tokens[t - 1], tokens[t], counts, np.int64(-1))
        move_weights(model, state, counts[0], logs, weights, room, np.int64(-1))
    return trail


@jit()
def estimate(
    model: Model,
    state: NDArray[np.uint64],
    tokens: IntArray,
    path: IntArray,
    trail: Array,
    retain: bool,
    particles: int,
    num_counts: int,
    num_weights: int,
) -> tuple[float, int]:
    """One estimate of log p(x_1 .. x_{T-1}): free, or around a retained particle.

    Args:
        model: Plan.arrays.
        state: of the generator; changed.
        tokens: int64 [T].
        path: joint states of the retained particle, int64 [T]; not read without one.
        trail: rows of its product kernels, see lineage; not read without one.
        retain: whether there is a retained particle.
        particles: their number.
        num_counts: of the plan.
        num_weights: of the plan.

    Returns:
        log w, and 0 or the first position at which the model (or the retained particle) has probability zero.
    """
    num_states, room = len(model[3]), np.empty((6, model[0][:, SIZE].max()))
    counts, spare_counts = np.zeros((particles, num_counts), np.uint16), np.empty((particles, num_counts), np.uint16)
    logs, spare_logs = np.empty((particles, num_weights)), np.empty((particles, num_weights))
    weights, spare_weights = np.empty((particles, num_weights)), np.empty((particles, num_weights))
    joint, spare_joint = np.zeros(particles, np.int64), np.empty(particles, np.int64)
    parent, chosen = np.empty(particles, np.int64), np.empty(particles, np.int64)
    sums, mass = np.empty((particles, num_states)), np.ones(particles)
    if num_weights:
        for n in range(particles):
            draw_weights(model, state, logs[n], weights[n])
    kept = 0 if retain else -1  # index of the retained particle
    _follow(model, kept, trail, 1, logs, weights)
    log_w = 0.0
    for t in range(1, len(tokens)):
        weigh(model, joint, tokens[t - 1], tokens[t], counts, weights, room[5], sums)
        total = squares = 0.0
        for n in range(particles):
            mass[n] *= sums[n, num_states - 1]
            total += mass[n]
            squares += mass[n] * mass[n]
        if not total > 0.0 or (retain and not _probability(sums, kept, path[t]) > 0.0):
            return log_w, t
        log_w += math.log(total / particles)
        if total * total < _RESAMPLE_BELOW * particles * squares:
            kept = _resample(state, mass, total, kept, parent)
            _copy(counts, parent, spare_counts)
            _copy(logs, parent, spare_logs)
            _copy(weights, parent, spare_weights)
            for m in range(particles):
                spare_joint[m] = joint[parent[m]]
                mass[m] = 1.0
            counts, spare_counts = spare_counts, counts
            joint, spare_joint = spare_joint, joint
            logs, spare_logs = spare_logs, logs
            weights, spare_weights = spare_weights, weights
        else:
            for n in range(particles):
                mass[n] *= particles / total
                parent[n] = n
        _choose(state, sums, parent, kept, path[t] if retain else 0, chosen)
        count(model, joint, chosen, tokens[t - 1], tokens[t], counts, np.int64(1))
        joint, chosen = chosen, joint
        if num_weights and t < len(tokens) - 1:
            for n in range(particles):
                if n != kept:
                    move_weights(model, state, counts[n], logs[n], weights[n], room, np.int64(1))
            _follow(model, kept, trail, t + 1, logs, weights)
    return log_w, 0


@jit()
def _follow(model: Model, kept: int, trail: Array, t: int, logs: Array, weights: Array) -> None:
    """Give the retained particle, if there is one, the rows that it has when x_t is weighed."""
    if kept >= 0 and logs.shape[1]:
        for e in range(logs.shape[1]):
            logs[kept, e] = trail[t, e]
        floor_weights(model, logs[kept], weights[kept])


@jit()
def _choose(
    state: NDArray[np.uint64], sums: Array, parent: IntArray, kept: int, kept_state: int, chosen: IntArray
) -> None:
    """Draw each particle's next state given its parent's cumulative sums; the retained one's is known."""
    final = sums.shape[1] - 1
    for n in range(len(parent)):
        chosen[n] = kept_state if n == kept else _pick(sums, parent[n], uniform(state) * sums[parent[n], final])


@jit()
def _copy(rows: NDArray[Any], parent: IntArray, out: NDArray[Any]) -> None:
    """out[m] = rows[parent[m]]."""
    for m in range(len(parent)):
        for d in range(rows.shape[1]):
            out[m, d] = rows[parent[m], d]


@jit()
def _probability(sums: Array, n: int, z: int) -> float:
    probability: float = sums[n, z] - sums[n, z - 1] if z else sums[n, 0]
    return probability


@jit()
def _pick(sums: Array, n: int, point: float) -> int:
    """The state whose interval of the cumulative sums holds the point; never one of probability zero."""
    z, last = 0, sums.shape[1] - 1
    while z < last and sums[n, z] <= point:
        z += 1
    while z > 0 and sums[n, z] == sums[n, z - 1]:
        z -= 1
    return z


@jit()
def _resample(state: NDArray[np.uint64], mass: Array, total: float, kept: int, parent: IntArray) -> int:
    """Systematic resampling of particles of weights `mass` into parent[n]; the retained one's new place, or -1."""
    particles, scale = len(mass), len(mass) / total
    offset, place = uniform(state), -1
    if kept >= 0:
        below = 0.0
        for n in range(kept):
            below += mass[n]
        point = min(scale * (below + mass[kept] * uniform(state)), particles * (1.0 - 1e-15))
        place = int(point)
        offset = point - place
    below = 0.0
    m = last = 0
    for n in range(particles):
        if mass[n] == 0.0:
            continue
        last = n
        below += mass[n] * scale
        while m < particles and offset + m < below:
            parent[m] = n
            m += 1
    for rest in range(m, particles):  # rounding may leave the last one over
        parent[rest] = last
    if kept >= 0:
        parent[place] = kept
    return place
