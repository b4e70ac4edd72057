"""Philox4x64-10, random numbers that are a function of their place: Salmon, Moraes, Dror and Shaw, SC 2011.

Block b of a counter [c, 0, index, purpose] holds the four 64-bit numbers that
`numpy.random.Philox(counter=[c + b, 0, index, purpose], key=key).random_raw(4)` gives, bit by bit. numpy counts up
before it computes, and so do we.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from nanollama.data.jit import jit

ROUNDS = 10
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)  # what the two halves of the key grow by each round

_M0, _M1 = (np.uint64(m) for m in MULTIPLIERS)


def round_keys(key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The keys of the rounds, uint64 [ROUNDS, 2], of a key of two 64-bit words."""
    steps = [[(int(word) + r * weyl) % 2**64 for word, weyl in zip(key, _WEYL, strict=True)] for r in range(ROUNDS)]
    return np.array(steps, dtype=np.uint64)


def _multiply(_context: Any, _a: Any, _b: Any) -> Any:
    """The product of two uint64 in 128 bits, as its upper and its lower half; one machine instruction gives both."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        narrow = context.get_value_type(types.uint64)
        wide = type(narrow)(128)
        a, b = (builder.zext(value, wide) for value in arguments)
        product = builder.mul(a, b)
        halves = [builder.trunc(builder.lshr(product, wide(64)), narrow), builder.trunc(product, narrow)]
        return context.make_tuple(builder, signature.return_type, halves)

    pair = types.Tuple((types.uint64, types.uint64))  # type: ignore[no-untyped-call]
    return pair(types.uint64, types.uint64), generate


multiply: Any = intrinsic(_multiply)


@jit(inline=True)
def philox(keys: NDArray[np.uint64], block: np.uint64, index: np.uint64, purpose: np.uint64) -> Any:
    """The four numbers of one block; `keys` are those of the rounds."""
    c0, c1, c2, c3 = block + np.uint64(1), np.uint64(0), index, purpose
    for r in range(ROUNDS):
        high0, low0 = multiply(_M0, c0)
        high1, low1 = multiply(_M1, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ keys[r, 0], low1, high0 ^ c3 ^ keys[r, 1], low0
    return c0, c1, c2, c3
