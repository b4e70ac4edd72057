"""Alias tables with integer thresholds: a draw from any distribution in O(1), exactly the same on every device.

The method is Walker's (1977), the construction Vose's (1991), carried out in integers. A row of k columns takes one
64-bit number u: the upper half of the product u * k is the column; the lower half, against the column's threshold,
decides between the column's own outcome and its alias.

A row of a floored kernel has few entries above its smallest one. It is stored as these entries' excess and one outcome
more, `background`, which stands for the smallest entry on all states: a uniform state, from another number.

What a table realises differs in no probability from the row that it was made of by more than 2^-52 + k * 2^-60; a
state below 2^-63 is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanollama.data.gssm import Array, IntArray
from nanollama.data.jit import jit, share_out

_BITS = 62  # a row's integer weights sum to at most 2^_BITS
_HALF_UNIT = 2.0**-63
_RESCALE_EVERY = 3  # factors of at least 1e-80 each, of eight floored inputs, before their exponents are taken out
_GRAIN_ENTRIES = 2**18  # dense entries that a thread should find to do
_FULL = np.uint64(2**64 - 1)
_ONE = np.uint64(1)


@dataclass(frozen=True)
class Factors:
    """Rows that are products: row r of the joint table is the product of one row of each factor.

    Attributes:
        flat: the factors' float64 tables [rows_j, states], one behind the other.
        bases: where each begins in `flat`.
        sizes: rows of each; r counts them in C order.
        states: entries of a row.
    """

    flat: Array
    bases: IntArray
    sizes: IntArray
    states: int

    @classmethod
    def of(cls, tables: Sequence[Array], states: int) -> Factors:
        """The factors of tables [rows_j, states]; a single table is not copied."""
        flat = (
            tables[0].reshape(-1)
            if len(tables) == 1
            else np.concatenate([np.zeros(0), *(t.reshape(-1) for t in tables)])
        )
        flat = read_only(flat)
        sizes = np.array([len(table) for table in tables], dtype=np.int64)
        bases = np.concatenate([[0], np.cumsum(sizes * states)[:-1]]).astype(np.int64)[: len(tables)]
        return cls(flat=flat, bases=bases, sizes=sizes, states=states)

    @property
    def rows(self) -> int:
        """Rows of the joint table."""
        return math.prod(int(size) for size in self.sizes)

    def table(self, *, threads: int) -> Array:
        """The joint table [rows, states], each row up to a power of two."""
        result = np.empty((self.rows, self.states))
        share_out(
            lambda start, stop: _multiply(self.flat, self.bases, self.sizes, start, result[start:stop]),
            self.rows,
            threads=threads,
            grain=self._grain,
        )
        return result

    def columns(self, *, threads: int) -> IntArray:
        """Columns of the alias table of each row."""
        counts = np.empty(self.rows, dtype=np.int64)
        share_out(
            lambda start, stop: _count(self.flat, self.bases, self.sizes, start, self.states, counts[start:stop]),
            self.rows,
            threads=threads,
            grain=self._grain,
        )
        return counts

    def fill(self, starts: IntArray, entries: NDArray[np.uint64], *, threads: int) -> None:
        """Write the alias table of row r to entries[starts[r] : starts[r + 1]], as (threshold, own << 32 | alias)."""
        share_out(
            lambda start, stop: _fill(
                self.flat, self.bases, self.sizes, start, self.states, starts[start : stop + 1], entries
            ),
            self.rows,
            threads=threads,
            grain=self._grain,
        )

    @property
    def _grain(self) -> int:
        return max(1, _GRAIN_ENTRIES // self.states)


def read_only(table: Array) -> Array:
    """A view that cannot be written through: compiled code meets one type of tables, and is compiled once."""
    view: Array = table.view()
    view.flags.writeable = False
    return view


@jit()
def weigh(flat: Array, at: IntArray, weights: Array, exponents: IntArray) -> None:
    """Into `weights`: the product over j of flat[at[j] : at[j] + states], its largest entry in [1/2, 1).

    Only multiplication, and exponents apart where there are many factors: nothing underflows on the way that matters
    in the end, and the result is the same to the last bit everywhere. `exponents` is room to work in.
    """
    states, factors = len(weights), len(at)
    weights[:] = 1
    exponents[:] = 0
    for j in range(factors):
        start = at[j]
        for s in range(states):
            weights[s] *= flat[start + s]
        if j % _RESCALE_EVERY == _RESCALE_EVERY - 1 and j + 1 < factors:
            for s in range(states):
                weights[s], shift = math.frexp(weights[s])
                exponents[s] += shift
    if factors <= _RESCALE_EVERY:
        largest = 0.0
        for s in range(states):
            largest = max(largest, weights[s])
        _, shift = math.frexp(largest)
        scale = math.ldexp(1.0, -shift)
        for s in range(states):
            weights[s] *= scale
        return
    top = -(2**62)
    for s in range(states):
        weights[s], shift = math.frexp(weights[s])
        exponents[s] += shift
        if weights[s] > 0:
            top = max(top, exponents[s])
    for s in range(states):
        weights[s] = math.ldexp(weights[s], max(exponents[s] - top, -1100))


@jit()
def _locate(row: int, bases: IntArray, sizes: IntArray, states: int, at: IntArray) -> None:
    for j in range(len(sizes) - 1, -1, -1):
        at[j] = bases[j] + row % sizes[j] * states
        row //= sizes[j]


@jit()
def _multiply(flat: Array, bases: IntArray, sizes: IntArray, first: int, result: Array) -> None:
    at = np.empty(len(sizes), dtype=np.int64)
    exponents = np.empty(result.shape[1], dtype=np.int64)
    for i in range(len(result)):
        _locate(first + i, bases, sizes, result.shape[1], at)
        weigh(flat, at, result[i], exponents)


@jit()
def _split(weights: Array) -> tuple[float, float, int]:
    """Sum of a row, its background level (0 where there is none), columns of its alias table."""
    states = len(weights)
    total, lost, lowest = 0.0, 0.0, math.inf
    for s in range(states):  # Kahan's sum: the error does not grow with the number of states
        term = weights[s] - lost
        larger = total + term
        lost = (larger - total) - term
        total = larger
        lowest = min(lowest, weights[s])
    least = total * _HALF_UNIT
    above, kept = 0, 0
    for s in range(states):
        above += weights[s] > lowest
        kept += weights[s] >= least
    if lowest >= least and 2 * (above + 1) <= states:
        return total, lowest, above + 1
    return total, 0.0, kept


@jit()
def _count(  # noqa: PLR0917 - compiled functions are called by position
    flat: Array, bases: IntArray, sizes: IntArray, first: int, states: int, counts: IntArray
) -> None:
    at = np.empty(len(sizes), dtype=np.int64)
    weights, exponents = np.empty(states), np.empty(states, dtype=np.int64)
    for i in range(len(counts)):
        _locate(first + i, bases, sizes, states, at)
        weigh(flat, at, weights, exponents)
        counts[i] = _split(weights)[2]


@jit()
def _fill(  # noqa: PLR0917 - as above
    flat: Array,
    bases: IntArray,
    sizes: IntArray,
    first: int,
    states: int,
    starts: IntArray,
    entries: NDArray[np.uint64],
) -> None:
    at = np.empty(len(sizes), dtype=np.int64)
    weights, exponents = np.empty(states), np.empty(states, dtype=np.int64)
    rest, outcome = np.empty(states + 1, dtype=np.int64), np.empty(states + 1, dtype=np.int64)
    stack = np.empty(states + 1, dtype=np.int64)
    for i in range(len(starts) - 1):
        _locate(first + i, bases, sizes, states, at)
        weigh(flat, at, weights, exponents)
        total, base, columns = _split(weights)
        bits = 0
        while (1 << bits) < columns:
            bits += 1
        room = _BITS - bits
        _round(weights, total, base, columns, room, rest, outcome)
        _pair(rest, outcome, columns, room, stack, entries, starts[i])


@jit()
def _round(  # noqa: PLR0917 - as above
    weights: Array, total: float, base: float, columns: int, room: int, rest: IntArray, outcome: IntArray
) -> None:
    """Integer weights `rest` of the columns' outcomes, which sum to columns * 2^room."""
    states = len(weights)
    scale = float(columns) * math.ldexp(1.0, room) / total
    least = total * _HALF_UNIT
    c, largest, missing = 0, 0, columns << room
    for s in range(states):
        if (weights[s] > base) if base > 0 else (weights[s] >= least):
            rest[c] = np.int64(np.rint((weights[s] - base) * scale))
            outcome[c] = s
            missing -= rest[c]
            if rest[c] > rest[largest]:
                largest = c
            c += 1
    if base > 0:
        rest[c] = np.int64(np.rint(states * base * scale))
        outcome[c] = states
        missing -= rest[c]
        if rest[c] > rest[largest]:
            largest = c
    rest[largest] += missing


@jit()
def _pair(  # noqa: PLR0917 - as above
    rest: IntArray,
    outcome: IntArray,
    columns: int,
    room: int,
    stack: IntArray,
    entries: NDArray[np.uint64],
    start: int,
) -> None:
    """Vose's pairing of columns that are not full with those that have more than they hold, 2^room each."""
    full = 1 << room
    low, high = 0, columns  # the stack of the small grows from the front, that of the large from the back
    for c in range(columns):
        own = np.uint64(outcome[c])
        entries[start + c, 0] = _FULL
        entries[start + c, 1] = own << np.uint64(32) | own
        if rest[c] < full:
            stack[low] = c
            low += 1
        elif rest[c] > full:
            high -= 1
            stack[high] = c
    while low > 0:  # the weights sum to what all columns hold: as long as one is not full another has too much
        low -= 1
        small, large = stack[low], stack[high]
        entries[start + small, 0] = np.uint64(rest[small]) << np.uint64(64 - room)
        entries[start + small, 1] = np.uint64(outcome[small]) << np.uint64(32) | np.uint64(outcome[large])
        rest[large] -= full - rest[small]
        if rest[large] <= full:
            high += 1
            if rest[large] < full:
                stack[low] = large
                low += 1
