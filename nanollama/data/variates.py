"""Random variates inside compiled loops: a small generator that is seeded by key, and gamma variates in log space."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nanollama.data.gssm import FLOOR, Array
from nanollama.data.jit import jit

_LOG_FLOOR = math.log(FLOOR)
_UNIT = 2.0**-53


def stream(*key: int) -> NDArray[np.uint64]:
    """The state of a generator, uint64 of shape [4]: different keys, which are not negative, give independent ones."""
    words: NDArray[np.uint64] = np.random.SeedSequence(key).generate_state(4, np.uint64).astype(np.uint64)
    return words


@jit()
def uniform(state: NDArray[np.uint64]) -> float:
    """A uniform number strictly between 0 and 1, by xoshiro256++ (Blackman, Vigna 2021)."""
    total = state[0] + state[3]
    drawn = ((total << np.uint64(23)) | (total >> np.uint64(41))) + state[0]
    shifted = state[1] << np.uint64(17)
    state[2] ^= state[0]
    state[3] ^= state[1]
    state[1] ^= state[2]
    state[0] ^= state[3]
    state[2] ^= shifted
    state[3] = (state[3] << np.uint64(45)) | (state[3] >> np.uint64(19))
    return (np.float64(drawn >> np.uint64(12)) * 2.0 + 1.0) * _UNIT  # type: ignore[no-any-return]


@jit()
def log_gamma_variate(state: NDArray[np.uint64], shape: float) -> float:
    """The logarithm of a Gamma(shape, 1) variate, which itself underflows where the shape is small.

    Marsaglia, Tsang 2000; a shape below 1 by the law of Gamma(shape + 1) * U^(1 / shape). Normal variates by the
    polar method.
    """
    boost = 0.0
    if shape < 1.0:
        boost = math.log(uniform(state)) / shape
        shape += 1.0
    d = shape - 1.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    while True:
        a = 2.0 * uniform(state) - 1.0
        b = 2.0 * uniform(state) - 1.0
        square = a * a + b * b
        if square >= 1.0 or square == 0.0:
            continue
        normal = a * math.sqrt(-2.0 * math.log(square) / square)
        v = 1.0 + c * normal
        if v <= 0.0:
            continue
        v = v * v * v
        if math.log(uniform(state)) < 0.5 * normal * normal + d - d * v + d * math.log(v):
            return math.log(d * v) + boost


@jit()
def log_sum(values: Array) -> float:
    """Logarithm of the sum of exponentials."""
    highest: float = values[0]
    for value in values:
        highest = max(highest, value)
    total = 0.0
    for value in values:
        total += math.exp(value - highest)
    return highest + math.log(total)


@jit()
def log_dirichlet(state: NDArray[np.uint64], concentration: Array, out: Array) -> None:
    """Fill `out` with the logarithm of one Dirichlet(concentration) variate."""
    for v in range(len(out)):
        out[v] = log_gamma_variate(state, concentration[v])
    total = log_sum(out)
    for v in range(len(out)):
        out[v] -= total


@jit()
def floor_row(log_row: Array, out: Array) -> None:
    """What `gssm.floored` makes of exp(log_row)."""
    total = 0.0
    for v in range(len(out)):
        out[v] = math.exp(max(log_row[v], _LOG_FLOOR))
        total += out[v]
    for v in range(len(out)):
        out[v] /= total


def unfloored(rows: Array, alpha: float, rng: np.random.Generator) -> Array:
    """Logarithms of Dirichlet rows given what the floor left of them, [..., s].

    An entry at the floor was below it: given the others it has the density q^(alpha - 1) on [0, FLOOR], up to a
    factor that lies within 1e-9 of 1 because such entries hardly matter for the sum.
    """
    below = rows <= FLOOR
    drawn = math.log(FLOOR) + np.log1p(-rng.random(rows.shape)) / alpha
    logs: Array = np.where(below, drawn, np.log(rows))
    return logs
