"""Compiled loops of exact inference: the forward and the backward recursion over the tokens.

Shapes and letters are those of `steps`, where each step of a latent is done. L. R. Rabiner, A tutorial on hidden Markov
models, Proc. IEEE 77(2), 1989, section III.
"""

# ruff: noqa: PLR0917 - compiled functions have no keyword-only arguments

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nanollama.data.jit import jit
from nanollama.data.steps import (
    BEFORE,
    FAST,
    Emission,
    Floats,
    Ints,
    Program,
    Work,
    apply,
    marginals_at,
    predict,
    rescale,
    symbol_weights,
    weigh,
)


@jit(fastmath=FAST)
def forward(
    program: Program,
    split: tuple[int, int],
    emission: Emission,
    scale: float,
    joint: Floats,
    tokens: NDArray[np.int32],
    first: int,
    last: int,
    work: Work,
    norms: Floats,
    predictive: Floats,
    latents: Ints,
    marginals: Floats,
    saved: tuple[int, Floats],
) -> None:
    """Carry the joint distribution [S * L] from position first - 1 to last - 1, in place.

    Args:
        program: the steps of the latents.
        split: (n, tiles): the first n steps run over the whole joint distribution, the others and the weighing by the
            token tile by tile, so that a tile stays in the cache.
        emission: the observed node.
        scale: what a joint distribution sums to.
        joint: the distribution after the token at first - 1 is seen, up to a factor for each sequence.
        tokens: int [L, T].
        first: the first position that is scored.
        last: the position after the last one.
        work: scratch, x, y, weights and seen of Work.
        norms: float64 [L, T - 1], receives p(x_t | x_<t).
        predictive: [L, T - 1, V], receives the distributions; an empty array where they are not wanted.
        latents: int64 [n, 3], before, states, after of each latent.
        marginals: float64 [L, T, sum of sizes], receives p(z_t | x_<=t); or empty.
        saved: (every, array [n, S * L]): receives the joint distribution at each position t that is a multiple of
            `every`, from first on, at t // every - first // every; every = 0 saves none.
    """
    lanes, count = len(tokens), len(program.ops)
    lead, tiles = split
    every, kept = saved
    inverse = np.empty(lanes, dtype=joint.dtype)
    sums = np.empty(lanes)
    rescale(joint, lanes, scale, inverse)
    predicting = predictive.size > 0
    for t in range(first, last):
        previous = np.int64(tokens[0, t - 1])
        weights = symbol_weights(emission, tokens, t, work.weights)
        sums[:] = 0
        # phase 0 does the first steps everywhere, phases 1 .. tiles the others, the last one weighs where the
        # distribution before the token had to be complete; every function has one place to be inlined at
        for phase in range(tiles + 2):
            begin, end, part, parts = 0, lead, 0, 1
            if phase > tiles:
                begin = end = count
            elif phase > 0:
                begin, end, part, parts = lead, count, phase - 1, tiles
            for op in range(begin, end):
                outer = program.ops[op, BEFORE] // parts
                apply(program, op, joint, lanes, part * outer, (part + 1) * outer, previous, work.x, work.y)
            if predicting and phase == tiles:
                predict(emission, joint, inverse, scale, t, work.seen, predictive)
            if phase > 0 and predicting == (phase > tiles):
                states = len(joint) // lanes // parts
                weigh(emission, joint, lanes, part * states, (part + 1) * states, weights, inverse, sums)
        for b in range(lanes):
            norms[b, t - 1] = sums[b] / scale
            inverse[b] = scale / sums[b]
        if marginals.size:
            marginals_at(joint, lanes, latents, t, marginals)
        if every and t % every == 0:
            kept[t // every - first // every] = joint


@jit(fastmath=FAST)
def backward(
    program: Program,
    split: tuple[int, int],
    emission: Emission,
    scale: float,
    message: Floats,
    tokens: NDArray[np.int32],
    first: int,
    last: int,
    work: Work,
    latents: Ints,
    marginals: Floats,
    kept: Floats,
) -> None:
    """Carry p(x_t+1 .. | z_t) from position last - 1 to first - 1 and smooth what lies between, in place.

    Args:
        program: the transposed steps, in the order of the forward ones.
        split: as in `forward`.
        emission: the observed node.
        scale: what a joint distribution sums to.
        message: [S * L], up to a factor for each sequence.
        tokens: int [L, T].
        first: the first position that is smoothed; the message goes on to the one before, if there is one.
        last: the position after the last one.
        work: as in `forward`.
        latents: as in `forward`.
        marginals: float64 [L, T, sum of sizes], receives p(z_t | x).
        kept: [last - first, S * L], the joint distributions of the forward recursion; overwritten.
    """
    lanes, count = len(tokens), len(program.ops)
    lead, tiles = split
    inverse = np.empty(lanes, dtype=message.dtype)
    sums = np.zeros(lanes)
    for t in range(last - 1, first - 1, -1):
        rescale(message, lanes, scale, inverse)
        both = kept[t - first]
        for s in range(len(message) // lanes):
            for b in range(lanes):
                both[s * lanes + b] *= message[s * lanes + b] * inverse[b]
        marginals_at(both, lanes, latents, t, marginals)
        if t == 0:
            return
        previous = np.int64(tokens[0, t - 1])
        weights = symbol_weights(emission, tokens, t, work.weights)
        for phase in range(tiles + 1):
            begin, end, part, parts = lead, count, phase, tiles
            if phase == tiles:
                begin, end, part, parts = 0, lead, 0, 1
            else:
                states = len(message) // lanes // tiles
                weigh(emission, message, lanes, part * states, (part + 1) * states, weights, inverse, sums)
            for op in range(end - 1, begin - 1, -1):
                outer = program.ops[op, BEFORE] // parts
                apply(program, op, message, lanes, part * outer, (part + 1) * outer, previous, work.x, work.y)
