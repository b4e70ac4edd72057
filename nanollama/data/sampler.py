"""Ancestral sampling with counter-based randomness: a sequence depends on (seed, split, index) and nothing else.

What is drawn how, from which random numbers, is the stream of `draws`. Here it is compiled: several sequences take
turns in the innermost loops, so that one's cache misses and multiplications hide behind the others', and threads share
out the sequences.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nanollama.data.alias import read_only, weigh
from nanollama.data.draws import (
    ALIAS,
    ASIDE,
    ASIDE_BACKGROUND,
    BACKGROUND,
    KERNELS,
    OWN,
    STATES,
    Program,
    build_program,
    key_of,
)
from nanollama.data.gssm import Array, IntArray, Kernels, draw_tables
from nanollama.data.jit import default_threads, jit, share_out
from nanollama.data.philox import multiply, philox
from nanollama.spec.gssm import NodeSpec

Tokens = NDArray[np.unsignedinteger[Any]]

_LANES = 32  # sequences that take turns
_BLOCK = 4  # steps whose numbers are drawn together; the numbers of one block of the generator
_GRAIN_NUMBERS = 2**16  # numbers that a thread should find to draw: about a millisecond
_WORKING_BYTES = 2**28  # of kernels of single sequences that are held at a time

_HALF, _LOW = np.uint64(32), np.uint64(2**32 - 1)


class Sampler:
    """Draws sequences of a GSSM.

    Sequence i of a split is bit-identical whatever the batch and the threads that draw it, and a longer sequence
    begins with the shorter one.
    """

    def __init__(self, kernels: Kernels, seed: int, split: str, *, threads: int | None = None) -> None:
        """Make the tables to draw from.

        Args:
            kernels: the model.
            seed: of the sequences.
            split: of the sequences; different splits are independent.
            threads: that may work at a time; as many as there are cores when absent.
        """
        self.kernels = kernels
        self.seed = seed
        self.split = split
        self._threads = default_threads() if threads is None else threads
        self._spec = kernels.spec
        self._key = key_of(seed, split)
        self._context = [node for node in self._spec.build_order() if node.mode == "context"]

    def sample(self, indices: ArrayLike, seq_len: int) -> Tokens:
        """Tokens of the sequences with the given indices: [len(indices), seq_len]; the first is 0.

        Their type is `symbol_dtype(kernels.vocab_size)`.

        Raises:
            ValueError: an index that is no integer of 0 .. 2^64 - 1, or seq_len < 1.
        """
        tokens: Tokens = self._sample(self.main_program, indices, seq_len, [self._spec.observed])[0]
        return tokens

    def sample_states(self, indices: ArrayLike, seq_len: int) -> dict[str, Tokens]:
        """States of every node of the build order, each [len(indices), seq_len] in the smallest type of its states.

        Raises:
            ValueError: as `sample`.
        """
        order = self._spec.build_order()
        drawn = self._sample(self._full_program, indices, seq_len, order)
        return {
            node.name: states.astype(symbol_dtype(node.state_dim), copy=False)
            for node, states in zip(order, drawn, strict=True)
        }

    def context_tables(self, index: int) -> dict[str, tuple[Array, ...]]:
        """The kernels of the nodes in context mode that generate one sequence."""
        counter = np.array([0, 0, index, KERNELS], dtype=np.uint64)
        rng = np.random.Generator(np.random.Philox(counter=counter, key=self._key))
        return {node.name: draw_tables(self._spec, node, rng) for node in self._context}

    def own_tables(self, program: Program, index: NDArray[np.uint64]) -> Array:
        """The tables of the sequences' own that a program looks up, float64 [len(index), program.own_entries]."""
        own = np.empty((len(index), program.own_entries))
        if program.own_entries:
            for row, i in zip(own, index, strict=True):
                tables = self.context_tables(int(i))
                np.concatenate([t.reshape(-1) for node in program.own_nodes for t in tables[node.name]], out=row)
        return read_only(own)

    @cached_property
    def main_program(self) -> Program:
        """What `sample` runs."""
        return build_program(self.kernels, self._key, aside=False, threads=self._threads)

    @cached_property
    def _full_program(self) -> Program:
        """What `sample_states` runs: it draws the latents that no token depends on as well."""
        return build_program(self.kernels, self._key, aside=True, threads=self._threads)

    def _sample(self, program: Program, indices: ArrayLike, seq_len: int, nodes: Sequence[NodeSpec]) -> Tokens:
        """States of some nodes, [len(nodes), len(indices), seq_len], in the smallest type that fits all of them."""
        index = check_request(indices, seq_len)
        dtype = symbol_dtype(max(node.state_dim for node in nodes))
        states: Tokens = np.empty((len(nodes), len(index), seq_len), dtype=dtype)
        outputs = program.outputs(nodes)
        batch = max(1, _WORKING_BYTES // (8 * max(1, program.own_entries)))
        grain = max(_LANES, math.ceil(_GRAIN_NUMBERS / (seq_len * max(1, len(program.draws)))))
        for begin in range(0, len(index), batch):
            part = index[begin : begin + batch]
            own = self.own_tables(program, part)

            def work(start: int, stop: int, *, part: Any = part, own: Array = own, begin: int = begin) -> None:
                _run(
                    program.keys,
                    part[start:stop],
                    program.num_main,
                    program.draws,
                    program.slots,
                    program.inputs,
                    program.contributions,
                    program.starts,
                    program.entries,
                    program.flat,
                    own[start:stop],
                    *outputs,
                    states[:, begin + start : begin + stop],
                )

            share_out(work, len(part), threads=self._threads, grain=grain)
        return states


def symbol_dtype(vocab_size: int) -> np.dtype[Any]:
    """Smallest unsigned integer type of the symbols 0 .. vocab_size - 1."""
    return np.min_scalar_type(vocab_size - 1)


def check_request(indices: ArrayLike, seq_len: int) -> NDArray[np.uint64]:
    """The indices as a flat array.

    Raises:
        ValueError: an index that is no integer of 0 .. 2^64 - 1, or seq_len < 1.
    """
    if seq_len < 1:
        raise ValueError(f"seq_len is {seq_len}, but a sequence has at least 1 token")
    array = np.asarray(indices)
    if array.size == 0 or array.dtype.kind == "u":
        return array.reshape(-1).astype(np.uint64)
    if array.dtype.kind == "i":
        if array.min() < 0:
            raise ValueError(f"index {array.min()} is negative; sequences are counted from 0")
        return array.reshape(-1).astype(np.uint64)
    values = np.asarray(indices, dtype=object).reshape(-1)  # numpy makes floats of some lists of large integers
    for value in values:
        try:
            number = operator.index(value)
        except TypeError:
            raise ValueError(f"index {value!r} is not an integer") from None
        if not 0 <= number < 2**64:
            raise ValueError(f"index {value} is not within 0 .. 2^64 - 1")
    return values.astype(np.uint64)


@jit()
def _run(  # noqa: PLR0917 - compiled functions are called by position
    keys: NDArray[np.uint64],
    index: NDArray[np.uint64],
    num_main: int,
    draws: IntArray,
    slots: IntArray,
    inputs: IntArray,
    contributions: IntArray,
    starts: IntArray,
    entries: NDArray[np.uint64],
    flat: Array,
    own: Array,
    outputs: IntArray,
    decoders: NDArray[np.uint16],
    states: Tokens,
) -> None:
    """Draw the sequences of `index` into `states` [O, len(index), T]; the other arguments are those of a Program."""
    length, num_draws = states.shape[2], len(draws)
    num_aside = num_draws - num_main
    most_slots, most_outcomes = 1, 1
    for d in range(num_draws):
        most_slots = max(most_slots, draws[d, 3] - draws[d, 2])
        most_outcomes = max(most_outcomes, draws[d, 1])
    numbers = np.empty((_BLOCK * num_draws, _LANES), dtype=np.uint64)
    outcomes = np.empty((2, num_draws, _LANES), dtype=np.int64)
    rows = np.empty((most_slots, _LANES), dtype=np.int64)
    weights, counts = np.empty(most_outcomes), np.empty(most_outcomes, dtype=np.int64)
    at = np.empty(most_slots, dtype=np.int64)
    for first in range(0, len(index), _LANES):
        some = index[first : first + _LANES]
        lanes = len(some)
        outcomes[0] = 0
        states[:, first : first + lanes, 0] = 0
        for t in range(1, length):
            step = (t - 1) % _BLOCK
            if step == 0:
                block = (t - 1) // _BLOCK
                _number(keys, some, block * num_main, num_main, STATES, numbers[: _BLOCK * num_main])
                _number(keys, some, block * num_aside, num_aside, ASIDE, numbers[_BLOCK * num_main :])
            now = t & 1
            for d in range(num_draws):
                kind, size, slot, end = draws[d]
                for j in range(slot, end):
                    _find(slots[j], inputs, contributions, outcomes, now, lanes, rows[j - slot])
                place, purpose, n = (t - 1) * num_main + d, BACKGROUND, step * num_main + d
                if d >= num_main:
                    place, purpose = (t - 1) * num_aside + d - num_main, ASIDE_BACKGROUND
                    n = _BLOCK * num_main + step * num_aside + d - num_main
                drawn = outcomes[now, d]
                if kind == ALIAS:
                    _pick(starts, entries, rows[0], numbers[n], lanes, drawn)
                    _spread(keys, some, place, purpose, size, drawn)
                    continue
                for lane in range(lanes):
                    at[: end - slot] = rows[: end - slot, lane]
                    tables = own[first + lane] if kind == OWN else flat
                    weigh(tables, at[: end - slot], weights[:size], counts[:size])
                    drawn[lane] = _search(weights[:size], counts[:size], numbers[n, lane])
            for o in range(len(outputs)):
                d, decoder = outputs[o]
                for lane in range(lanes):
                    states[o, first + lane, t] = decoders[decoder + outcomes[now, d, lane]] if d >= 0 else 0


@jit()
def _number(  # noqa: PLR0917 - compiled functions are called by position
    keys: NDArray[np.uint64], index: NDArray[np.uint64], block: int, blocks: int, purpose: int, numbers: Any
) -> None:
    """The numbers of some blocks for each of the sequences, uint64 [4 * blocks, lanes]."""
    for b in range(blocks):
        for lane in range(len(index)):
            words = philox(keys, np.uint64(block + b), index[lane], np.uint64(purpose))
            numbers[4 * b, lane], numbers[4 * b + 1, lane] = words[0], words[1]
            numbers[4 * b + 2, lane], numbers[4 * b + 3, lane] = words[2], words[3]


@jit()
def _find(  # noqa: PLR0917 - as above
    slot: IntArray, inputs: IntArray, contributions: IntArray, outcomes: IntArray, now: int, lanes: int, rows: IntArray
) -> None:
    """The row that each sequence looks up."""
    base, begin, end = slot
    rows[:lanes] = base
    for i in range(begin, end):
        source, lag, factor, start = inputs[i]
        values = outcomes[now ^ lag, source]
        if factor:
            for lane in range(lanes):
                rows[lane] += values[lane] * factor
        else:
            for lane in range(lanes):
                rows[lane] += contributions[start + values[lane]]


@jit()
def _pick(  # noqa: PLR0917 - as above
    starts: IntArray,
    entries: NDArray[np.uint64],
    rows: IntArray,
    numbers: NDArray[np.uint64],
    lanes: int,
    drawn: IntArray,
) -> None:
    """Draw by alias tables."""
    for lane in range(lanes):
        row = rows[lane]
        start = starts[row]
        columns = np.uint64(starts[row + 1] - start)
        column, coin = multiply(numbers[lane], columns)
        entry = start + np.int64(column)
        pair = entries[entry, 1]
        drawn[lane] = pair >> _HALF if coin < entries[entry, 0] else pair & _LOW


@jit()
def _spread(  # noqa: PLR0917 - as above
    keys: NDArray[np.uint64], index: NDArray[np.uint64], place: int, purpose: int, size: int, drawn: IntArray
) -> None:
    """Put a uniform state where the outcome is the background."""
    for lane in range(len(index)):
        if drawn[lane] == size:
            words = philox(keys, np.uint64(place // 4), index[lane], np.uint64(purpose))
            drawn[lane] = multiply(words[place % 4], np.uint64(size))[0]


@jit()
def _search(weights: Array, counts: IntArray, u: np.uint64) -> int:
    """A state with probability proportional to its weight, the largest of which lies in [1/2, 1).

    Weights become integers whose sum lies between 2^59 and 2^62: integers add up to the same in any order.
    """
    states = len(weights)
    bits = 0
    while (1 << bits) < states:
        bits += 1
    total = 0
    scale = math.ldexp(1.0, 62 - bits)
    for s in range(states):
        total += np.int64(weights[s] * scale)
    _, length = math.frexp(float(total))
    scale = math.ldexp(1.0, 62 - bits + 61 - length)
    total = 0
    for s in range(states):
        counts[s] = np.int64(weights[s] * scale)
        total += counts[s]
    rest = np.int64(multiply(u, np.uint64(total))[0])
    for s in range(states):
        rest -= counts[s]
        if rest < 0:
            return s
    return states - 1
