"""The sequences of `Sampler`, to the last bit, by tensor operations: drawn on the device that trains on them.

Everything that decides is integer arithmetic, 64-bit products from 32-bit halves; where rows are multiplied out,
floating point is used in the same order as there. Each operation takes all sequences at once, so it pays for very many
sequences only: `loader.OnlineLoader` times both and takes the faster one.

Products of 64-bit words wrap around here, as torch's own operations do. In the C++ that torch.compile writes for the
CPU signed overflow is undefined, and the compiler uses that: numbers come out wrong there unless -fwrapv is given.
So nothing here is compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nanollama.data.draws import ALIAS, BACKGROUND, OWN, STATES
from nanollama.data.gssm import Kernels
from nanollama.data.philox import MULTIPLIERS
from nanollama.data.sampler import Sampler, check_request

_BLOCK = 4  # steps that are drawn together
_WORKING_ENTRIES = 2**26  # numbers and weights that are held at a time: 512 MiB
_LOW = 2**32 - 1
_SIGN = -(2**63)
_RESCALE_EVERY = 3  # as in `alias.weigh`

Pair = tuple[Tensor, Tensor]


class DeviceSampler:
    """Draws the tokens that `Sampler` draws, on any device of torch."""

    def __init__(self, kernels: Kernels, seed: int, split: str, *, device: torch.device | str) -> None:
        """Put the tables on the device.

        Args:
            kernels: the model.
            seed: of the sequences.
            split: of the sequences.
            device: where tables and tokens lie.
        """
        self.device = torch.device(device)
        self._sampler = Sampler(kernels, seed, split)
        self._program = program = self._sampler.main_program
        self._keys = [(_signed(int(a)), _signed(int(b))) for a, b in program.keys]
        self._draws = program.draws.tolist()
        self._slots = program.slots.tolist()
        self._inputs = program.inputs.tolist()
        places, decoder = program.outputs([kernels.spec.observed])
        self._observed = int(places[0, 0])
        self._decoder = self._put(decoder.astype(np.int64))
        self._contributions = self._put(program.contributions)
        self._starts = self._put(program.starts)
        entries = program.entries.view(np.int64)
        self._thresholds = self._put(entries[:, 0] ^ _SIGN)  # ordered as signed numbers like the unsigned ones
        self._pairs = self._put(entries[:, 1])
        self._flat = self._put(program.flat)
        self._background = [self._has_background(draw) for draw in self._draws]

    def sample(self, indices: ArrayLike, seq_len: int) -> Tensor:
        """Tokens of the sequences with the given indices: int64 [len(indices), seq_len] on the device.

        Raises:
            ValueError: an index that is no integer of 0 .. 2^64 - 1, or seq_len < 1.
        """
        index = check_request(indices, seq_len)
        multiplied = max((size for kind, size, *_ in self._draws if kind != ALIAS), default=0)
        held = max(1, 8 * len(self._draws) + 4 * multiplied + self._program.own_entries)
        batch = max(1, _WORKING_ENTRIES // held)
        tokens = torch.zeros((len(index), seq_len), dtype=torch.int64, device=self.device)
        if self._observed < 0:
            return tokens
        for start in range(0, len(index), batch):
            self._draw(index[start : start + batch], tokens[start : start + batch])
        return tokens

    def _draw(self, index: NDArray[np.uint64], tokens: Tensor) -> None:
        own = self._put(self._sampler.own_tables(self._program, index))
        where = self._put(index.view(np.int64))
        last = [torch.zeros_like(where) for _ in self._draws]
        for begin in range(1, tokens.shape[1], _BLOCK):
            block = torch.full((), (begin - 1) // _BLOCK, dtype=torch.int64, device=self.device)
            drawn, last = self._block(where, block, own, last)
            tokens[:, begin : begin + _BLOCK] = drawn[:, : tokens.shape[1] - begin]

    def _block(self, index: Tensor, block: Tensor, own: Tensor, last: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Tokens [N, 4] of four steps, and the outcomes of all draws in the last one."""
        count = len(self._draws)
        numbers = self._numbers(index, block, STATES)
        spare = self._numbers(index, block, BACKGROUND) if any(self._background) else numbers
        tokens = []
        for step in range(_BLOCK):
            drawn: list[Tensor] = []
            for d, (kind, size, slot, end) in enumerate(self._draws):
                rows = [self._row(j, drawn, last) for j in range(slot, end)]
                u = numbers[step * count + d]
                if kind == ALIAS:
                    outcome = self._pick(rows[0], u)
                    if self._background[d]:
                        uniform = _multiply(spare[step * count + d], torch.full_like(u, size))[0]
                        outcome = torch.where(outcome == size, uniform, outcome)
                else:
                    flat = self._flat
                    if kind == OWN:
                        flat = own.reshape(-1)
                        rows = [row + torch.arange(len(own), device=row.device) * own.shape[1] for row in rows]
                    outcome = _search(_weigh(flat, rows, len(u), size), u)
                drawn.append(outcome)
            tokens.append(self._decoder[drawn[self._observed]])
            last = drawn
        return torch.stack(tokens, dim=1), last

    def _numbers(self, index: Tensor, block: Tensor, purpose: int) -> list[Tensor]:
        """The numbers of four steps, each of shape [N]."""
        words: list[Tensor] = []
        for b in range(len(self._draws)):
            first = (block * len(self._draws) + b).expand_as(index)
            words += _philox(self._keys, first, index, purpose)
        return words

    def _row(self, slot: int, drawn: Sequence[Tensor], last: Sequence[Tensor]) -> Tensor:
        base, begin, end = self._slots[slot]
        row = torch.full_like(last[0], base)
        for source, lag, factor, start in self._inputs[begin:end]:
            values = last[source] if lag else drawn[source]
            row = row + (values * factor if factor else self._contributions[start + values])
        return row

    def _pick(self, row: Tensor, u: Tensor) -> Tensor:
        """Draw by alias tables."""
        start = self._starts[row]
        column, coin = _multiply(u, self._starts[row + 1] - start)
        pair = self._pairs[start + column]
        return torch.where((coin ^ _SIGN) < self._thresholds[start + column], pair >> 32, pair & _LOW)

    def _has_background(self, draw: Sequence[int]) -> bool:
        """Whether an alias table has rows with a background."""
        kind, size, slot, _ = draw
        if kind != ALIAS:
            return False
        first = self._slots[slot][0]
        later = (self._slots[other[2]][0] for other in self._draws if other[0] == ALIAS)
        last = min((row for row in later if row > first), default=len(self._program.starts) - 1)
        own = self._program.entries[self._program.starts[first] : self._program.starts[last], 1]
        return bool(((own >> np.uint64(32)) == np.uint64(size)).any())

    def _put(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.array(array)).to(self.device)


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def _multiply(a: Tensor, b: Tensor) -> Pair:
    """Upper and lower half of the 128-bit product of 64-bit numbers without sign."""
    a_low, a_high = a & _LOW, (a >> 32) & _LOW
    b_low, b_high = b & _LOW, (b >> 32) & _LOW
    one, other = a_low * b_high, a_high * b_low
    middle = ((a_low * b_low >> 32) & _LOW) + (one & _LOW) + (other & _LOW)
    high = a_high * b_high + ((one >> 32) & _LOW) + ((other >> 32) & _LOW) + (middle >> 32)
    return high, a * b


def _philox(keys: Sequence[tuple[int, int]], block: Tensor, index: Tensor, purpose: int) -> list[Tensor]:
    """The four numbers of one block, as `philox.philox`."""
    m0, m1 = (torch.full_like(index, _signed(m)) for m in MULTIPLIERS)
    c0, c1, c2, c3 = block + 1, torch.zeros_like(index), index, torch.full_like(index, purpose)
    for key0, key1 in keys:
        high0, low0 = _multiply(m0, c0)
        high1, low1 = _multiply(m1, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
    return [c0, c1, c2, c3]


def _power(exponent: Tensor) -> Tensor:
    """2^exponent for integers -1022 .. 1023."""
    return ((exponent + 1023) << 52).view(torch.float64)


def _weigh(flat: Tensor, rows: Sequence[Tensor], count: int, states: int) -> Tensor:
    """Products of rows, [count, states], as `alias.weigh`."""
    columns = torch.arange(states, device=flat.device)
    weights = torch.ones((count, states), dtype=torch.float64, device=flat.device)
    exponents = torch.zeros_like(weights, dtype=torch.int64)
    for j, row in enumerate(rows):
        weights = weights * flat[row[:, None] + columns]
        if j % _RESCALE_EVERY == _RESCALE_EVERY - 1 and j + 1 < len(rows):
            weights, shift = torch.frexp(weights)
            exponents = exponents + shift
    if len(rows) <= _RESCALE_EVERY:
        _, shift = torch.frexp(weights.amax(dim=1, keepdim=True))
        return weights * _power(-shift.to(torch.int64))
    weights, shift = torch.frexp(weights)
    exponents = exponents + shift
    top = torch.where(weights > 0, exponents, -(2**62)).amax(dim=1, keepdim=True)
    return weights * _power((exponents - top).clamp(min=-1000))


def _search(weights: Tensor, u: Tensor) -> Tensor:
    """States with probability proportional to their weights, as `sampler._search`."""
    states = weights.shape[1]
    bits = 62 - (states - 1).bit_length()
    total = (weights * 2.0**bits).to(torch.int64).sum(dim=1)
    _, length = torch.frexp(total.to(torch.float64))
    counts = (weights * _power(bits + 61 - length.to(torch.int64))[:, None]).to(torch.int64)
    sums = counts.cumsum(dim=1)
    rest, _ = _multiply(u, sums[:, -1])
    return (sums <= rest[:, None]).sum(dim=1).clamp(max=states - 1)
